"""Where state lies: one folder, DIFFSFSR_HOME, laid out here and nowhere else.

data/<data set>/            folder.json, sources/ labels/ aligned/ rejects/ masks/ shards/ : Parquet, one file a shard; outputs/ : what
                            methods made of its faces for an evaluation
fetched/<data set>/         photographs brought here by a list of their addresses (diffsfsr.fetch.fetching)
runs/<preset>-<hash>/       training runs (diffsfsr.training.run)
models/<preset>/            which run's network is the preset's autoencoder, DLN, loss decoder or model now, and what it trains on from
reports/                    evaluation reports
forgotten.json              photographs that were forgotten and are not taken in again
portraits/                  finished portraits with their sidecars
catalogue/ mlflow.db mlartifacts/ queue.db dagster/     the stores' own
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady
from diffsfsr.presets import TUNED

SHARD = re.compile(r"(?P<dataset>[\w.-]+)-(?P<number>\d{4})")


@dataclass(frozen=True)
class Shard:
    """One partition: a data set's name and a number."""

    dataset: str
    number: int

    @classmethod
    def of(cls, key: str) -> Shard:
        match = SHARD.fullmatch(key)
        if not match:
            raise InputError(f"{key!r} is not a shard: its form is <data set>-<four digits>")
        return cls(match["dataset"], int(match["number"]))

    @property
    def key(self) -> str:
        return f"{self.dataset}-{self.number:04d}"


@dataclass(frozen=True)
class Start:
    """The model that a preset trains on from: its folder, a hash of its content, and the data set that it learns ("": every one)."""

    folder: Path
    version: str
    dataset: str


