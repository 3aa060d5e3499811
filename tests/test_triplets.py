"""The sources of expression triplets and their miner, against their own promises by brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.training.triplets import (
    ANNOTATIONS,
    RATIO,
    Annotations,
    Coefficients,
    Labels,
    Miner,
    Source,
    blendshape_distance,
    read_teacher,
)

_draw = np.random.default_rng(0)
LABELS = [str(x) for x in _draw.choice(["joy", "anger", "fear", "", "love"], 300, p=[0.6, 0.2, 0.05, 0.1, 0.05])] + ["lonely"]
PEOPLE = [str(x) for x in _draw.choice([f"p{i}" for i in range(90)] + [""] * 10, 300)] + ["p1"]
TEACHER = _draw.random((301, 52)).astype(np.float32) * (np.arange(52) < 3)  # few dimensions: some are clearly nearer than others
TEACHER[::50] = np.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(source: Source, count: int = 60, groups: int = 30) -> np.ndarray:
    """(n, 3) rows of many groups; every group is checked to be one."""
    found = []
    for seed in range(groups):
        group = Miner([source]).draw(count, rng(seed))
        assert group.triplets.shape == (count, 3) and group.one_class.shape == group.annotator.shape == (count,)
        assert len(set(group.faces.tolist())) == len(group.faces) < 3 * count
        found.append(group.faces[group.triplets])
    return np.concatenate(found)


def strangers(i: int, j: int) -> bool:
    return PEOPLE[i] != PEOPLE[j] or (PEOPLE[i] == "" and i != j)  # nobody's pictures are of different people


def is_labelled_triplet(a: int, p: int, n: int) -> bool:
    return (
        "" not in (LABELS[a], LABELS[n])
        and LABELS[a] == LABELS[p] != LABELS[n]
        and strangers(a, p)
        and "lonely" not in (LABELS[a], LABELS[n])
    )


def is_taught_triplet(a: int, p: int, n: int) -> bool:
    near, far, far_too = (math.dist(TEACHER[i].tolist(), TEACHER[j].tolist()) for i, j in ((a, p), (a, n), (p, n)))
    return strangers(a, p) and RATIO * near < far and RATIO * near < far_too


SOURCES = {
    "labels": (Labels(LABELS, PEOPLE), is_labelled_triplet),
    "blendshapes": (Coefficients(TEACHER, PEOPLE, LABELS), is_taught_triplet),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_triplet_drawn_is_one(name: str) -> None:
    source, is_triplet = SOURCES[name]
    found = rows(source)
    assert all(len({a, p, n}) == 3 and is_triplet(a, p, n) for a, p, n in found.tolist())
    seeds = source.seeds(120, rng(5))
    assert len(seeds) == 20 and all(is_triplet(a, p, n) for a, p, n in seeds.tolist())
    assert len({tuple(t) for t in found.tolist()}) > 0.9 * len(found)  # groups do not repeat


@pytest.mark.parametrize("name", SOURCES)
def test_the_valid_triplets_are_those_of_brute_force(name: str) -> None:
    source, is_triplet = SOURCES[name]
    faces = np.concatenate([rng(1).permutation(301)[:24], [300, 250]])
    assert isinstance(source, Labels | Coefficients)
    want = {t for t in itertools.product(range(26), repeat=3) if is_triplet(*faces[list(t)].tolist())}
    assert set(map(tuple, np.argwhere(source.valid(faces)).tolist())) == want and len(want) > 20
    drawn = source.among(faces, len(want), rng()).triplets
    assert set(map(tuple, drawn.tolist())) == want  # all of them, none twice
    few = [tuple(t) for seed in range(400) for t in source.among(faces, 2, rng(seed)).triplets.tolist()]
    assert set(few) <= want and {a for a, _, _ in few} == {a for a, _, _ in want}


def test_a_negative_is_often_the_anchors_own_person() -> None:
    """Where everyone shows both words, as in the first two lists, and never where nobody has two pictures."""
    labels, people = ["joy", "anger"] * 40, [f"p{i // 2}" for i in range(80)]
    coefficients = np.zeros((80, 52), np.float32)
    coefficients[:, 44] = np.tile([0.9, 0.1], 40) + rng().normal(0, 0.05, 80)
    for source in (Labels(labels, people), Coefficients(coefficients, people, labels)):
        found = rows(source, 24)
        own = np.array([people[a] == people[n] for a, _, n in found.tolist()])
        assert own.mean() > 0.2 and all(people[a] != people[p] for a, p, _ in found.tolist())
        seeds = np.concatenate([source.seeds(60, rng(seed)) for seed in range(50)])
        assert 0.4 < np.mean([people[a] == people[n] for a, _, n in seeds.tolist()]) <= 1
    alone = rows(Labels(labels, [str(i) for i in range(80)]), 24)
    assert len(alone) == 720


def test_words_and_people_are_drawn_by_the_root_of_their_pictures() -> None:
    labels = ["often"] * 900 + ["seldom"] * 100
    people = ["famous"] * 400 + [f"p{i}" for i in range(600)]
    seeds = np.concatenate([Labels(labels, people).seeds(600, rng(seed)) for seed in range(40)])
    anchors = seeds[:, 0]
    weight = np.array([900**-0.5] * 900 + [100**-0.5] * 100) * np.array([400**-0.5] * 400 + [1.0] * 600)
    for part in (slice(0, 400), slice(400, 900), slice(900, 1000)):
        expected = weight[part].sum() / weight.sum()
        share = np.isin(anchors, np.arange(1000)[part]).mean()
        assert abs(share - expected) < 5 * (expected * (1 - expected) / len(anchors)) ** 0.5


def test_one_class_is_three_faces_of_one_word() -> None:
    source = SOURCES["blendshapes"][0]
    group = Miner([source]).draw(400, rng())
    words = [{LABELS[i] for i in row} for row in group.faces[group.triplets].tolist()]
    assert group.one_class.tolist() == [len(w) == 1 and w != {""} for w in words] and 0 < group.one_class.mean() < 1
    assert not Miner([SOURCES["labels"][0]]).draw(50, rng()).one_class.any()


def test_sources_have_equal_shares_and_an_annotator_each() -> None:
    miner = Miner([SOURCES["labels"][0], SOURCES["blendshapes"][0]])
    assert miner.annotators == ("labels", "blendshapes")
    group = miner.draw(40, rng())
    for who, (_, is_triplet) in enumerate(SOURCES.values()):
        mine = group.faces[group.triplets[group.annotator == who]]
        assert len(mine) == 20 and all(is_triplet(a, p, n) for a, p, n in mine.tolist())
    large = miner.draw(500, rng())
    assert len(np.unique(large.faces)) == len(large.faces) and np.bincount(large.annotator).tolist() == [250, 250]
    for row, who in zip(large.faces[large.triplets].tolist(), large.annotator, strict=True):
        assert list(SOURCES.values())[who][1](*row)
    odd = [np.bincount(miner.draw(41, rng(seed)).annotator).tolist() for seed in range(20)]
    assert {tuple(o) for o in odd} == {(20, 21), (21, 20)}
    assert sorted(np.bincount(miner.draw(1, rng()).annotator, minlength=2)) == [0, 1]


def test_a_group_is_a_function_of_the_generator() -> None:
    miner = Miner([source for source, _ in SOURCES.values()])
    one, two, other = (miner.draw(30, rng(seed)) for seed in (7, 7, 8))
    for name in ("faces", "triplets", "one_class", "annotator"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.faces, other.faces)


# --- files --------------------------------------------------------------------------------------------------------------


def annotations(path: Path, told: list[tuple[str, str, str, bool, str]]) -> list[Path]:
    tables.write(path, tables.from_rows([dict(zip(ANNOTATIONS.names, row, strict=True)) for row in told], ANNOTATIONS), "m")
    return [path]


TOLD = [
    ("f1", "f2", "f3", True, "zoe"),
    ("f4", "f0", "f2", False, "abe"),
    ("f4", "gone", "f2", False, "new"),
    ("f3", "f1", "f0", False, "zoe"),
]


def test_annotations_are_what_people_said(tmp_path: Path) -> None:
    source = Annotations(annotations(tmp_path / "a.parquet", TOLD), [f"f{i}" for i in range(5)])
    assert source.annotators == ("abe", "zoe")  # no triplet of the third's is left
    want = {((1, 2, 3), True, "zoe"), ((4, 0, 2), False, "abe"), ((3, 1, 0), False, "zoe")}
    labels = Labels(["x", "y", "x", "y", "x"], list("abcde"))
    for sources in ([source], [labels, source]):
        miner, found = Miner(sources), set()
        for seed in range(30):
            g = miner.draw(4, rng(seed))
            assert len(g.triplets) == 4
            told = [
                (tuple(t), bool(o), miner.annotators[k])
                for t, o, k in zip(g.faces[g.triplets].tolist(), g.one_class, g.annotator, strict=True)
            ]
            found |= {t for t in told if t[2] != "labels"}
        assert found == want


def test_annotations_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    files = annotations(tmp_path / "a.parquet", TOLD)
    with pytest.raises(InputError, match="none of 4 annotated triplets has all three faces in training"):
        Annotations(files, ["f1", "f2"])
    with pytest.raises(NotReady, match="annotated triplets are missing: .*b.parquet; run `diffsfsr run"):
        Annotations([*files, tmp_path / "b.parquet"], ["f1", "f2", "f3"])
    with pytest.raises(NotReady, match="annotated triplets are missing; "):
        Annotations([], ["f1"])


def test_the_teachers_rows_are_found_by_face(tmp_path: Path) -> None:
    import pyarrow as pa

    values = rng().random((5, 52)).astype(np.float32)
    for k, part in enumerate((slice(0, 3), slice(3, 5))):
        table = pa.table(
            {"face_id": [f"f{i}" for i in range(5)][part], "blendshapes": pa.array(values[part].tolist(), pa.list_(pa.float32(), 52))}
        )
        tables.write(tmp_path / f"{k}.parquet", table, "m")
    found = read_teacher([tmp_path / "0.parquet", tmp_path / "1.parquet"], ["f4", "none", "f0"])
    assert found.dtype == np.float32 and np.array_equal(found[[0, 2]], values[[4, 0]]) and np.isnan(found[1]).all()
    assert blendshape_distance(found[0], found[2]) == pytest.approx(math.dist(values[4].tolist(), values[0].tolist()), rel=1e-6)
    with pytest.raises(NotReady, match="the blendshape coefficients are missing; "):
        read_teacher([], ["f0"])


@pytest.mark.parametrize(
    ("labels", "people", "said"),
    [
        (["x", "x"], ["a"], "2 emotion labels for 1 people"),
        (["x", "x", "y"], list("abc"), "two emotion labels shown by two people each, not 1"),
        (["x", "x", "y", "y"], list("abcc"), "not 1"),  # one person alone shows y
        (["x", "x", "", ""], list("abcd"), "not 1"),
        ([], [], "not 0"),
    ],
)
def test_too_few_labels_are_refused(labels: list[str], people: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Labels(labels, people)


def test_a_teacher_that_tells_nothing_apart_is_refused() -> None:
    with pytest.raises(InputError, match="the teacher knows 2 faces"):
        Coefficients(np.array([[0.0] * 52, [1.0] * 52, [np.nan] * 52]), list("abc"), [""] * 3)
    with pytest.raises(InputError, match="the teacher finds no three faces of which one is 1.5 times as far"):
        Coefficients(np.eye(52), [str(i) for i in range(52)], [""] * 52).seeds(6, rng())
