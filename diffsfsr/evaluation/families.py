"""Whether what a model makes for a word looks like it, to a classifier of expressions that neither conditions nor trains: how often it
names the word's family, beside how often it does so of photographs that people have labelled, for no classifier names all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffsfsr import tables
from diffsfsr.emotions import NEUTRAL, WORDS, lookup, resolve, word_of
from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation.generation import Ours
from diffsfsr.evaluation.items import Faces, Item, Picture, item_seed, make_items_beside, pair_list
from diffsfsr.evaluation.judges import embed
from diffsfsr.evaluation.methods import face_in_place
from diffsfsr.evaluation.outputs import Outputs
from diffsfsr.evaluation.protocols import FindFaces
from diffsfsr.portrait.words import Found, Vocabulary, reference

ASKED = ("joy", "surprise", "anger", "sadness", NEUTRAL)  # a word a family; fear is a word that data sets have too few faces of
KINDS = ("output", "photograph", "reference")  # what the model made; labelled photographs; those whose embeddings stood for the word
# One row per picture that was classified; null where a value has no meaning.
ROWS = pa.schema(
    [
        *[(name, pa.string()) for name in ("word", "kind", "scene", "identity", "face", "named")],  # face: the photograph, or the reference
        *[("item", pa.int64()), ("seed", pa.int64()), ("found", pa.bool_()), ("hit", pa.bool_()), ("probability", pa.float64())],
    ]
)
Row = dict[str, Any]
Photograph = Callable[[str], tuple[Picture, np.ndarray] | None]  # face id -> crop (S, S, 3) and landmarks (68, 2), where they are at hand


def resolutions(labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """How each of the 135 words and NEUTRAL resolves: word, secondary, primary, how ("" where it is refused), labels, faces."""
    return [lookup(word)._asdict() | _resolution(word, labels) for word in (*WORDS, NEUTRAL)]


def _resolution(word: str, labels: Mapping[str, int]) -> dict[str, Any]:
    try:
        found = resolve(word, labels)
    except (InputError, NotReady):
        return {"how": "", "labels": [], "faces": 0}
    return {"how": found.how, "labels": list(found.labels), "faces": sum(labels[label] for label in found.labels)}


def family(label: str) -> str:
    """The family of the tree that a label or a word belongs to; NEUTRAL is its own; "" for what is no word."""
    place = word_of(label)
    return (place.primary or NEUTRAL) if place else ""


# --- what is made -------------------------------------------------------------------------------------------------------


class ByWord:
    """Our model, told the expression by a word: `found` is what stands for it, by the seed of an item, chosen among the faces `among`."""

    def __init__(self, ours: Ours, word: str, found: Mapping[int, Found], among: Sequence[str]) -> None:
        self.ours, self.found, self.name = ours, found, f"{ours.name}, {word}"
        led = ours.studio.preset.sampling.negative
        self.negative = next(iter(found.values())).negative if led else None  # one for all items
        self.version = tables.fingerprint(ours.version, word, list(among), None if self.negative is None else self.negative.tolist())

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        wanted = self._told([self.found[seed].vector for seed in seeds])
        return self.ours.painted(items, wanted, seeds, None if self.negative is None else self._told([self.negative] * len(seeds)))

    def _told(self, vectors: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.float32(np.stack(vectors))).to(self.ours.studio.device)


@dataclass(frozen=True, eq=False)
class Asked:
    """One word: which face stands for it in each item (`chosen`: portrait.words.reference's facts), and what the model made of them."""

    word: str
    chosen: Sequence[Mapping[str, Any]]
    outputs: Outputs = field(repr=False)


def ask(ours: Ours, vocabulary: Vocabulary, n: int, seed: int, folder: Path | None) -> list[Asked]:
    """The words of ASKED that the vocabulary serves, each with n items: the same scenes, people and noise for every word. Scene, identity
    and reference are three people, as far as the faces are known here.

    Nothing is made yet. Raises NotReady where the vocabulary has no face.
    """
    seeds = [item_seed(seed, i) for i in range(n)]
    served = [word for word in ASKED if _resolution(word, vocabulary.labels)["how"]]
    if not served:
        raise NotReady("no face that this model knows has a label of these words; prepare photographs with labels (labels.csv)")
    found = {word: [reference(word, each, *vocabulary) for each in seeds] for word in served}
    items = make_items_beside(ours.faces, [[found[word][i].facts["reference"] for word in served] for i in range(n)], seed)
    pairs = pair_list(ours.faces, "identity", items, seeds)
    asked = []
    for word, references in found.items():
        among = [face for label in references[0].facts["labels"] for face in vocabulary.faces_of(label)[0]]
        method = ByWord(ours, word, dict(zip(seeds, references, strict=True)), among)
        asked.append(Asked(word, [one.facts for one in references], Outputs(folder, method, pairs, ours.faces)))
    return asked


# --- what is named ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Classifier:
    """A judge that gives a probability a label, and how a face is found in what was made."""

    judge: Any  # (images, landmarks) -> (B, L), with `labels`
    find_faces: FindFaces

    def rows(self, word: str, kind: str, crops: Sequence[Picture], landmarks: Sequence[np.ndarray]) -> list[Row]:
        """A row a face: the label it is taken for, whether that is of the word's family, and how probable the family is."""
        if not crops:
            return []
        inside = np.array([family(label) == family(word) for label in self.judge.labels])
        probabilities = embed(self.judge, np.stack(crops), np.stack(landmarks))
        best = probabilities.argmax(axis=1)
        return [
            {
                "word": word,
                "kind": kind,
                "found": True,
                "named": self.judge.labels[k],
                "hit": bool(inside[k]),
                "probability": float(row[inside].sum()),
            }
            for k, row in zip(best, probabilities, strict=True)
        ]

    def outputs(self, asked: Asked, batch: int, progress: Callable[[int, int], object] | None = None) -> list[Row]:
        """Every item of a word; one in which no face is found in its place is no hit."""
        pairs, faces, rows = asked.outputs.pairs, asked.outputs.faces, list[Row]()
        for places, pictures in asked.outputs.batches(batch):
            scenes = [faces.landmarks[pairs.items[i].scene] for i in places]
            marks = [None if p is None else face_in_place(self.find_faces(p, len(p)), own) for p, own in zip(pictures, scenes, strict=True)]
            there = [(p, m) for p, m in zip(pictures, marks, strict=True) if p is not None and m is not None]
            seen = iter(self.rows(asked.word, "output", [p for p, _ in there], [m for _, m in there]))
            lost = {"word": asked.word, "kind": "output", "found": False, "named": "", "hit": False, "probability": None}
            for i, mark in zip(places, marks, strict=True):
                item = pairs.items[i]
                who = {"scene": faces.ids[item.scene], "identity": faces.ids[item.identity], "face": asked.chosen[i]["reference"]}
                rows.append((lost if mark is None else next(seen)) | who | {"item": i, "seed": pairs.seeds[i]})
            if progress:
                progress(places[-1] + 1, len(asked.outputs))
        return rows

    def photographs(self, asked: Asked, faces: Faces, batch: int) -> Iterator[Row]:
        """Every photograph among `faces` with a label that serves the word."""
        labels = asked.chosen[0]["labels"]
        places = [i for i in range(len(faces.ids)) if faces.label(i, "emotion") in labels]
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            rows = self.rows(asked.word, "photograph", [faces.crops[i] for i in part], [faces.landmarks[i] for i in part])
            yield from (row | {"face": faces.ids[i]} for row, i in zip(rows, part, strict=True))

    def references(self, asked: Asked, photograph: Photograph) -> list[Row]:
        """Each photograph that stood for the word once, of those that are at hand."""
        found = {face: shown for face in sorted({facts["reference"] for facts in asked.chosen}) if (shown := photograph(face))}
        rows = self.rows(asked.word, "reference", [crop for crop, _ in found.values()], [marks for _, marks in found.values()])
        return [row | {"face": face} for row, face in zip(rows, found, strict=True)]
