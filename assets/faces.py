"""From photographs to aligned faces and their masks."""

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from assets import partitions
from assets.images import source_images
from assets.pictures import picture
from assets.resources import Settings, WorkspaceResource
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.cores import cores
from diffsfsr.face import collection
from diffsfsr.face.crew import Crew

# Part of the fingerprint below: raise it where the code that makes the table starts to give other results.
MASK_VERSION = 1
_KEEP_EVERY = 100  # photographs, after which what has been aligned of a shard is put aside: a kill costs no more
_UNFINISHED = "-unfinished"
_LOOKED_AT = b"looked_at"  # of a table: how many photographs had to be looked at to make it
_BATCH = 64  # faces whose pixels are held at once
_SHOWN = 24  # faces on a contact sheet


def aligned_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    """What a shard's aligned faces are made from: its photographs, the settings of alignment, and which photographs crashed."""
    wanted, found = _wanted_mark(workspace, shard, preset), tables.mark_of(workspace.file(aligned(preset), shard)) or ""
    return found if found.startswith(wanted) else wanted


def _wanted_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    """The mark of a shard's aligned faces when no photograph is left to try."""
    return tables.fingerprint(tables.mark_of(workspace.file("sources", shard)), _alignment_settings(preset))


def _alignment_settings(preset: Preset) -> dict[str, Any]:
    data = dataclasses.asdict(preset.data)
    relevant: tuple[str, ...] = ("detector", "face", "min_face", "max_yaw", "max_outside", "max_pixels")
    relevant += ("landmarks",) if preset.data.landmarks != "dlib" else ()  # what was aligned before there was a choice stays good
    return {k: data[k] for k in relevant} | {"crop": preset.crop, "v": collection.VERSION}


@dg.asset(
    partitions_def=partitions.shards,
    deps=[source_images],
    kinds={"dlib", "parquet"},
    group_name="faces",
    check_specs=[dg.AssetCheckSpec("every_photograph_accounted_for", asset="aligned_faces", blocking=True)],
)
def aligned_faces(context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource) -> dg.MaterializeResult:
    """One row per aligned face, and one row per photograph that is none, with the reason."""
    from diffsfsr.face.images import decode

    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    align_shard(workspace.open, shard, preset)
    faces = tables.read(workspace.open.file(aligned(preset), shard))
    rejects = tables.read(workspace.open.file(f"rejects-{preset.crop}", shard), ["reason"])
    sheet = _sheet([decode(crop) for crop in faces["crop"].to_pylist()[:_SHOWN]])
    return dg.MaterializeResult(
        metadata={
            "faces": faces.num_rows,
            "rejected": rejects.num_rows,
            "reasons": dict(Counter(rejects["reason"].to_pylist())),
            "computed": int((faces.schema.metadata or {}).get(_LOOKED_AT, b"0")),
            **({"contact_sheet": picture(sheet)} if sheet is not None else {}),
        },
        data_version=dg.DataVersion(aligned_mark(workspace.open, shard, preset)),
        check_results=[_accounted_for(workspace.open, shard, preset)],
    )


def _accounted_for(workspace: Workspace, shard: Shard, preset: Preset) -> dg.AssetCheckResult:
    """Every photograph of the shard is a face or a reject, and none is both."""
    sources, faces, rejects = (
        [(row["path"], row["face"]) for row in tables.read(workspace.file(kind, shard), ["path", "face"]).to_pylist()]
        for kind in ("sources", aligned(preset), f"rejects-{preset.crop}")
    )
    metadata = {"photographs": len(sources), "faces": len(faces), "rejects": len(rejects)}
    return dg.AssetCheckResult(passed=sorted(sources) == sorted(faces + rejects), metadata=metadata)


