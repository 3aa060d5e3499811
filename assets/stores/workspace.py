"""Where state lies: one folder, DIFFSFSR_HOME, laid out here and nowhere else.

    data/<data set>/            folder.json, sources/ aligned/ rejects/ masks/ shards/ : Parquet, one file a shard
    runs/<preset>-<hash>/       training runs (diffsfsr.training.run)
    models/<preset>/            which run's network is the preset's autoencoder, DLN or model now
    reports/                    evaluation reports
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
class Workspace:
    home: Path

    # --- data sets and their shards ---

    def dataset(self, name: str) -> Path:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise InputError(f"{name!r} cannot name a data set: letters, digits, '.', '_' and '-' only")
        return self.home / "data" / name

    def datasets(self) -> list[str]:
        return sorted(p.parent.name for p in (self.home / "data").glob("*/folder.json"))

    def folder_of(self, name: str) -> Path:
        """The folder that a data set's photographs lie in."""
        path = self.dataset(name) / "folder.json"
        if not path.exists():
            known = ", ".join(self.datasets()) or "none yet"
            raise NotReady(f"there is no data set {name!r} (known: {known}); run `diffsfsr run prepare --data DIR`")
        return Path(json.loads(path.read_text(encoding="utf-8"))["folder"])

    def file(self, kind: str, shard: Shard) -> Path:
        """The Parquet file of a shard; `kind` is sources, aligned-<S>, rejects-<S>, masks-<S> or shards-<versions>."""
        return self.dataset(shard.dataset) / kind / f"{shard.number:04d}.parquet"

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

    def forget(self, person: str | None = None, face_id: str | None = None, dataset: str | None = None) -> int:
        """Drop the rows of a person, a face or a data set from every table of the data sets; returns how many went.

        A table without its rows keeps its fingerprint, so that preparing the same photographs again does not bring them back
        unless they change; a data set that is forgotten goes as a whole.
        """
        if dataset is not None:
            folder, count = self.dataset(dataset), 0
            if folder.is_dir():
                count = sum(tables.read(file).num_rows for file in folder.glob("aligned-*/*.parquet"))
                shutil.rmtree(folder)
            return count
        faces = [f for f in (self.home / "data").glob("*/aligned-*/*.parquet")]
        keep = ["face_id", "person", "path"]
        found = [row for f in faces for row in tables.read(f, keep).to_pylist() if row["face_id"] == face_id or row["person"] == person is not None]
        gone = {name: {row[name] for row in found} for name in ("face_id", "path")}
        for file in (self.home / "data").glob("*/*/*.parquet"):
            table = tables.read(file)
            name = next(n for n in ("face_id", "path") if n in table.column_names)
            kept = table.filter(pc.invert(pc.is_in(table[name], pa.array(sorted(gone[name]), pa.string()))))
            if kept.num_rows < table.num_rows:
                tables.write(file, kept, tables.mark_of(file) or "")
        return len({row["face_id"] for row in found})

    # --- networks ---

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def set_network(self, kind: str, preset: Preset, folder: Path, version: str) -> None:
        """Make a saved network the preset's current `kind`: autoencoder, dln or diffusion."""
        tables.write_json(self.home / "models" / family(preset) / f"{kind}.json", {"folder": str(folder), "version": version})

    def network(self, kind: str, preset: Preset) -> tuple[Path, str] | None:
        """(folder, version) of the preset's current `kind`, or None where there is none."""
        path = self.home / "models" / family(preset) / f"{kind}.json"
        if not path.exists():
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        folder = Path(entry["folder"])
        return (folder, entry["version"]) if folder.is_dir() else None

    def need_network(self, kind: str, preset: Preset) -> tuple[Path, str]:
        found = self.network(kind, preset)
        if found is None:
            raise NotReady(f"preset {family(preset)} has no {kind} yet; run `diffsfsr run train --preset {family(preset)}`")
        return found


def family(preset: Preset) -> str:
    """The preset whose networks go together: 'lab' for lab, ae-lab and dln-lab."""
    return re.sub(r"^(ae|dln)-", "", preset.name)


def aligned(preset: Preset) -> str:
    """The kind of a preset's aligned faces: crops of different sides do not mix."""
    return f"aligned-{preset.crop}"


def training_shards(preset: Preset, autoencoder: str, dln: str) -> str:
    """The kind of a preset's training shards; another autoencoder or DLN makes other shards."""
    return f"shards-{preset.crop}-{tables.fingerprint(preset.conditioning.identity, autoencoder, dln)[:8]}"
