"""Which expression embedding stands for an emotion word, among the labelled faces at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from diffsfsr import tables
from diffsfsr.emotions import at_hand, choose_reference, resolve, word_of
from diffsfsr.errors import InputError
from diffsfsr.face.gestures import GESTURES

# label -> ids of its faces, sorted, and their embeddings (n, 16)
FacesOf = Callable[[str], tuple[list[str], np.ndarray]]

# One row per labelled face, sorted by face_id: what a word is looked up in where there is no catalogue.
WORDS = pa.schema([("face_id", pa.string()), ("emotion", pa.string()), ("expression", pa.list_(pa.float32(), 16))])
WORD_TABLE = "words.parquet"  # what a file of them is called, in a model's folder or beside it

_MOST = 32  # faces of a label that are kept as examples of it: a reference is one of the eight nearest to their mean
_VALENCE = {"Love": 1, "Joy": 1, "Anger": -1, "Sadness": -1, "Fear": -1}  # of the families (Shaver et al. 1987)
# What a face does in a feeling that is neither (Ekman, Friesen & Hager 2002: action units 1, 2, 5 and 26), as landmarks tell it.
_PROTOTYPE = {"Surprise": ("open", "brow_left", "brow_right", "eye_left", "eye_right")}
_LEAST = 0.005  # share of the labelled faces below which a label is too weak to be one: on LFW those with a dozen faces


class Found(NamedTuple):
    """What stands for a word: an expression embedding (16,), how it was found, and what it is led away from (16,), where it is."""

    vector: np.ndarray
    facts: dict[str, Any]
    negative: np.ndarray | None


Reference = Callable[[str, int], Found]  # of (word, seed)


class Vocabulary(NamedTuple):
    """What a model's words are looked up in: label -> number of its faces, and those faces."""

    labels: Mapping[str, int]
    faces_of: FacesOf


def vocabulary(own: WordTable | None, here: Vocabulary | None) -> Vocabulary:
    """The labelled faces here, and for labels of which they are too few those that the model brings, where it does."""
    brought, here = own.labels if own else {}, here or Vocabulary({}, lambda label: ([], np.zeros((0, 16), np.float32)))
    serving = at_hand(here.labels, brought)

    def faces_of(label: str) -> tuple[list[str], np.ndarray]:
        return own.faces(label) if own and label not in serving else here.faces_of(label)

    return Vocabulary(brought | serving, faces_of)


def reference(word: str, seed: int, labels: Mapping[str, int], faces_of: FacesOf) -> Found:
    """One face's embedding for a word, by the labels that serve it. Raises as `emotions.resolve` does.

    A feeling that shows little, as sadness, whose faces look more like no expression than half of the way to the contrary feeling,
    is led away from that one.
    """
    resolution = resolve(word, {label: count for label, count in labels.items() if label})
    found = [faces_of(label) for label in resolution.labels]
    ids, vectors = [i for part, _ in found for i in part], np.concatenate([v for _, v in found])
    chosen = choose_reference(vectors, seed=seed)
    facts = {"word": word, "labels": list(resolution.labels), "how": resolution.how, "reference": ids[chosen], "among": len(ids)}
    away, negative = _contrary(word, resolution.labels, labels, faces_of)
    return Found(vectors[chosen], facts | {"away_from": away}, negative)


def _contrary(word: str, own: Sequence[str], labels: Mapping[str, int], faces_of: FacesOf) -> tuple[list[str], np.ndarray | None]:
    """The labels that a word is led away from, and what lies between them (16,); ([], None) where it is not."""
    contrary = [label for label in sorted(labels) if label and _valence(label) * _valence(word) < 0]
    neutral = [label for label in sorted(labels) if (found := word_of(label)) and not found.primary]
    if not contrary or not neutral:
        return [], None
    shown, none, away = (_between(part, faces_of) for part in (own, neutral, contrary))
    to_none, to_away = np.arccos(np.clip([shown @ none, shown @ away], -1, 1))
    return (contrary, away) if to_none < to_away / 2 else ([], None)


