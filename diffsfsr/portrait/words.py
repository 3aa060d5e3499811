"""Which expression embedding stands for an emotion word, among the labelled faces at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffsfsr import tables
from diffsfsr.emotions import choose_reference, resolve
from diffsfsr.errors import InputError

# (word, seed) -> the (16,) embedding that stands for it, and how it was found.
Reference = Callable[[str, int], tuple[np.ndarray, dict[str, Any]]]
# label -> ids of its faces, sorted, and their embeddings (n, 16)
FacesOf = Callable[[str], tuple[list[str], np.ndarray]]

# One row per labelled face, sorted by face_id: what a word is looked up in where there is no catalogue.
WORDS = pa.schema([("face_id", pa.string()), ("emotion", pa.string()), ("expression", pa.list_(pa.float32(), 16))])


def reference(word: str, seed: int, labels: Mapping[str, int], faces_of: FacesOf) -> tuple[np.ndarray, dict[str, Any]]:
    """One face's embedding for a word, by the labels that serve it. Raises as `emotions.resolve` does."""
    resolution = resolve(word, {label: count for label, count in labels.items() if label})
    found = [faces_of(label) for label in resolution.labels]
    ids, vectors = [i for part, _ in found for i in part], np.concatenate([v for _, v in found])
    chosen = choose_reference(vectors, seed=seed)
    facts = {"word": word, "labels": list(resolution.labels), "how": resolution.how, "reference": ids[chosen], "among": len(ids)}
    return vectors[chosen], facts


class WordTable:
    """A file of WORDS. Its embeddings are of the one DLN that it lies beside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _rows(self) -> dict[str, tuple[list[str], np.ndarray]]:
        try:
            rows = tables.read(self.path).sort_by("face_id").to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{self.path} is not a table of labelled expressions: register the model again") from error
        by_label: dict[str, tuple[list[str], list[list[float]]]] = {}
        for row in rows:
            ids, vectors = by_label.setdefault(row["emotion"], ([], []))
            ids.append(row["face_id"])
            vectors.append(row["expression"])
        return {label: (ids, np.array(vectors, np.float32)) for label, (ids, vectors) in by_label.items()}

    def reference(self, word: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """As `reference` above, over this file."""
        return reference(word, seed, {label: len(ids) for label, (ids, _) in self._rows.items()}, self._rows.__getitem__)
