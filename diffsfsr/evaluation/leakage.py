"""What training may have seen of the test faces: a person in both splits, and a face so near to a training face that it may be theirs.

A name tells only what the data set knows. A face under another name, or none, is suspected by its embedding: where the cosine to its
nearest training face is so high that, of as many pairs of strangers, one would reach it by chance. Suspects are shown, not convicted:
people look alike, and data sets have people under two names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 2048  # faces a side whose cosines are held at once
_SAMPLED = 50_000  # pairs of strangers


@dataclass(frozen=True)
class Suspect:
    """A test face and its nearest training face of another name, by place in their arrays."""

    test: int
    train: int
    cosine: float


@dataclass(frozen=True)
class Leakage:
    """`shared`: person -> (training faces, test faces). `suspects`: the nearest first, all with a cosine of `threshold` or more.

    `strangers` are mean and standard deviation of the cosines of training faces of different names.
    """

    train: int
    test: int
    shared: dict[str, tuple[int, int]]
    suspects: list[Suspect]
    threshold: float
    strangers: tuple[float, float]

    @property
    def shared_faces(self) -> int:
        """Test faces whose person has training faces."""
        return sum(of_test for _, of_test in self.shared.values())


def find(
    train: np.ndarray, train_people: Sequence[str], test: np.ndarray, test_people: Sequence[str], threshold: float | None = None
) -> Leakage:
    """Leakage of (N, D) training into (M, D) test embeddings with their people's names; an empty name is nobody's.

    Embeddings are centred by the training mean, which encoders such as dlib's need and others do not mind. A row that is not finite is
    near to nothing. `threshold`: default as above. In a memory that N and M do not change, beside the embeddings themselves.
    """
    mean = np.asarray(np.mean(train, axis=0, where=np.isfinite(train)) if len(train) else 0.0)
    codes = {name: code for code, name in enumerate(dict.fromkeys((*train_people, *test_people)))}
    names = [np.array([codes[name] if name else -1 for name in people], np.int64) for people in (train_people, test_people)]
    strangers = stranger_cosines(train, names[0], mean)
    if threshold is None:
        threshold = chance_threshold(strangers, len(train) * len(test))
    index, cosine = nearest(train, names[0], test, names[1], mean)
    suspects = [Suspect(int(i), int(index[i]), float(cosine[i])) for i in np.argsort(-cosine, kind="stable") if cosine[i] >= threshold]
    return Leakage(len(train), len(test), shared_people(train_people, test_people), suspects, threshold, strangers)


def sharpness(train: np.ndarray, people: Sequence[str], faces: int) -> float:
    """How much of a real leak a recogniser would find among so many test faces: the share of training people whose first two photographs
    are as near as the threshold asks. NaN where nobody has two."""
    pairs = np.array([places[:2] for places in _places(people).values() if len(places) > 1]).reshape(-1, 2)
    if not len(pairs):
        return float("nan")
    mean = np.asarray(np.mean(train, axis=0, where=np.isfinite(train)))
    codes = np.unique(np.asarray(people, np.str_), return_inverse=True)[1]
    threshold = chance_threshold(stranger_cosines(train, codes, mean), len(train) * faces)
    return float(((_unit(train[pairs[:, 0]], mean) * _unit(train[pairs[:, 1]], mean)).sum(axis=1) >= threshold).mean())


def seen(leaks: Leakage, test_people: Sequence[str]) -> set[int]:
    """Places of the test faces to leave out: those suspected, all of a person of whom half or more are, and all of people in both.

    A person who is in training by another name is suspected in most photographs, a stranger who looks like somebody in a few.
    """
    suspected = {suspect.test for suspect in leaks.suspects}
    named = _places(test_people)
    known = [places for name, places in named.items() if name in leaks.shared or 2 * len(suspected.intersection(places)) >= len(places)]
    return suspected.union(*known)


def _places(people: Sequence[str]) -> dict[str, list[int]]:
    """Person -> where their faces stand; nobody is no person."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(people):
        if name:
            found.setdefault(name, []).append(i)
    return found


def shared_people(train: Sequence[str], test: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Person -> (training faces, test faces), for those who have both; whoever has most test faces first."""
    here, there = Counter(filter(None, train)), Counter(filter(None, test))
    return {name: (here[name], n) for name, n in sorted(there.items(), key=lambda entry: (-entry[1], entry[0])) if here[name]}


def stranger_cosines(vectors: np.ndarray, names: np.ndarray, mean: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the cosines of random pairs of different names; those of no name are left out where any has one."""
    usable = np.flatnonzero(names >= 0) if (names >= 0).any() else np.arange(len(names))
    if len(usable) < 2:
        return float("nan"), float("nan")
    rng, found = np.random.default_rng(seed), []
    for start in range(0, _SAMPLED, _BLOCK):
        a, b = (usable[rng.integers(len(usable), size=min(_BLOCK, _SAMPLED - start))] for _ in range(2))
        apart = (names[a] != names[b]) if (names >= 0).any() else a != b
        found.append((_unit(vectors[a[apart]], mean) * _unit(vectors[b[apart]], mean)).sum(axis=1))
    cosines = np.concatenate(found)
    if not len(cosines):
        return float("nan"), float("nan")
    return float(cosines.mean()), float(cosines.std())


def chance_threshold(strangers: tuple[float, float], pairs: int) -> float:
    """The cosine that one of so many pairs of strangers reaches by chance, were theirs normally distributed; at most 0.999, a copy's."""
    from scipy.stats import norm

    mean, deviation = strangers
    return min(0.999, mean + float(norm.isf(1 / max(pairs, 2))) * deviation) if np.isfinite(deviation) else 0.999


def nearest(
    train: np.ndarray, train_names: np.ndarray, test: np.ndarray, test_names: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each test face the nearest training face of another name: (M,) places and (M,) cosines, -1 and -inf where there is none.

    `names` are numbers, negative for nobody, who differs from everybody.
    """
    index, cosine = np.full(len(test), -1), np.full(len(test), -np.inf, np.float32)
    units, train_names = _unit(test, mean), np.where(train_names < 0, -2, train_names)  # nobody in training is not nobody in test
    for start in range(0, len(train), _BLOCK):
        rivals, rival_names = _unit(train[start : start + _BLOCK], mean), train_names[start : start + _BLOCK]
        for begin in range(0, len(test), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            similar = units[part] @ rivals.T
            similar[test_names[part, None] == rival_names[None, :]] = -np.inf
            best = similar.argmax(axis=1)
            value = similar[np.arange(len(best)), best]
            nearer = value > cosine[part]
            index[part] = np.where(nearer, best + start, index[part])
            cosine[part] = np.where(nearer, value, cosine[part])
    return index, cosine


def _unit(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(B, D) centred and of unit length, float32; zero, which is near to nothing, where that cannot be."""
    centred = np.asarray(vectors, np.float32) - mean.astype(np.float32)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 0)
    return np.where(usable, centred, 0) / np.where(usable, length, 1)
