"""Are two faces one person? The ten-fold protocol of LFW's View 2 (Huang et al. 2007) on faces and names of one's own.

Folds share no person, so that they are independent of each other: whatever is fitted for one fold (the mean embedding, the
scale of each encoder's cosines, the threshold) is fitted on the nine others, and intervals are over the folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import metrics

# Pictures of LFW unlike the others of their name.
LFW_ODD = frozenset(
    {
        *("Michael_Schumacher_0008", "Mahmoud_Abbas_0012", "Recep_Tayyip_Erdogan_0004", "Colin_Powell_0048", "Colin_Montgomerie_0004"),
        *("Cristina_Fernandez_0001", "Cristina_Fernandez_0002", "Elisabeth_Schumacher_0001", "Elisabeth_Schumacher_0002"),
    }
)


# --- which pairs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """n pairs as indices into a table of faces; arrays (n,)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray  # bool
    fold: np.ndarray  # from 0

    def __len__(self) -> int:
        return len(self.fold)

    @property
    def folds(self) -> range:
        return range(int(self.fold.max()) + 1)


def make_pairs(
    face_ids: Sequence[str],
    people: Sequence[str],
    count: int = 3000,
    folds: int = 10,
    seed: int = 0,
    aliases: Iterable[Sequence[str]] = (),
    leave_out: Collection[str] = (),
) -> Pairs:
    """`count` pairs of one person and `count` of two, in `folds` that share nobody; fixed by the faces and the seed, not their order.

    Drawn as LFW's were: a same pair takes a person who has two faces, evenly among people, then two of the faces; a different
    pair takes two people evenly, then a face of each. No pair is drawn twice.

    Args:
        people: a name for each face; faces without one take no part.
        aliases: names that may be one person: they share a fold, and no pair is made across them.
        leave_out: face ids that take no part.
    Raises InputError for numbers that make no protocol, NotReady where a fold has too few faces for its pairs.
    """
    if folds < 2 or count < folds or count % folds:
        raise InputError(f"{count} pairs of each kind in {folds} folds: give two folds or more, and a multiple of their number")
    faces = _by_person(face_ids, people, leave_out)
    group = _groups(faces, aliases)
    rng = np.random.default_rng(seed)
    rows = []
    for fold, members in enumerate(_deal(faces, group, folds, rng)):
        owned = {name: faces[name] for name in members}
        rows += [(*pair, True, fold) for pair in _same_pairs(owned, count // folds, rng)]
        rows += [(*pair, False, fold) for pair in _different_pairs(owned, group, count // folds, rng)]
    first, second, same, fold_of = zip(*rows, strict=True)
    return Pairs(np.array(first), np.array(second), np.array(same), np.array(fold_of))


def _by_person(face_ids: Sequence[str], people: Sequence[str], leave_out: Collection[str]) -> dict[str, list[int]]:
    """Person -> indices of the faces, both in the order of their names."""
    usable = [i for i in range(len(face_ids)) if people[i] and face_ids[i] not in leave_out]
    faces: dict[str, list[int]] = defaultdict(list)
    for i in sorted(usable, key=lambda i: (people[i], face_ids[i])):
        faces[people[i]].append(i)
    return dict(faces)


def _groups(faces: Mapping[str, list[int]], aliases: Iterable[Sequence[str]]) -> dict[str, str]:
    """Person -> one name for all that are linked by aliases, directly or through others."""
    group = {name: name for name in faces}
    for names in aliases:
        linked = {group[name] for name in names if name in group}
        group = {name: min(linked) if g in linked else g for name, g in group.items()}
    return group


def _deal(faces: Mapping[str, list[int]], group: Mapping[str, str], folds: int, rng: np.random.Generator) -> list[list[str]]:
    """The people of each fold: whole groups, those with several faces and those with one each dealt round in a random order."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in faces:
        members[group[name]].append(name)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    several = [max(len(faces[n]) for n in names) > 1 for names in members.values()]
    for kind in (True, False):
        groups = [names for names, many in zip(members.values(), several, strict=True) if many == kind]
        for place, i in enumerate(rng.permutation(len(groups))):
            dealt[place % folds].extend(groups[i])
    return dealt


def _same_pairs(faces: Mapping[str, list[int]], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    people = [own for own in faces.values() if len(own) > 1]

    def draw() -> tuple[int, int]:
        own = people[rng.integers(len(people))]
        a, b = sorted(rng.choice(len(own), 2, replace=False))
        return own[a], own[b]

    possible = sum(len(own) * (len(own) - 1) // 2 for own in people)
    return _distinct(draw, count, possible, "one person")


def _different_pairs(
    faces: Mapping[str, list[int]], group: Mapping[str, str], count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    people = list(faces)
    of_group: dict[str, int] = defaultdict(int)
    for name, own in faces.items():
        of_group[group[name]] += len(own)

    def draw() -> tuple[int, int] | None:
        a, b = (people[i] for i in sorted(rng.choice(len(people), 2, replace=False)))
        pair = faces[a][rng.integers(len(faces[a]))], faces[b][rng.integers(len(faces[b]))]
        return pair if group[a] != group[b] else None

    possible = (sum(of_group.values()) ** 2 - sum(n**2 for n in of_group.values())) // 2
    return _distinct(draw, count, possible, "two people")


def _distinct(draw: Callable[[], tuple[int, int] | None], count: int, possible: int, what: str) -> list[tuple[int, int]]:
    """`count` different pairs; what is drawn again, or is none, is passed over."""
    drawn: dict[tuple[int, int], None] = {}
    for _ in range(1000 * count if possible >= count else 0):
        if len(drawn) == count:
            break
        if pair := draw():
            drawn[pair] = None
    if len(drawn) < count:
        raise NotReady(f"a fold has {possible} pairs of {what} where {count} are asked for: ask for fewer, or add photographs")
    return list(drawn)


# --- how well they are told apart ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """How well one score tells same from different. The fold is the unit: intervals are bootstrapped over folds."""

    name: str
    scores: np.ndarray  # (n,) one a pair, in strangers' standard deviations above strangers' mean
    fold_auc: np.ndarray  # (folds,)
    fold_accuracy: np.ndarray  # (folds,) at the threshold that is best on the other folds

    @property
    def auc(self) -> metrics.Interval:
        return metrics.bootstrap_interval(self.fold_auc)

    @property
    def accuracy(self) -> metrics.Interval:
        return metrics.bootstrap_interval(self.fold_accuracy)


def verify(embeddings: Mapping[str, np.ndarray], centred: Collection[str], pairs: Pairs, compound: str = "compound") -> list[Verification]:
    """Each encoder, and with several of them their compound, on the pairs.

    The compound's score is the mean of its members', each in units of its own strangers: encoders spread strangers' cosines
    differently, and a plain mean would listen most to the one that spreads them most.

    Args:
        embeddings: encoder -> (faces, D), rows of the faces that `pairs` points into; NaN where a face has none.
        centred: the encoders whose mean embedding is subtracted before a cosine.
    """
    members = {name: standardised(cosines(vectors, pairs, name in centred), pairs) for name, vectors in embeddings.items()}
    if len(members) > 1:
        mean = np.ma.masked_invalid(list(members.values())).mean(axis=0).filled(np.nan)  # of those that have an embedding
        members[compound] = standardised(mean, pairs)
    return [measure(name, scores, pairs) for name, scores in members.items()]


def gains(found: Sequence[Verification], compound: str = "compound") -> dict[str, metrics.Interval]:
    """By how much the compound is above its best member in AUC and in accuracy, paired by fold; nothing where there is no compound."""
    whole = next((v for v in found if v.name == compound), None)
    if whole is None:
        return {}
    differences = {}
    for what in ("auc", "accuracy"):
        best = max((v for v in found if v is not whole), key=lambda v: getattr(v, what).mean)
        ours, theirs = getattr(whole, f"fold_{what}"), getattr(best, f"fold_{what}")
        differences[f"{compound} above {best.name}: {what}"] = metrics.paired_difference(ours, theirs)
    return differences


def cosines(vectors: np.ndarray, pairs: Pairs, centre: bool = False) -> np.ndarray:
    """(faces, D) -> (n,) cosine of each pair; with `centre`, after the mean over the faces of the other folds' pairs is subtracted."""
    found = np.empty(len(pairs))
    for fold in pairs.folds:
        own = pairs.fold == fold
        others = np.unique(np.concatenate([pairs.first[~own], pairs.second[~own]]))
        mean = np.nanmean(vectors[others], axis=0) if centre else 0.0
        found[own] = metrics.cosine(vectors[pairs.first[own]] - mean, vectors[pairs.second[own]] - mean)
    return found


def standardised(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(n,) scores in standard deviations above the mean of the other folds' different pairs."""
    found = np.empty(len(pairs))
    for fold in pairs.folds:
        strangers = scores[(pairs.fold != fold) & ~pairs.same]
        own = pairs.fold == fold
        found[own] = (scores[own] - np.nanmean(strangers)) / np.nanstd(strangers)
    return found


def measure(name: str, scores: np.ndarray, pairs: Pairs) -> Verification:
    """(n,) scores, higher for one person -> AUC and accuracy of each fold. A score that is not finite is wrong either way."""
    right, areas = [], []
    for fold in pairs.folds:
        own = pairs.fold == fold
        threshold = best_threshold(scores[~own], pairs.same[~own])
        told = np.isfinite(scores[own]) & ((scores[own] >= threshold) == pairs.same[own])
        right.append(told.mean())
        areas.append(metrics.auc(scores[own], pairs.same[own]))
    return Verification(name, scores, np.array(areas), np.array(right))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold of the highest accuracy, half-way between two scores; of several, the middle one."""
    finite = np.isfinite(scores)
    scores, same = scores[finite], same[finite]
    order = np.argsort(scores, kind="stable")
    scores, same = scores[order], same[order]
    # Right at a cut before place k: the different pairs below it and the same pairs from it on.
    right = np.concatenate([[0], np.cumsum(~same)]) + np.concatenate([np.cumsum(same[::-1])[::-1], [0]])
    cuts = np.concatenate([[scores[0] - 1], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1]])
    right[1:-1][scores[1:] == scores[:-1]] = -1  # equal scores cannot be cut apart
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])