@dataclass(frozen=True)
class Workspace:
    home: Path
    catalogue: str = ""  # its address; empty: beside the rest

    # --- data sets and their shards ---

    def dataset(self, name: str) -> Path:
        # Dagster writes ranges of partitions with three dots.
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith(".") or "..." in name:
            raise InputError(f"{name!r} cannot name a data set: letters, digits, '.', '_' and '-' only")
        return self.home / "data" / name

    def fetched(self, name: str) -> Path:
        """Where the photographs of a data set lie that is published as a list of addresses."""
        return self.home / "fetched" / self.dataset(name).name

    def datasets(self) -> list[str]:
        return sorted(p.parent.name for p in (self.home / "data").glob("*/folder.json"))

    def folder_of(self, name: str) -> Path:
        """The folder that a data set's photographs lie in."""
        path = self.dataset(name) / "folder.json"
        if not path.exists():
            known = ", ".join(self.datasets()) or "none yet"
            raise NotReady(f"there is no data set {name!r} (known: {known}); run `diffsfsr run prepare --data DIR`")
        return Path(_entry(path)["folder"])

    def way_of(self, name: str) -> str:
        """How a data set is split: published (the default) or person."""
        path = self.dataset(name) / "folder.json"
        return _entry(path).get("split", "published") if path.exists() else "published"

    def labels(self, name: str) -> dict[tuple[str, str], dict[str, str]]:
        """(path, face) of a photograph -> what the data set says of it besides its person and emotion."""
        files = [file for shard in self.shards(name) if (file := self.file("labels", shard)).exists()]
        rows = [row for file in files for row in tables.read(file).to_pylist()]
        return {(row["path"], row["face"]): dict(row["labels"]) for row in rows}

    def file(self, kind: str, shard: Shard) -> Path:
        """The Parquet file of a shard; `kind` is sources, labels, aligned-<S>, rejects-<S>, masks-<S> or shards-<versions>."""
        return self.dataset(shard.dataset) / kind / f"{shard.number:04d}.parquet"

    def outputs(self, dataset: str) -> Path:
        """Where what methods made of a data set's faces is kept by content; it goes when any of them is forgotten."""
        return self.dataset(dataset) / "outputs"

    def shards(self, dataset: str | None = None) -> list[Shard]:
        names = [dataset] if dataset else self.datasets()
        return [Shard(n, int(p.stem)) for n in names for p in sorted((self.dataset(n) / "sources").glob("????.parquet"))]

    def table(self, kind: str, shards: list[Shard], columns: list[str] | None = None) -> pa.Table:
        """The rows of several shards as one table. Raises NotReady where a shard has not been prepared."""
        files = [self.file(kind, shard) for shard in shards]
        for shard, file in zip(shards, files, strict=True):
            if not file.exists():
                raise NotReady(f"shard {shard.key} has no {kind} yet; run `diffsfsr run prepare` first")
        if not files:
            raise NotReady("no data set has been prepared yet; run `diffsfsr run prepare --data DIR`")
        return pa.concat_tables([tables.read(file, columns).replace_schema_metadata() for file in files])

    def lock(self, name: str) -> AbstractContextManager[Any]:
        """Held by whoever works on `name`, across processes; let go when its holder dies."""
        path = self.home / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    # --- erasure ---

    def forget(self, person: str | None = None, face_id: str | None = None, dataset: str | None = None) -> int:
        """Drop a person, a face or a data set from every table of the data sets; returns how many photographs (or faces of one) went.

        A data set goes as a whole, and may be prepared again. The photographs of a person or a face are remembered by their
        hashes, so that they are not taken in again while they still lie in a folder.
        """
        if dataset is not None:
            folder = self.dataset(dataset)  # refuses a bad name before anything is made
            with self.lock(f"sources-{dataset}"):
                files = [self.file("sources", shard) for shard in self.shards(dataset)]
                count = sum(tables.read(file, ["path"]).num_rows for file in files if tables.mark_of(file))
                there = folder.is_dir()
                shutil.rmtree(folder, ignore_errors=True)
                self._forget_pairs(dataset)
            return max(count, int(there))  # its tables may be damaged, and go all the same
        return sum(self._forget_in(name, person, face_id) for name in self.datasets())

    def _forget_in(self, dataset: str, person: str | None, face_id: str | None) -> int:
        folder = self.dataset(dataset)
        with self.lock(f"sources-{dataset}"):
            for left in folder.glob("*/.*.parquet"):  # by a writer that was killed
                left.unlink(missing_ok=True)
            if damaged := [file for file in folder.glob("*/*.parquet") if not tables.mark_of(file)]:
                raise InputError(
                    f"{damaged[0]} is damaged, and may hold whom you name: run `diffsfsr run prepare`, which makes it anew, first"
                )
            sources = [row for shard in self.shards(dataset) for row in tables.read(self.file("sources", shard)).to_pylist()]
            keys = ["face_id", "path", "face", "person"]
            faces = [row for file in folder.glob("aligned-*/*.parquet") for row in tables.read(file, keys).to_pylist()]
            photographs = {(row["path"], row["face"]) for row in (*faces, *sources) if person is not None and row["person"] == person}
            photographs |= {(row["path"], row["face"]) for row in faces if row["face_id"] == face_id}
            ids = {row["face_id"] for row in faces if (row["path"], row["face"]) in photographs}
            self._remember([row for row in sources if (row["path"], row["face"]) in photographs])
            if photographs:  # before the rows by which a second try would find them
                shutil.rmtree(self.outputs(dataset), ignore_errors=True)
                self._forget_pairs(dataset)
            for file in folder.glob("*/*.parquet"):
                _drop(file, ids, photographs)
        return len(photographs)

    def _forget_pairs(self, dataset: str) -> None:
        """The stored pair lists say whom they are about; those of the faces that are left are drawn again."""
        for file in (self.home / "reports" / "pairs").glob(f"{dataset}-*.parquet"):
            file.unlink(missing_ok=True)

    def _remember(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            with self.lock("forgotten"):
                hashes = self.forgotten() | {(row["sha256"], row["face"]) for row in rows if row["sha256"]}
                tables.write_json(self.home / "forgotten.json", sorted(hashes))

    def forgotten(self) -> set[tuple[str, str]]:
        """(sha256, face) of the photographs that must not be taken in again."""
        path = self.home / "forgotten.json"
        try:
            return {(sha256, face) for sha256, face in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else set()
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}): put back a copy of it; without it photographs that were forgotten are taken in again"
            ) from error

    # --- networks ---

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def set_network(self, kind: str, preset: Preset, folder: Path, version: str) -> None:
        """Make a saved network the preset's current `kind`: autoencoder, dln, decoder or diffusion."""
        tables.write_json(self._network_file(kind, preset), {"folder": str(folder), "version": version})

    def network(self, kind: str, preset: Preset) -> tuple[Path, str] | None:
        """(folder, version) of the preset's current `kind`, or None where there is none."""
        path = self._network_file(kind, preset)
        if not path.exists():
            return None
        entry = _entry(path)
        folder = Path(entry["folder"])
        return (folder, entry["version"]) if folder.is_dir() else None

    def need_network(self, kind: str, preset: Preset) -> tuple[Path, str]:
        found = self.network(kind, preset)
        if found is None:
            what = {"diffusion": "trained model", "decoder": "loss decoder"}.get(kind, kind)
            raise NotReady(f"preset {family(preset)} has no {what} yet; run `diffsfsr run train --preset {family(preset)}`")
        return found

    def set_start(self, preset: Preset, start: Start) -> None:
        """Make a saved model the one that the preset trains on from."""
        tables.write_json(self._network_file("start", preset), {**start.__dict__, "folder": str(start.folder)})

    def start(self, preset: Preset) -> Start | None:
        """What the preset trains on from: None for one that begins anew. Raises NotReady where its model has not been named."""
        if family(preset) not in TUNED:
            return None
        path = self._network_file("start", preset)
        entry = _entry(path) if path.exists() else None
        if entry is None or not Path(entry["folder"]).is_dir():
            name = family(preset)
            raise NotReady(f"preset {name} trains on from a model: run `diffsfsr run train --preset {name} --from starter`")
        return Start(Path(entry["folder"]), entry["version"], entry.get("dataset", ""))

    def learned(self, preset: Preset) -> list[Shard]:
        """The aligned shards that a preset learns from: of every data set, or of the one that a tuning was given."""
        start = self.start(preset)
        found = self.shards((start and start.dataset) or None)
        return [shard for shard in found if self.file(aligned(preset), shard).exists()]

    def _network_file(self, kind: str, preset: Preset) -> Path:
        owner = family(preset) if kind == "diffusion" else preset.experts or family(preset)
        return self.home / "models" / owner / f"{kind}.json"


