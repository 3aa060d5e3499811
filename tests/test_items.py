"""Pair lists: fixed by faces and seed, spread over people, stored and found again."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation.items import (
    PAIRS,
    TASKS,
    Faces,
    Item,
    item_seed,
    make_items,
    make_items_beside,
    make_pairs,
    read_pairs,
    write_pairs,
)

PEOPLE = [f"p{i % 20}" for i in range(60)]
IDS = [f"set/{i:03d}/0" for i in range(60)]
SPLIT = ["test" if i % 20 < 12 else "train" for i in range(60)]


def _people(item):
    return PEOPLE[item.scene], PEOPLE[item.identity], PEOPLE[item.expression]


def test_swap_all_takes_three_people_of_the_split():
    items = make_items(IDS, PEOPLE, SPLIT, "all", 200, seed=1)
    assert len(items) == 200
    assert all(len(set(_people(item))) == 3 for item in items)
    assert all(SPLIT[i] == "test" for item in items for i in (item.scene, item.identity, item.expression))


def test_the_tasks_are_choices_of_input():
    swap_id = make_items(IDS, PEOPLE, SPLIT, "identity", 50, seed=1)
    assert all(i.expression == i.scene and PEOPLE[i.identity] != PEOPLE[i.scene] for i in swap_id)
    swap_exp = make_items(IDS, PEOPLE, SPLIT, "expression", 50, seed=1)
    assert all(i.identity == i.scene and PEOPLE[i.expression] != PEOPLE[i.scene] for i in swap_exp)
    assert all(i.scene == i.identity == i.expression for i in make_items(IDS, PEOPLE, SPLIT, "reconstruct", 50, seed=1))


def test_items_are_fixed_by_the_seed_and_not_by_the_order_of_the_table():
    def named(order, seed=3):
        items = make_items([IDS[i] for i in order], [PEOPLE[i] for i in order], [SPLIT[i] for i in order], "all", 40, seed)
        return [(order[i.scene], order[i.identity], order[i.expression]) for i in items]

    plain = list(range(60))
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    assert named(plain) == named(plain) == named(shuffled)
    assert named(plain) != named(plain, seed=4)


def test_roles_are_spread_evenly_over_people():
    items = make_items(IDS, PEOPLE, SPLIT, "all", 120, seed=5)
    for role in ("scene", "identity", "expression"):
        counts = {p: sum(PEOPLE[getattr(i, role)] == p for i in items) for p in set(PEOPLE[:12])}
        assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 4
    first = make_items(IDS, PEOPLE, SPLIT, "all", 12, seed=5)
    assert len({PEOPLE[i.identity] for i in first}) >= 11  # as many people to choose among as there are


def test_few_people_and_nameless_faces():
    two = make_items(["a", "b", "c"], ["ann", "ann", "bob"], ["test"] * 3, "all", 30, seed=0)
    assert all(len({i.scene, i.identity, i.expression}) == 3 for i in two)
    assert all(2 in (i.scene, i.identity) for i in two)  # the identity is of the other person, and then none is left
    assert make_items(["a"], ["ann"], ["test"], "all", 2, seed=0) == [Item(0, 0, 0)] * 2
    nameless = make_items(["a", "b", "c"], ["", "", ""], ["train"] * 3, "all", 9, seed=0, use=None)
    assert all(len({i.scene, i.identity, i.expression}) == 3 for i in nameless)


def test_beside_faces_that_are_taken_two_other_people_are_dealt_evenly():
    others = [[IDS[i], IDS[i + 1], "elsewhere/7/0"] for i in range(40)]
    items = make_items_beside(_faces(), others, seed=2)
    for i, item in enumerate(items):
        assert len({PEOPLE[i], PEOPLE[i + 1], PEOPLE[item.scene], PEOPLE[item.identity]}) == 4 and item.expression == item.scene
    for role in ("scene", "identity"):
        counts = [sum(PEOPLE[getattr(item, role)] == p for item in items) for p in set(PEOPLE)]
        assert max(counts) - min(counts) <= 2
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    again = make_items_beside(_faces(shuffled), others, seed=2)
    assert [IDS[shuffled[item.scene]] for item in again] == [IDS[item.scene] for item in items]
    assert make_items_beside(_faces(), others, seed=3) != items


def test_unusable_requests_are_refused():
    with pytest.raises(InputError, match="'swap'.*all, identity, expression, reconstruct"):
        make_items(IDS, PEOPLE, SPLIT, "swap", 5, seed=0)
    with pytest.raises(InputError, match="on 0 items"):
        make_items(IDS, PEOPLE, SPLIT, "all", 0, seed=0)
    with pytest.raises(NotReady, match="'test'"):
        make_items(["a"], ["ann"], ["train"], "all", 1, seed=0)


# --- stored -------------------------------------------------------------------------------------------------------------


def _faces(order=range(60)):
    crops = [np.zeros((8, 8, 3), np.uint8)] * 60
    return Faces([IDS[i] for i in order], [PEOPLE[i] for i in order], crops, np.zeros((60, 68, 2)), [{"emotion": "joy"}, *[{}] * 59])


def _split(order=range(60)):
    return [SPLIT[i] for i in order]


@pytest.mark.parametrize("task", TASKS)
def test_a_stored_list_is_found_again_whatever_the_order_of_the_faces(tmp_path, task):
    faces, shuffled = _faces(), np.random.default_rng(1).permutation(60).tolist()
    pairs = make_pairs(faces, _split(), task, 30, seed=2)
    write_pairs(tmp_path / "pairs.parquet", pairs, faces)
    assert read_pairs(tmp_path / "pairs.parquet", faces) == pairs
    again = read_pairs(tmp_path / "pairs.parquet", _faces(shuffled))
    assert again.fingerprint == pairs.fingerprint and again.seeds == pairs.seeds == [item_seed(2, i) for i in range(30)]
    assert [[shuffled[i] for i in (item.scene, item.identity, item.expression)] for item in again.items] == [
        [item.scene, item.identity, item.expression] for item in pairs.items
    ]


def test_the_stored_table_names_faces_and_people(tmp_path):
    faces = _faces()
    pairs = make_pairs(faces, _split(), "all", 12, seed=0)
    write_pairs(tmp_path / "pairs.parquet", pairs, faces)
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.column_names == PAIRS.names and table["item"].to_pylist() == list(range(12))
    row, item = table.to_pylist()[7], pairs.items[7]
    assert (row["identity"], row["identity_person"]) == (IDS[item.identity], PEOPLE[item.identity]) and row["task"] == "all"


def test_another_seed_task_length_or_face_is_another_list():
    faces = _faces()
    lists = [make_pairs(faces, _split(), *how) for how in (("all", 9, 0), ("all", 9, 1), ("all", 8, 0), ("reconstruct", 9, 0))]
    renamed = Faces([f"other{i}" for i in IDS], PEOPLE, faces.crops, faces.landmarks)
    lists.append(make_pairs(renamed, _split(), "all", 9, 0))
    assert len({pairs.fingerprint for pairs in lists}) == len(lists)


def test_what_is_no_pair_list_is_told(tmp_path):
    faces, path = _faces(), tmp_path / "pairs.parquet"
    write_pairs(path, make_pairs(faces, _split(), "all", 9, 0), faces)
    few = Faces(IDS[:3], PEOPLE[:3], faces.crops, faces.landmarks)
    with pytest.raises(InputError, match=r"pairs.parquet asks for faces that are not prepared here, the first 'set/"):
        read_pairs(path, few)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="not a stored pair list"):
        read_pairs(path, faces)
    with pytest.raises(InputError, match="not a stored pair list"):
        read_pairs(tmp_path / "none.parquet", faces)


def test_labels_and_nameless_faces():
    faces = Faces(["a", "b"], ["", "bob"], [], np.zeros((2, 68, 2)))
    assert (faces.person(0), faces.person(1), faces.label(1, "emotion")) == ("unnamed a", "bob", "")
    assert _faces().label(0, "emotion") == "joy" and _faces().label(1, "emotion") == ""
