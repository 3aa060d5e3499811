"""What is kept of the faces in requests, to tell whether they are still like those that a model learned from: embeddings, no pictures.

served/<name of the portrait>.parquet in the state folder. An embedding of a face is personal data: a file is kept for DAYS at most and
goes earlier with `forget`, and nothing here says who it is.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffsfsr import tables

DAYS = 30
# One row per embedding of a portrait's inputs. `photographs`: sha256 of the files it was computed from.
SERVED = pa.schema(
    [
        *[(name, pa.string()) for name in ("portrait", "model_version", "embedding")],
        *[("made_at", pa.float64()), ("photographs", pa.list_(pa.string())), ("vector", pa.list_(pa.float32()))],
    ]
)


@dataclass(frozen=True)
class Served:
    """The records in a folder, which is made when first written."""

    folder: Path

    def keep(self, portrait: str, model_version: str, vectors: Mapping[str, tuple[np.ndarray, Collection[str]]]) -> None:
        """Record a portrait's inputs: embedding's name -> vector (D,) and the photographs behind it. Again, it is replaced."""
        same = {"portrait": portrait, "model_version": model_version, "made_at": time.time()}
        rows = [
            same | {"embedding": name, "photographs": sorted(files), "vector": np.asarray(vector, np.float32).tolist()}
            for name, (vector, files) in vectors.items()
        ]
        tables.write(self._file(portrait), tables.from_rows(rows, SERVED), tables.fingerprint(portrait, model_version))

    def recent(self, model_version: str, most: int) -> dict[str, np.ndarray]:
        """Embedding's name -> (n, D) of the newest portraits by a version, n at most `most`; a photograph that came twice counts once."""
        found: dict[str, dict[tuple[str, ...], list[float]]] = {}
        for row in sorted(self._rows(), key=lambda row: -row["made_at"]):
            mine = found.setdefault(row["embedding"], {}) if row["model_version"] == model_version else None
            if mine is not None and len(mine) < most:
                mine.setdefault(tuple(row["photographs"]), row["vector"])
        return {name: np.array(list(vectors.values()), np.float32) for name, vectors in found.items()}

    def prune(self) -> None:
        """Erase what is older than DAYS."""
        for file in self.folder.glob("*.parquet"):
            if file.stat().st_mtime < time.time() - DAYS * 86_400:
                file.unlink(missing_ok=True)

    def forget(self, photographs: Collection[str] = (), portrait: str = "") -> int:
        """Erase the records of a portrait, and of all that were made from a photograph (sha256); returns how many."""
        gone = {row["portrait"] for row in self._rows() if row["portrait"] == portrait or set(row["photographs"]) & set(photographs)}
        for name in gone:
            self._file(name).unlink(missing_ok=True)
        return len(gone)

    def _file(self, portrait: str) -> Path:
        return self.folder / f"{portrait}.parquet"

    def _rows(self) -> Iterable[dict]:
        for file in self.folder.glob("*.parquet"):
            try:
                yield from tables.read(file).to_pylist()
            except (OSError, pa.ArrowInvalid):  # erased meanwhile
                continue
