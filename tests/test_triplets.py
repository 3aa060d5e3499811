"""The miner of expression triplets, against its own promises by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from diffsfsr.errors import InputError
from diffsfsr.training.triplets import mine_expression_triplets

rng = np.random.default_rng(0)
LABELS = [str(x) for x in rng.choice(["joy", "anger", "fear", "", "love"], 300, p=[0.6, 0.2, 0.05, 0.1, 0.05])] + ["lonely"]
PEOPLE = [str(x) for x in rng.choice(["ann", "bob", "cyd", "", "eve"], 300)] + ["ann"]


def test_every_row_is_a_triplet() -> None:
    triplets, one_class = mine_expression_triplets(LABELS, PEOPLE, 2000, 0)
    assert triplets.shape == (2000, 3) and triplets.dtype == np.int64 and one_class.shape == (2000,) and not one_class.any()
    for a, p, n in triplets:
        assert a != p and LABELS[a] == LABELS[p] != LABELS[n] and "" not in (LABELS[a], LABELS[n])
        assert PEOPLE[a] != PEOPLE[p] or PEOPLE[a] == ""  # unknown people count as different ones
    assert not (triplets == 300).any()  # a label with a single face


def test_labels_are_balanced_in_any_run_of_rows() -> None:
    triplets, _ = mine_expression_triplets(LABELS, PEOPLE, 4000, 0)
    for rows in (triplets, triplets[:400]):
        for column in (0, 2):
            share = np.unique([LABELS[i] for i in rows[:, column]], return_counts=True)[1] / len(rows)
            assert len(share) == 4 and np.abs(share - 0.25).max() < 0.06
    assert set(np.unique([LABELS[i] for i in triplets[:, 0]], return_counts=True)[1]) == {1000}


def test_every_allowed_pair_is_drawn() -> None:
    labels, people = ["x"] * 5 + ["y"] * 2, ["a", "b", "a", "c", "b", "a", "b"]
    triplets, _ = mine_expression_triplets(labels, people, 4000, 1)
    drawn = {(a, p) for a, p, _ in triplets.tolist()}
    assert drawn == {(a, p) for a in range(7) for p in range(7) if labels[a] == labels[p] and people[a] != people[p]}


def test_one_person_alone_in_a_label_is_paired_with_another_picture() -> None:
    labels, people = ["x", "x", "x", "y", "y"], ["a", "a", "a", "a", "b"]
    triplets, _ = mine_expression_triplets(labels, people, 600, 0)
    assert (triplets[:, 0] != triplets[:, 1]).all()
    assert {(a, p) for a, p, _ in triplets.tolist() if a < 3} == {(i, j) for i in range(3) for j in range(3) if i != j}


def test_it_is_a_function_of_its_input_and_seed() -> None:
    one, two, other = (mine_expression_triplets(LABELS, PEOPLE, 100, seed)[0] for seed in (7, 7, 8))
    assert (one == two).all() and (one != other).any()


@pytest.mark.parametrize(
    ("labels", "people", "count", "said"),
    [
        (["x", "x"], ["a"], 1, "2 emotion labels for 1 people"),
        (["x", "x", "y", "y"], list("abcd"), 0, "0 triplets"),
        (["x", "x", "y"], list("abc"), 1, "two emotion labels with at least two faces each, not 1"),
        (["x", "x", "", ""], list("abcd"), 1, "not 1"),
        ([], [], 1, "not 0"),
    ],
)
def test_too_little_is_refused(labels: list[str], people: list[str], count: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mine_expression_triplets(labels, people, count, 0)