def align_shard(workspace: Workspace, shard: Shard, preset: Preset, crew: Crew | None = None) -> int:
    """Bring a shard's aligned faces and rejects up to date; returns how many photographs had to be looked at.

    Rows of photographs that have not changed are kept, and so are those of a run that was killed on its way; what crashed is tried
    again. One process at a time works on a shard. `crew`: default is one for this call.
    """
    with workspace.lock(f"align-{preset.crop}-{shard.key}"):
        if is_aligned(workspace, shard, preset):
            return 0
        mark = _wanted_mark(workspace, shard, preset)
        rows = tables.read(workspace.file("sources", shard)).to_pylist()
        known, crashed = _known(workspace, shard, preset)
        fresh = [row for row in rows if not row["sha256"] or _key(row) not in known]
        found = [_relabelled(known[_key(row)], row) for row in rows if row["sha256"] and _key(row) in known]
        folder = workspace.folder_of(shard.dataset)
        aligning = collection.align_each(fresh, folder, shard.dataset, preset.crop, preset.data, crew or cores(), crashed)
        for number, result in enumerate(aligning, 1):
            found.append(result)
            if number % _KEEP_EVERY == 0 and number < len(fresh):
                _write(_files(workspace, shard, preset, _UNFINISHED), found, preset, mark, number)
        _write(_files(workspace, shard, preset), found, preset, _mark_of_crashes(mark, found), len(fresh))
        for file in _files(workspace, shard, preset, _UNFINISHED):
            file.unlink(missing_ok=True)
        faces = sum(map(collection.is_face, found))
        told = f"{shard.key}: {len(fresh)} photographs looked at, {faces} faces, {len(found) - faces} rejected"
        print(told, file=sys.stderr, flush=True)
        return len(fresh)


def is_aligned(workspace: Workspace, shard: Shard, preset: Preset) -> bool:
    mark = _wanted_mark(workspace, shard, preset)
    return all(tables.mark_of(file) == mark for file in _files(workspace, shard, preset))


def is_masked(workspace: Workspace, shard: Shard, preset: Preset) -> bool:
    return tables.mark_of(workspace.file(f"masks-{preset.crop}", shard)) == mask_mark(workspace, shard, preset)


def mask_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    from diffsfsr.face.parsing import parser_version

    return tables.fingerprint(aligned_mark(workspace, shard, preset), parser_version(preset.mask), MASK_VERSION)


def _files(workspace: Workspace, shard: Shard, preset: Preset, suffix: str = "") -> list[Path]:
    """The tables of a shard's faces and of its rejects."""
    return [workspace.file(f"{kind}{suffix}", shard) for kind in (aligned(preset), f"rejects-{preset.crop}")]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["path"], row["sha256"], row["face"]


