"""The photographs of a data set that evaluations draw on, and the pair lists drawn from them: the same for every model and method."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets import unseen
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady

if TYPE_CHECKING:
    from diffsfsr.evaluation.items import Faces, PairList

FEWEST = 3  # people: a triplet of task `all` is of three
MOST = 500  # labelled faces of one label
_AT_ONCE = 32  # crops in memory while they are copied
_FACES = ["face_id", "path", "face", "person", "emotion", "split", "landmarks"]


class Crops(Sequence[np.ndarray]):
    """(S, S, 3) uint8 crops, decoded when asked for, from a file mapped into memory that has no name: it goes when the process goes,
    so that what is forgotten leaves no copy behind."""

    def __init__(self, pngs: Iterator[pa.Table], folder: Path) -> None:
        schema = pa.schema([("crop", pa.binary())])
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".crops-") as file:
            with pa.ipc.new_file(file, schema) as copy:
                for part in pngs:
                    copy.write_table(part.select(["crop"]).cast(schema))
            file.flush()
            self._pngs = pa.ipc.open_file(pa.memory_map(file.name)).read_all()["crop"]

    def __len__(self) -> int:
        return len(self._pngs)

    def __getitem__(self, i: Any) -> Any:
        from diffsfsr.face.images import decode

        return [self[k] for k in range(*i.indices(len(self)))] if isinstance(i, slice) else decode(self._pngs[int(i)].as_py())


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A data set's faces to evaluate on: those of people held out from training, or all where too few are."""

    dataset: str
    faces: Faces
    everybody: bool  # training people too
    told: str  # for a report: who they are, and how many were left out and why


def held_out(workspace: Workspace, dataset: str, preset: Preset) -> HeldOut:
    """Raises NotReady where no face of the data set is prepared."""
    return _held_out(workspace, dataset, preset, state(workspace, dataset, preset))


def state(workspace: Workspace, dataset: str, preset: Preset) -> str:
    """What the faces of a data set were made from: another state, other faces."""
    files = [workspace.file(kind, shard) for shard in ready(workspace, dataset, preset) for kind in (aligned(preset), "labels")]
    left_out = sorted(unseen.suspicion(workspace, preset).of(dataset))
    return tables.fingerprint([mark for file in files if (mark := tables.mark_of(file))], left_out)


def ready(workspace: Workspace, dataset: str, preset: Preset) -> list[Shard]:
    """The shards of a data set that have faces of the preset's size."""
    found = [s for s in workspace.shards(dataset) if workspace.file(aligned(preset), s).exists()]
    if not found:
        raise NotReady(f"data set {dataset!r} has no aligned faces of {preset.crop} pixels; run `diffsfsr run prepare --data DIR`")
    return found


@lru_cache(maxsize=1)
def _held_out(workspace: Workspace, dataset: str, preset: Preset, state: str) -> HeldOut:
    table = workspace.table(aligned(preset), ready(workspace, dataset, preset), _FACES)
    kept, everybody, told = _chosen(table, unseen.suspicion(workspace, preset), dataset)
    return HeldOut(dataset, _faces(workspace, dataset, preset, table, kept), everybody, told)


def labelled(workspace: Workspace, dataset: str, preset: Preset) -> Faces:
    """The faces of a data set that have an emotion label, training people too, at most MOST of a label, evenly spaced: for a judge that has
    learned from none of them. Raises NotReady where no face of the data set is prepared."""
    table = workspace.table(aligned(preset), ready(workspace, dataset, preset), _FACES)
    emotions = np.array([said.get("emotion", "") for said in _labels(workspace, dataset, table)], np.str_)
    kept = np.zeros(len(table), bool)
    for label in np.unique(emotions[emotions != ""]):
        own = np.flatnonzero(emotions == label)
        kept[own[np.linspace(0, len(own) - 1, min(MOST, len(own))).astype(np.int64)]] = True
    return _faces(workspace, dataset, preset, table, kept)


def _faces(workspace: Workspace, dataset: str, preset: Preset, table: pa.Table, kept: np.ndarray) -> Faces:
    """Those rows of a data set's aligned faces."""
    from diffsfsr.evaluation.items import Faces

    files = [workspace.file(aligned(preset), shard) for shard in ready(workspace, dataset, preset)]
    crops = Crops(_kept(files, kept), workspace.home / "reports")
    table = table.filter(pa.array(kept))
    landmarks = np.array(table["landmarks"].to_pylist(), np.float32).reshape(-1, 68, 2)
    return Faces(table["face_id"].to_pylist(), table["person"].to_pylist(), crops, landmarks, _labels(workspace, dataset, table))


def _labels(workspace: Workspace, dataset: str, table: pa.Table) -> list[dict[str, str]]:
    """What is said of each face."""
    said, rows = workspace.labels(dataset), table.select(["path", "face", "emotion"]).to_pylist()
    return [({"emotion": row["emotion"]} if row["emotion"] else {}) | said.get((row["path"], row["face"]), {}) for row in rows]


def _chosen(table: pa.Table, suspicion: unseen.Suspicion, dataset: str) -> tuple[np.ndarray, bool, str]:
    """(n,) bool, whether training people are among them, and who they are in words."""
    people = np.array([row["person"] or row["face_id"] for row in table.select(["person", "face_id"]).to_pylist()], np.str_)
    held = np.array(table["split"].to_pylist(), np.str_) == "test"
    seen = np.isin(np.array(table["face_id"].to_pylist(), np.str_), sorted(suspicion.of(dataset)))
    if len(np.unique(people[held])) < FEWEST:
        return np.ones(len(table), bool), True, f"ALL, training people too: fewer than {FEWEST} are held out"
    if len(np.unique(people[held & ~seen])) < FEWEST:
        return held, False, f"held out from training, though training may have seen some: without them fewer than {FEWEST} are left"
    return held & ~seen, False, f"held out from training; {int((held & seen).sum())} of {int(held.sum())} faces left out: {suspicion.told}"


def _kept(files: list[Path], kept: np.ndarray) -> Iterator[pa.Table]:
    """The crops of those faces, a few at a time."""
    at = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(_AT_ONCE, columns=["crop"]):
            yield pa.table(batch).filter(pa.array(kept[at : at + len(batch)]))
            at += len(batch)


def pair_list(workspace: Workspace, held: HeldOut, task: str, preset: Preset) -> PairList:
    """A task's pair list, drawn once and stored; whoever asks for the same items of the same faces finds it again."""
    from diffsfsr.evaluation.items import make_pairs, read_pairs, write_pairs

    e, faces = preset.evaluation, held.faces
    file = (
        workspace.home
        / "reports"
        / "pairs"
        / f"{held.dataset}-{task}-{tables.fingerprint(sorted(faces.ids), e.items, e.seed)[:10]}.parquet"
    )
    try:
        if (pairs := read_pairs(file, faces)).task == task:
            return pairs
    except InputError:  # none yet, or one that was damaged
        pass
    pairs = make_pairs(faces, [""] * len(faces.ids), task, e.items, e.seed, use=None)  # the faces and the seed make the same again
    write_pairs(file, pairs, faces)
    return pairs
