"""What photographs there are."""

import sys
from pathlib import Path

import dagster as dg

from assets import partitions
from assets.resources import Settings, WorkspaceResource
from assets.stores.workspace import Shard, Workspace, sources_mark
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.emotions import is_word
from diffsfsr.face import collection


class Folder(dg.Config):
    """A folder of photographs and the name it goes by. `split`: published or person (see face.collection); empty: as before."""

    name: str
    folder: str
    split: str = ""


@dg.asset(kinds={"parquet"}, group_name="faces")
def source_images(
    context: dg.AssetExecutionContext, config: Folder, settings: Settings, workspace: WorkspaceResource
) -> dg.MaterializeResult:
    """One row per photograph of a data set (or per named face of one), dealt into shards. Opens a partition a shard."""
    shards, changed = take_stock(workspace.open, config.name, Path(config.folder), settings.resolve(), config.split)
    context.instance.add_dynamic_partitions(partitions.shards.name or "", [shard.key for shard in shards])
    context.instance.add_dynamic_partitions(partitions.datasets.name or "", [config.name])
    rows = sum(tables.read(workspace.open.file("sources", shard), ["path"]).num_rows for shard in shards)
    return dg.MaterializeResult(
        metadata={
            "photographs": rows,
            "shards": len(shards),
            "changed": [s.key for s in changed],
            "folder": dg.MetadataValue.path(config.folder),
        }
    )


def take_stock(workspace: Workspace, name: str, folder: Path, preset: Preset, way: str = "") -> tuple[list[Shard], list[Shard]]:
    """List a folder's photographs into source tables; returns (all shards, those that changed).

    `way` to split them: as at the last time where it is empty. A photograph keeps its shard for good: new ones fill the last shard and
    open others, so that they cost only themselves.
    """
    folder = folder.resolve()
    with workspace.lock(f"sources-{name}"):
        shards = workspace.shards(name)
        files = {shard: workspace.file("sources", shard) for shard in shards}
        # a table that is broken is made anew
        before = {shard: tables.read(file).to_pylist() if tables.mark_of(file) else [] for shard, file in files.items()}
        known = [row for rows in before.values() for row in rows]
        way = way or workspace.way_of(name)
        listed = collection.scan(folder, known, preset.data.test_fraction, way)
        if absent := collection.unknown_files(folder, listed):
            print(f"{folder / 'labels.csv'} names {len(absent)} files that are not there, first {absent[0]}", file=sys.stderr, flush=True)
        if none := sorted({row["emotion"] for row in listed if row["emotion"] and not is_word(row["emotion"])}):
            told = f"{name}: {len(none)} emotion labels are none of the 135 words, first {none[0]!r}: they are kept, and no word finds them"
            print(told, file=sys.stderr, flush=True)
        forgotten = workspace.forgotten()
        found = [row for row in listed if (row["sha256"], row["face"]) not in forgotten]
        tables.write_json(workspace.dataset(name) / "folder.json", {"folder": str(folder), "split": way})
        changed = []
        for number, rows in enumerate(_deal(found, list(before.values()), preset.data.shard)):
            shard = Shard(name, number)
            _write_labels(workspace.file("labels", shard), rows)
            mark = sources_mark(rows)
            if tables.mark_of(workspace.file("sources", shard)) != mark:
                tables.write(workspace.file("sources", shard), tables.from_rows(rows, tables.SOURCES), mark)
                changed.append(shard)
        return workspace.shards(name), changed


def _write_labels(file: Path, rows: list[collection.Row]) -> None:
    """What is said of a shard's photographs besides; no file where nothing is."""
    labelled = [{"path": row["path"], "face": row["face"], "labels": sorted(row["labels"].items())} for row in rows if row["labels"]]
    if not labelled:
        file.unlink(missing_ok=True)
    elif tables.mark_of(file) != (mark := tables.fingerprint(labelled)):
        tables.write(file, tables.from_rows(labelled, tables.LABELS), mark)


def _deal(found: list[collection.Row], before: list[list[collection.Row]], size: int) -> list[list[collection.Row]]:
    """Rows by shard, sorted: known ones stay where they were, new ones go on from the last shard."""
    place = {(row["path"], row["face"]): number for number, rows in enumerate(before) for row in rows}
    dealt: list[list[collection.Row]] = [[] for _ in before]
    for row in found:
        if (row["path"], row["face"]) in place:
            dealt[place[row["path"], row["face"]]].append(row)
    for row in found:
        if (row["path"], row["face"]) not in place:
            if not dealt or len(dealt[-1]) >= size:
                dealt.append([])
            dealt[-1].append(row)
    return [sorted(rows, key=lambda row: (row["path"], row["face"])) for rows in dealt]