def _relabelled(kept: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return kept | {k: row[k] for k in ("person", "emotion", "split")} if collection.is_face(kept) else kept


def _settings_mark(preset: Preset) -> dict[bytes, bytes]:
    return {b"settings": tables.fingerprint(_alignment_settings(preset)).encode()}


def _write(files: list[Path], found: list[dict[str, Any]], preset: Preset, mark: str, looked_at: int) -> None:
    metadata = _settings_mark(preset) | {_LOOKED_AT: str(looked_at).encode()}
    for file, schema, wanted in zip(files, (tables.FACES, tables.REJECTS), (True, False), strict=True):
        rows = sorted((row for row in found if collection.is_face(row) == wanted), key=_key)
        tables.write(file, tables.from_rows(rows, schema).replace_schema_metadata(metadata), mark)


def _mark_of_crashes(mark: str, found: list[dict[str, Any]]) -> str:
    """The mark itself, or one that begins with it and says which photographs crashed."""
    crashed = sorted(_key(row) for row in found if collection.has_crashed(row))
    return f"{mark}-{tables.fingerprint(crashed)}" if crashed else mark


def _known(workspace: Workspace, shard: Shard, preset: Preset) -> tuple[dict[tuple[str, str, str], dict[str, Any]], bool]:
    """Faces and rejects of an earlier run under the same settings, finished or not, by photograph; and whether others crashed there."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in (*_files(workspace, shard, preset), *_files(workspace, shard, preset, _UNFINISHED)):
        if tables.mark_of(file) is not None:
            table = tables.read(file)
            if _settings_mark(preset).items() <= (table.schema.metadata or {}).items():
                found.update({_key(row): row for row in table.to_pylist()})
    kept = {key: row for key, row in found.items() if not collection.has_crashed(row)}
    return kept, len(kept) < len(found)


@dg.asset(partitions_def=partitions.shards, deps=[aligned_faces], kinds={"parquet"}, group_name="faces")
def face_masks(context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource) -> dg.MaterializeResult:
    """One row per aligned face: its facial region at crop size."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    covered = mask_shard(workspace.open, shard, preset)
    sheet = _masked_sheet(workspace.open, shard, preset)
    return dg.MaterializeResult(
        metadata={
            "faces": len(covered),
            "parser": preset.mask,
            **({"mean_share_of_crop": float(np.mean(covered))} if covered else {}),
            **({"contact_sheet": picture(sheet)} if sheet is not None else {}),
        }
    )


def mask_shard(workspace: Workspace, shard: Shard, preset: Preset) -> list[float]:
    """Bring a shard's masks up to date; returns the share of its crop that each covers. Raises NotReady without the parser's weights."""
    file = workspace.file(f"masks-{preset.crop}", shard)
    if not is_masked(workspace, shard, preset):
        faces = tables.read(workspace.file(aligned(preset), shard), ["face_id", "landmarks", "crop"])
        rows = [row for batch in faces.to_batches(max_chunksize=_BATCH) for row in _masks(batch.to_pylist(), preset)]
        tables.write(file, tables.from_rows(rows, tables.MASKS), mask_mark(workspace, shard, preset))
    return [float(unpack(mask, preset.crop).mean()) for mask in tables.read(file)["mask"].to_pylist()]


def _masks(faces: list[dict[str, Any]], preset: Preset) -> list[dict[str, Any]]:
    from diffsfsr.face.images import decode
    from diffsfsr.face.parsing import parser

    found = parser(preset.mask)
    shape = (len(faces), preset.crop, preset.crop, 3)
    crops = np.stack([decode(row["crop"]) for row in faces]) if found.looks else np.broadcast_to(np.uint8(0), shape)
    landmarks = np.array([row["landmarks"] for row in faces], np.float32).reshape(-1, 68, 2)
    masks = found.masks(crops, landmarks)
    return [{"face_id": row["face_id"], "mask": np.packbits(mask).tobytes()} for row, mask in zip(faces, masks, strict=True)]


def unpack(mask: bytes, size: int) -> np.ndarray:
    """A stored mask as (S, S) uint8 of 0 and 1."""
    return np.unpackbits(np.frombuffer(mask, np.uint8))[: size * size].reshape(size, size)


def _masked_sheet(workspace: Workspace, shard: Shard, preset: Preset) -> np.ndarray | None:
    """A shard's first faces, all but the facial region darkened."""
    from diffsfsr.face.images import decode

    crops = tables.read(workspace.file(aligned(preset), shard), ["crop"])["crop"].slice(0, _SHOWN).to_pylist()
    masks = tables.read(workspace.file(f"masks-{preset.crop}", shard), ["mask"])["mask"].slice(0, _SHOWN).to_pylist()
    shown = [decode(crop) * (0.4 + 0.6 * unpack(mask, preset.crop)[..., None]) for crop, mask in zip(crops, masks, strict=True)]
    return _sheet([image.astype(np.uint8) for image in shown])


def _sheet(shown: list[np.ndarray]) -> np.ndarray | None:
    from diffsfsr.face.images import contact_sheet

    return contact_sheet([shown[i : i + 8] for i in range(0, len(shown), 8)]) if shown else None
