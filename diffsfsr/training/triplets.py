"""Expression triplets: of three faces the first two look more alike than the third. Three sources say so, and may be mixed.

`Labels` hold faces of one emotion word alike; `Coefficients` asks a teacher's coefficients; `Annotations` are people's own answers
(FEC). A micro batch is a `Group`: triplets among a few distinct faces, so that the network sees each face once. Groups are drawn
as they are needed and never repeat; they are a function of the random generator alone.

Identity must not answer. In a triplet from the first two sources anchor and positive are different people, and the negative
is wherever possible the anchor's own person who shows something else: who sees only people gets these wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady

# One row a triplet that a person judged: `anchor` and `positive` are the two faces most alike (their order says nothing).
ANNOTATIONS = pa.schema(
    [*[(name, tables.TEXT) for name in ("anchor", "positive", "negative")], ("one_class", pa.bool_()), ("annotator", tables.TEXT)]
)
NO_ANNOTATIONS = (
    "no prepared data set has annotated triplets: put a triplets.csv (first,second,third,odd,kind,annotator) beside the photographs "
    "of one, or prepare a published list of them (`diffsfsr run prepare --data FEC.csv`)"
)

OWN = 0.5  # share of the negatives that are the anchor's own person, where there are any
SHARED = 6  # triplets that share three faces: more cost nothing, fewer faces vary too little
RATIO = 1.5  # how many times as far as the positive the teacher must find the negative; nearer is a matter of taste
_LARGEST = 96  # triplets among whose faces all others are looked for: their number grows with the cube of the faces
_ASKED = 64  # faces among which the teacher looks for an anchor's positive and negative
_TRIES = 200  # anchors for which it looks


@dataclass(frozen=True)
class Group:
    """What a micro batch trains on."""

    faces: np.ndarray  # (F,) int64 rows of the data set, each once
    triplets: np.ndarray  # (B, 3) int64 places in `faces`: anchor, positive, negative
    one_class: np.ndarray  # (B,) bool: all three are of one class of expression
    annotator: np.ndarray  # (B,) int64 index into the miner's `annotators`


class Among(NamedTuple):
    """Triplets (n, 3) as places in some list of faces, whether each is of one class (n,), and who says so (n,)."""

    triplets: np.ndarray
    one_class: np.ndarray
    annotator: np.ndarray


class Source(Protocol):
    """Who says which two look alike. Both methods are functions of their arguments and the generator's state."""

    annotators: tuple[str, ...]

    def seeds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 3) rows of the data set, each row a triplet of this source: their faces are to bear `count` triplets."""

    def among(self, faces: np.ndarray, count: int, rng: np.random.Generator) -> Among:
        """`count` triplets of these faces (rows of the data set), which hold at least one; repeated only where there are fewer."""


class Miner:
    """Groups of triplets from several sources in equal shares."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.annotators = tuple(name for source in sources for name in source.annotators)

    def draw(self, count: int, rng: np.random.Generator) -> Group:
        """A group of `count` triplets; a large one is several small ones side by side, so that its cost grows no faster than it."""
        parts = [self._small(len(part), rng) for part in np.array_split(np.arange(count), -(-count // _LARGEST))]
        faces = np.unique(np.concatenate([part.faces for part in parts]))
        triplets = np.concatenate([np.searchsorted(faces, part.faces)[part.triplets] for part in parts])
        return Group(faces, triplets, *(np.concatenate([getattr(p, name) for p in parts]) for name in ("one_class", "annotator")))

    def _small(self, count: int, rng: np.random.Generator) -> Group:
        """Shares differ by one where `count` is no multiple, in favour of sources drawn at random."""
        shares = np.full(len(self.sources), count // len(self.sources))
        shares[rng.permutation(len(shares))[: count % len(shares)]] += 1
        asked = [(i, int(n)) for i, n in enumerate(shares) if n]
        faces = np.unique(np.concatenate([self.sources[i].seeds(n, rng) for i, n in asked]))
        parts = [self._numbered(i, self.sources[i].among(faces, n, rng)) for i, n in asked]
        return Group(faces, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _numbered(self, source: int, part: Among) -> Among:
        """A source's own annotators counted on from those of the sources before it."""
        return part._replace(annotator=part.annotator + sum(len(before.annotators) for before in self.sources[:source]))


class Labels:
    """Two people who share an emotion word, and a face with another word.

    A word is drawn by the square root of its faces: rare words are heard, but a handful of mislabelled faces is not learned by
    heart. So is a person, since some have hundreds of pictures. Words of fewer than two people are not used; an empty name is
    a person of its own.
    """

    annotators: tuple[str, ...] = ("labels",)

    def __init__(self, labels: Sequence[str], people: Sequence[str]) -> None:
        """One entry a face. Raises InputError when the lists differ in length or fewer than two words are shown by two people."""
        if len(labels) != len(people):
            raise InputError(f"{len(labels)} emotion labels for {len(people)} people: give one of each for every face")
        self.person, self.label = _people(people), _words(labels)
        for word in np.unique(self.label[self.label >= 0]):
            if len(np.unique(self.person[self.label == word])) < 2:
                self.label[self.label == word] = -1
        words = len(np.unique(self.label[self.label >= 0]))
        if words < 2:
            raise InputError(f"expression triplets need two emotion labels shown by two people each, not {words}: add labelled faces")
        self._weight = np.where(self.label >= 0, _rarity(self.label) * _rarity(self.person), 0.0)

    def seeds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        anchors = self._choose(np.ones(len(self.label), bool), -(-count // SHARED), rng)
        return np.array([self._triplet(int(a), rng) for a in anchors], np.int64).reshape(-1, 3)

    def among(self, faces: np.ndarray, count: int, rng: np.random.Generator) -> Among:
        """As in `Source`. Labels never tell that all three are of one class: the third has another one."""
        triplets = _choose(self.valid(faces), _same(self.person[faces]), count, rng)
        return Among(triplets, np.zeros(count, bool), np.zeros(count, np.int64))

    def valid(self, faces: np.ndarray) -> np.ndarray:
        """(F, F, F) bool over anchor, positive and negative."""
        label = self.label[faces]
        labelled = (label >= 0)[:, None] & (label >= 0)
        alike = labelled & _same(label) & ~_same(self.person[faces])
        return alike[:, :, None] & (labelled & ~_same(label))[:, None, :]

    def _triplet(self, anchor: int, rng: np.random.Generator) -> tuple[int, int, int]:
        own, alike = self.person == self.person[anchor], self.label == self.label[anchor]
        unlike = (self.label >= 0) & ~alike
        negatives = unlike & own if (unlike & own).any() and rng.random() < OWN else unlike
        return anchor, int(self._choose(alike & ~own, 1, rng)[0]), int(self._choose(negatives, 1, rng)[0])

    def _choose(self, allowed: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        weight = np.where(allowed, self._weight, 0.0)
        return rng.choice(len(weight), count, p=weight / weight.sum())


class Coefficients:
    """Two people whose coefficients are near, and a face clearly farther from both: at least `RATIO` times their distance.

    The third is a third person, or the same as one of the two. Faces without coefficients are not used. A triplet is of one
    class where all three carry the same emotion word.
    """

    def __init__(self, coefficients: np.ndarray, people: Sequence[str], labels: Sequence[str], teacher: str = "blendshapes") -> None:
        """coefficients (n, D), NaN where there are none. Raises InputError where too few faces have them."""
        self.annotators: tuple[str, ...] = (teacher,)
        self.coefficients, self.person, self.label = coefficients, _people(people), _words(labels)
        self._known = np.flatnonzero(np.isfinite(coefficients).all(1))
        if len(self._known) < 3 or len(np.unique(self.person[self._known])) < 2:
            raise InputError(f"the teacher knows {len(self._known)} faces: triplets by blendshapes need three, of two people")
        weight = _rarity(self.person)[self._known]
        self._weight = weight / weight.sum()

    def seeds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """As in `Source`. Raises InputError where the teacher finds all faces about equally alike."""
        wanted = -(-count // SHARED)
        found: list[np.ndarray] = []
        for anchor in rng.choice(self._known, wanted + _TRIES, p=self._weight):
            if len(found) == wanted:
                return np.array(found, np.int64).reshape(-1, 3)
            faces = self._candidates(int(anchor), rng)
            valid = self.valid(faces, anchors=1)
            if valid.any():
                found.append(faces[_choose(valid, _same(self.person[faces]), 1, rng)[0]])
        raise InputError(f"the teacher finds no three faces of which one is {RATIO} times as far as the others: add photographs")

    def among(self, faces: np.ndarray, count: int, rng: np.random.Generator) -> Among:
        triplets = _choose(self.valid(faces), _same(self.person[faces]), count, rng)
        label = self.label[faces][triplets]
        return Among(triplets, (label[:, 0] >= 0) & (label == label[:, :1]).all(1), np.zeros(count, np.int64))

    def valid(self, faces: np.ndarray, anchors: int | None = None) -> np.ndarray:
        """(A, F, F) bool over anchor (the first few, or all), positive and negative; a comparison with NaN is False."""
        distance = blendshape_distance(self.coefficients[faces][:, None], self.coefficients[faces])
        strangers, near = ~_same(self.person[faces])[:anchors], RATIO * distance[:anchors, :, None]
        return strangers[:, :, None] & (near < distance[:anchors, None, :]) & (near < distance)

    def _candidates(self, anchor: int, rng: np.random.Generator) -> np.ndarray:
        """The anchor first, then some pictures of its person and many of anyone, each face once."""
        own = rng.permutation(np.flatnonzero(self.person == self.person[anchor]))[: _ASKED // 8]
        others = rng.choice(self._known, _ASKED, p=self._weight)
        return np.concatenate([[anchor], np.setdiff1d(np.concatenate([own, others]), [anchor])])


class Annotations:
    """What people answered, each an annotator of their own. A triplet with a face that the data set lacks is dropped."""

    def __init__(self, files: Sequence[Path], face_ids: Sequence[str]) -> None:
        """Parquet files of schema ANNOTATIONS. Raises NotReady where there is none, InputError where no triplet is left."""
        if not files:
            raise NotReady(f"the annotated triplets are missing; {NO_ANNOTATIONS}")
        rows = _read(files, ANNOTATIONS.names, "annotated triplets")
        place = {face: i for i, face in enumerate(face_ids)}
        faces = np.array([[place.get(face, -1) for face in rows[name].to_pylist()] for name in ANNOTATIONS.names[:3]], np.int64).T
        kept = (faces >= 0).all(1)
        if not kept.any():
            raise InputError(f"none of {len(rows)} annotated triplets has all three faces in training: check the names in triplets.csv")
        who, number = np.unique(np.array(rows["annotator"].to_pylist(), dtype=np.str_)[kept], return_inverse=True)
        self.annotators = tuple(who.tolist())
        self.told = Among(faces[kept], np.array(rows["one_class"].to_pylist(), bool)[kept], number.astype(np.int64))
        self._last = int(faces.max())

    def seeds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """As in `Source`: `count` of them, since little is known of which share faces."""
        told = self.told.triplets
        return told[rng.choice(len(told), count, replace=count > len(told))]

    def among(self, faces: np.ndarray, count: int, rng: np.random.Generator) -> Among:
        place = np.full(max(self._last, int(faces.max())) + 1, -1)
        place[faces] = np.arange(len(faces))
        triplets = place[self.told.triplets]
        there = np.flatnonzero((triplets >= 0).all(1))
        rows = there[rng.choice(len(there), count, replace=count > len(there))]
        return Among(triplets[rows], self.told.one_class[rows], self.told.annotator[rows])


def blendshape_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance of coefficients (..., 52), 0..1 each, in float64; the shapes before the last broadcast."""
    return np.linalg.norm(a.astype(np.float64) - b, axis=-1)


def read_teacher(files: Sequence[Path], face_ids: Sequence[str]) -> np.ndarray:
    """(n, 52) float32 coefficients of those faces, NaN where the teacher's files have none. NotReady where there is no file."""
    rows = _read(files, ["face_id", "blendshapes"], "blendshape coefficients")
    known = dict(zip(rows["face_id"].to_pylist(), rows["blendshapes"].to_pylist(), strict=True))
    nothing = [np.nan] * len(next((value for value in known.values() if value), []))
    return np.array([known.get(face) or nothing for face in face_ids], np.float32)


def _read(files: Sequence[Path], columns: list[str], what: str) -> pa.Table:
    missing = [file for file in files if not Path(file).exists()]
    if missing or not files:
        raise NotReady(f"the {what} are missing{f': {missing[0]}' if missing else ''}; run `diffsfsr run train` again to make them")
    return pa.concat_tables([tables.read(Path(file), columns) for file in files])


# --- choosing ----------------------------------------------------------------------------------------------------------


def _choose(valid: np.ndarray, own: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) of the triplets valid (A, F, F), without repetition where there are enough.

    An anchor is as likely as any other that has a triplet, or twice so where it has a negative of its own person (`own` (F, F)):
    then that is one of them half the time.
    """
    triplets = np.argwhere(valid)
    kind = 2 * triplets[:, 0] + own[triplets[:, 0], triplets[:, 2]]
    weight = 1 / np.bincount(kind)[kind]
    return triplets[rng.choice(len(triplets), count, replace=count > len(triplets), p=weight / weight.sum())]


def _same(values: np.ndarray) -> np.ndarray:
    """(F,) -> (F, F) bool."""
    return values[:, None] == values


def _people(names: Sequence[str]) -> np.ndarray:
    """(n,) int64, equal where the names are; an empty name is a person of its own."""
    number = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    return np.where(np.array([not name for name in names], bool), -1 - np.arange(len(names)), number)


def _words(labels: Sequence[str]) -> np.ndarray:
    """(n,) int64, equal where the words are; -1 where there is none."""
    number = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    return np.where(np.array([not label for label in labels], bool), -1, number)


def _rarity(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): one over the square root of how many there are of each."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[number] ** -0.5
