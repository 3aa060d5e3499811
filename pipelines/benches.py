"""Pairs of calls that do the same work, ours and a peer's; and those that `diffsfsr bench catalogue` measures.

Inputs are seeded and synthetic, or photographs that the packages ship; networks that training would make are new ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr.config import Preset

CATALOGUE_ROWS = 20_000


@dataclass(frozen=True)
class Pair:
    """Two calls to time against each other.

    `difference` runs both once, untimed, and says by how much their results differ: above `tolerance` they did not do the
    same work. `items` and `peer_items` are what one call finishes; a peer that takes one item at a time is timed on a few.
    """

    name: str
    batch: int
    ours: Callable[[], Any]
    peer_name: str
    peer: Callable[[], Any]
    difference: Callable[[], float]
    tolerance: float
    items: int = 1
    peer_items: int = 1
    flop: float = 0.0  # of one item of ours; with it, peaks of memory and where the time goes are measured too


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def here(name: str) -> bool:
    """Whether every file behind the name of an encoder or detector is on this machine."""
    from diffsfsr import weights

    return all(weights.find(file) for file in weights.files_of(name) or (name,))


def faces() -> tuple[np.ndarray, Tensor, Tensor]:
    """insightface's photograph of six people, their crops (6, 3, 256, 256) in [-1, 1] and landmarks (6, 68, 2) in them."""
    from importlib.util import find_spec

    from diffsfsr.errors import NotReady
    from diffsfsr.face.alignment import align_all
    from diffsfsr.face.images import read, to_tensor

    spec = find_spec("insightface")
    files = [Path(folder, "data", "images", "t1.jpg") for folder in (spec.submodule_search_locations or [])] if spec else []
    path = next((f for f in files if f.exists()), None)
    if path is None:
        raise NotReady("this bench needs data/images/t1.jpg of the package insightface; pip install -c constraints.txt insightface")
    group = read(path)
    found = align_all(group, 256)
    crops = to_tensor(np.stack([face.crop for face in found]))
    return group, crops, torch.from_numpy(np.stack([face.crop_landmarks for face in found]))


# --- catalogue --------------------------------------------------------------------------------------------------------


def catalogue(preset: Preset) -> Iterator[Pair]:
    """Writing faces, drawing one by word and finding the nearest, over a synthetic catalogue in a temporary folder."""
    from assets.stores.catalogue import Catalogue

    rows, vectors = synthetic_faces(CATALOGUE_ROWS, preset.dln.dim)
    with tempfile.TemporaryDirectory() as folder:
        yield _writing(rows, Path(folder))
        made = Catalogue(f"{folder}/catalogue")
        made.upsert_faces(rows)
        made.index()
        yield _drawing(made, rows)
        yield _searching(made, rows, vectors)


def synthetic_faces(count: int, dim: int) -> tuple[Any, np.ndarray]:
    """(a table of faces with the columns that a prepared shard fills, their expressions (count, dim) float32 of unit length)."""
    import pyarrow as pa

    from diffsfsr.emotions import TREE

    rng = np.random.default_rng(0)
    words = np.array(sorted({word for clusters in TREE.values() for listed in clusters.values() for word in listed}))
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {
        "face_id": [f"bench/{i:016x}/0" for i in range(count)],
        "dataset": ["bench"] * count,
        "split": np.where(rng.random(count) < 0.1, "test", "train"),
        "person": [f"person {i // 4}" for i in range(count)],
        "emotion": words[rng.integers(len(words), size=count)],
        "path": [f"person {i // 4}/{i}.jpg" for i in range(count)],
        "expression": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
        "expression_version": ["bench"] * count,
    }
    return pa.table(columns), vectors


def _writing(rows: Any, folder: Path) -> Pair:
    import lancedb

    from assets.stores.catalogue import Catalogue

    def ours() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Catalogue(fresh)
            made.upsert_faces(rows)
            return made.counts()["faces"]

    def peer() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            return lancedb.connect(fresh).create_table("faces", rows).count_rows()

    return Pair("upsert", len(rows), ours, "LanceDB's create, no keys", peer, lambda: largest(ours(), peer()), 0.0, len(rows), len(rows))


def _drawing(made: Any, rows: Any) -> Pair:
    """A random face of a word, against fetching the ids of the word and choosing one."""
    import lancedb
    import pyarrow.compute as pc

    table, rng = lancedb.connect(made.uri).open_table("faces"), np.random.default_rng(0)
    words = sorted(made.labels())

    def peer(word: str | None = None) -> Any:
        word = word or words[rng.integers(len(words))]
        ids = table.to_lance().to_table(columns=["face_id", "emotion"])
        ids = ids.filter(pc.equal(ids["emotion"], word))["face_id"]
        return ids[int(rng.integers(len(ids)))].as_py(), ids

    def ours() -> Any:
        return made.random_face(words[rng.integers(len(words))], rng)

    def strays() -> float:
        drawn = [ours() for _ in range(20)]
        return float(sum(row["face_id"] not in peer(row["emotion"])[1].to_pylist() for row in drawn))

    return Pair("random face of a word", len(rows), ours, "the word's ids by a pyarrow filter", peer, strays, 0.0)


def _searching(made: Any, rows: Any, vectors: np.ndarray, k: int = 10) -> Pair:
    """The k nearest faces to a random expression, against numpy on vectors that lie in memory already."""
    rng, ids = np.random.default_rng(0), np.array(rows["face_id"])

    def ours(query: np.ndarray | None = None) -> Any:
        return made.nearest(_unit(rng, vectors.shape[1]) if query is None else query, k)

    def peer(query: np.ndarray | None = None) -> Any:
        query = _unit(rng, vectors.shape[1]) if query is None else query
        squared = np.square(vectors - query).sum(1)
        nearest = np.argpartition(squared, k)[:k]
        nearest = nearest[np.argsort(squared[nearest])]
        return ids[nearest], np.sqrt(squared[nearest])

    def difference() -> float:
        queries = [_unit(rng, vectors.shape[1]) for _ in range(5)]
        pairs = [(ours(q), peer(q)) for q in queries]
        same = all(set(a["face_id"].to_pylist()) == set(b[0]) for a, b in pairs)
        return max(largest(a["distance"], b[1]) for a, b in pairs) if same else float("inf")

    return Pair(f"nearest {k}", len(rows), ours, "numpy, brute force in memory", peer, difference, 1e-4)


def _unit(rng: np.random.Generator, dim: int) -> np.ndarray:
    vector = rng.standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)