def _between(labels: Sequence[str], faces_of: FacesOf) -> np.ndarray:
    """(16,), unit length: between the means of the labels, whatever the number of their faces."""
    mean = np.mean([faces_of(label)[1].mean(0) for label in labels], axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def examples(labels: Sequence[str], vectors: np.ndarray, done: np.ndarray) -> pa.Table:
    """WORDS of the faces that look most like their own label, to be given away: face ids are running numbers, in an order that tells
    nothing of the data set.

    A label's examples are the _MOST faces that show it most plainly, for labels are noisy (of LFW's angry faces many smile). Of a pleasant
    or unpleasant feeling: those nearest to their mean drawn as far again from the mean of the labels of contrary feelings. Of surprise:
    those that do most of what surprise does to a face (_PROTOTYPE). Of no feeling, or where no contrary is labelled: those nearest to their
    mean. Of a label that has no contrary only those faces count that are nearer to its mean than to any other label's. A label with fewer
    than _LEAST of the faces is left out, unless its family of words has no other: better a few frightened faces than none.

    Args:
        labels: a label a face, "" where it has none.
        vectors: (n, 16), unit length.
        done: (n, 9), `face.gestures.gestures` of their landmarks.
    """
    named = np.array(labels, dtype=object)
    strong = _strong({label: int((named == label).sum()) for label in sorted(set(labels) - {""})})
    means = np.array([vectors[named == label].mean(0) for label in strong]).reshape(len(strong), vectors.shape[1])
    away = np.linalg.norm(vectors[:, None] - means[None], axis=2)
    rows: list[dict[str, Any]] = []
    for column, label in enumerate(strong):
        contrary = [k for k, other in enumerate(strong) if _valence(other) * _valence(label) < 0]
        own = np.flatnonzero((named == label) & (bool(contrary) | (away.argmin(1) == column)))
        if not len(own):
            continue
        if prototype := _PROTOTYPE.get(_family(label)):
            amiss = -done[own][:, [GESTURES.index(name) for name in prototype]].sum(1)
        else:
            plain = vectors[own].mean(0)
            if contrary:
                plain = 2 * plain - means[contrary].mean(0)
            amiss = np.linalg.norm(vectors[own] - plain / np.linalg.norm(plain), axis=1)
        rows += [{"emotion": label, "expression": vectors[i]} for i in own[np.argsort(amiss, kind="stable")][:_MOST]]
    return tables.from_rows(({"face_id": f"{number:05d}"} | row for number, row in enumerate(rows)), WORDS)


def _valence(label: str) -> int:
    """Whether a label's family of words is pleasant, 1, unpleasant, -1, or neither, 0: the first division of the tree."""
    return _VALENCE.get(_family(label), 0)


def _family(label: str) -> str:
    """The label's family of words, "" for no feeling; a label that is no word of the tree is its own."""
    return word.primary if (word := word_of(label)) else label


def _strong(counts: Mapping[str, int]) -> list[str]:
    """The labels with enough faces, and those of families that have none with enough."""
    families = {label: _family(label) for label in counts}
    enough = {label for label, count in counts.items() if count >= _LEAST * sum(counts.values())}
    served = {families[label] for label in enough}
    return [label for label in counts if label in enough or families[label] not in served]


def beside(model: Path) -> WordTable | None:
    """The words that belong to a model: in its folder (one that is shipped, or was trained on from one), or next to it (a registered
    one)."""
    found = [path for path in (model / WORD_TABLE, model.parent / WORD_TABLE) if path.is_file()]
    return WordTable(found[0]) if found else None


class WordTable:
    """A file of WORDS. Its embeddings are of the one DLN that it lies beside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _rows(self) -> dict[str, tuple[list[str], np.ndarray]]:
        try:
            rows = tables.read(self.path).sort_by("face_id").to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            do = "put the model's folder there again, or register the model again"
            raise InputError(f"{self.path} is not a table of labelled expressions: {do}") from error
        by_label: dict[str, tuple[list[str], list[list[float]]]] = {}
        for row in rows:
            ids, vectors = by_label.setdefault(row["emotion"], ([], []))
            ids.append(row["face_id"])
            vectors.append(row["expression"])
        return {label: (ids, np.array(vectors, np.float32)) for label, (ids, vectors) in by_label.items()}

    @property
    def labels(self) -> dict[str, int]:
        """Label -> number of its faces."""
        return {label: len(ids) for label, (ids, _) in self._rows.items()}

    def faces(self, label: str) -> tuple[list[str], np.ndarray]:
        """Ids of a label's faces, sorted, and their embeddings (n, 16)."""
        return self._rows[label]

    def reference(self, word: str, seed: int) -> Found:
        """As `reference` above, over this file."""
        return reference(word, seed, self.labels, self.faces)
