"""Expression triplets from labelled faces, for those who have no FEC: two that share a label and one that does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffsfsr.errors import InputError


def mine_expression_triplets(labels: Sequence[str], people: Sequence[str], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Triplets (anchor, positive, negative) of face indices: the first two share an emotion label, the third has another.

    Anchors are dealt evenly over the labels that have at least two faces, and negatives over the others of these. The
    positive is another person than the anchor wherever the label has one, so that identity cannot answer; an empty name is
    a person of its own. Faces with an empty label are not used. The rows are shuffled: any run of them is mixed.

    Args:
        labels, people: one entry a face.
        count: triplets wanted; faces are drawn with repetition.
        seed: the same input and seed give the same triplets.
    Returns:
        (count, 3) int64 and (count,) bool, whether all three are of one class. Labels alone never tell that, so all are
        False; FEC's own annotations do.
    Raises InputError when the lists differ in length, `count` is not positive, or fewer than two labels have two faces.
    """
    if len(labels) != len(people):
        raise InputError(f"{len(labels)} emotion labels for {len(people)} people: give one of each for every face")
    if count < 1:
        raise InputError(f"{count} triplets asked for: give a positive number")
    groups = _groups(labels, people)
    if len(groups) < 2:
        raise InputError(f"expression triplets need two emotion labels with at least two faces each, not {len(groups)}: add labelled faces")
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(count) % len(groups))
    other = (kind + rng.integers(1, len(groups), count)) % len(groups)
    triplets = np.empty((count, 3), np.int64)
    for k, group in enumerate(groups):
        rows, away = np.flatnonzero(kind == k), np.flatnonzero(other == k)
        triplets[rows, :2] = _pairs(group, len(rows), rng)
        triplets[away, 2] = group[rng.integers(0, len(group), len(away)), 0]
    return triplets, np.zeros(count, bool)


def _groups(labels: Sequence[str], people: Sequence[str]) -> list[np.ndarray]:
    """For each label with two faces, in the order of their names: (n, 2) of face and person number, sorted by person."""
    names: dict[str, int] = {}
    person = [names.setdefault(name, len(names)) if name else -1 - i for i, name in enumerate(people)]
    faces: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        if label:
            faces.setdefault(label, []).append(i)
    return [np.array(sorted(((i, person[i]) for i in faces[k]), key=lambda f: (f[1], f[0]))) for k in sorted(faces) if len(faces[k]) > 1]


def _pairs(group: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) faces of one group: any, and one of another person, or another picture where the group is one person.

    The group is sorted by person, so the rest without the anchor's person is one range with a gap.
    """
    faces, person = group.T
    anchor = rng.integers(0, len(faces), count)
    start, stop = np.searchsorted(person, person[anchor], "left"), np.searchsorted(person, person[anchor], "right")
    alone = stop - start == len(faces)
    start, stop = np.where(alone, anchor, start), np.where(alone, anchor + 1, stop)
    positive = rng.integers(0, len(faces) - (stop - start))
    positive += np.where(positive >= start, stop - start, 0)
    return np.stack([faces[anchor], faces[positive]], 1)