def sources_mark(rows: list[dict[str, Any]]) -> str:
    """The fingerprint of a shard's photographs: what they are called, hold and show, not when they were written."""
    return tables.fingerprint([{k: v for k, v in row.items() if k not in ("mtime_ns", "size", "labels")} for row in rows])


def _drop(file: Path, ids: set[str], photographs: set[tuple[str, str]]) -> None:
    """Write a table again without some rows, by face where it has faces, by photograph elsewhere. What it is made from is no longer
    what it was, so that all that follows is brought up to date by the next run."""
    table = tables.read(file)
    if "face_id" in table.column_names:
        kept = table.filter(pc.invert(pc.is_in(table["face_id"], pa.array(sorted(ids), pa.string()))))
    else:
        keys = zip(table["path"].to_pylist(), table["face"].to_pylist(), strict=True)
        kept = table.filter(pa.array([key not in photographs for key in keys], pa.bool_()))
    if kept.num_rows < table.num_rows:
        mark = sources_mark(kept.to_pylist()) if file.parent.name == "sources" else tables.fingerprint(tables.mark_of(file), sorted(ids))
        tables.write(file, kept, mark)


def _entry(path: Path) -> dict[str, str]:
    """A small record that names a folder. Raises InputError, naming the file, where it is not one."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return {**entry, "folder": str(entry["folder"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is broken ({type(error).__name__}): remove it and run the command that made it again") from error


def family(preset: Preset) -> str:
    """The preset whose networks go together: 'lab' for lab, ae-lab, dln-lab and decoder-lab."""
    return re.sub(r"^(ae|dln|decoder)-", "", preset.name)


def aligned(preset: Preset) -> str:
    """The kind of a preset's aligned faces: crops of different sides do not mix."""
    return f"aligned-{preset.crop}"


def training_shards(crop: int, identity: tuple[str, ...], autoencoder: str, dln: str) -> str:
    """The kind of training shards with those embeddings; another autoencoder or DLN makes other shards."""
    return f"shards-{crop}-{tables.fingerprint(identity, autoencoder, dln)[:8]}"
