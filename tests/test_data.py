"""Shards to batches: the shuffle against its definition, triplets against the rows they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.images import encode_png
from diffsfsr.training.data import Batch, Crops, Position, Triplets, read_shards

PRESET = synthetic.small({"objective.p_self": 0.5})
LANDMARKS = np.linspace(0, 63, 136, dtype=np.float32).reshape(68, 2)


def triplets(folder: Path, rows: list[dict[str, Any]], split: str | None = "train") -> Triplets:
    shard = synthetic.training_shard(folder / "t.parquet", PRESET, rows)
    return Triplets([str(shard)], PRESET.autoencoder.channels, PRESET.latent, ("dlib",), split)


def rows(count: int = 13, people: int = 4) -> list[dict[str, Any]]:
    made = synthetic.training_rows(PRESET, count, LANDMARKS, people)
    for i, row in enumerate(made):
        row["landmarks"] = row["landmarks"] + i
    return made


# --- the shuffle ------------------------------------------------------------------------------------------------------


def dealt(steps: int, batch: int, count: int, world: int = 1, accumulation: int = 1, seed: int = 5) -> list[list[int]]:
    """What each step sees, over its micro batches and ranks."""
    at = [[(micro, rank) for micro in range(accumulation) for rank in range(world)] for _ in range(steps)]
    places = [[Position(step, micro, rank, world, accumulation, seed) for micro, rank in of] for step, of in enumerate(at)]
    return [[int(i) for place in of for i in place.items(batch, count)] for of in places]


@pytest.mark.parametrize(("batch", "count"), [(4, 13), (8, 3), (5, 5), (1, 7)])
def test_every_epoch_is_a_shuffle_without_replacement(batch: int, count: int) -> None:
    flat = [i for step in dealt(200, batch, count) for i in step]
    epochs = [tuple(flat[e : e + count]) for e in range(0, len(flat) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 6:
        assert len(set(epochs)) > 0.9 * len(epochs)  # each another one


def test_every_item_comes_first_equally_often() -> None:
    firsts = Counter(dealt(1, 1, 5, seed=seed)[0][0] for seed in range(1000))
    assert len(firsts) == 5 and all(abs(n - 200) < 5 * 160**0.5 for n in firsts.values())  # five deviations of a binomial


def test_a_step_sees_the_same_however_it_is_split() -> None:
    whole = dealt(30, 12, 17)
    for world, accumulation, batch in [(2, 1, 6), (1, 3, 4), (2, 3, 2), (3, 4, 1)]:
        assert dealt(30, batch, 17, world, accumulation) == whole


def test_the_order_is_the_seeds() -> None:
    assert dealt(10, 4, 13) == dealt(10, 4, 13) != dealt(10, 4, 13, seed=6)


# --- triplets ---------------------------------------------------------------------------------------------------------


def drawn(data: Triplets, p_self: float, steps: int = 40, batch: int = 8, seed: int = 0) -> Batch:
    parts = [data.draw(Position(step, 0, 0, 1, 1, seed), batch, p_self) for step in range(steps)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def sources(batch: Batch, made: list[dict[str, Any]]) -> tuple[list[int], list[set[str]], list[int]]:
    """(scene row, people with that identity embedding, expression row) of each item, found by value."""
    latent = {row["latent"].astype(np.float32).tobytes(): i for i, row in enumerate(made)}
    expression = {row["expression"].tobytes(): i for i, row in enumerate(made)}
    who: dict[bytes, set[str]] = {}
    for row in made:
        if row["id_dlib"] is not None:
            who.setdefault(row["id_dlib"].tobytes(), set()).add(row["person"])
    return (
        [latent[item.numpy().tobytes()] for item in batch["latent"]],
        [who.get(item.numpy().tobytes(), set()) for item in batch["id_dlib"]],
        [expression[item.numpy().tobytes()] for item in batch["expression"]],
    )


def test_a_self_triplet_is_one_row(tmp_path: Path) -> None:
    made = rows()
    batch = drawn(triplets(tmp_path, made), p_self=1.0)
    scene, who, expression = sources(batch, made)
    assert not batch["cross"].any() and scene == expression
    assert who == [{made[i]["person"]} for i in scene]
    for item, i in enumerate(scene):
        h = PRESET.latent
        assert np.array_equal(batch["masked"][item].numpy().reshape(-1), made[i]["masked_latent"].astype(np.float32))
        assert np.array_equal(batch["mask"][item].numpy(), np.frombuffer(made[i]["mask"], np.uint8).reshape(1, h, h))
        assert np.array_equal(batch["landmarks"][item].numpy(), LANDMARKS + i)
    assert batch["present"].all() and batch["present"].shape == (320, 1)


def test_a_cross_triplet_takes_from_other_people(tmp_path: Path) -> None:
    made = rows()
    batch = drawn(triplets(tmp_path, made), p_self=0.0, steps=400)
    scene, who, expression = sources(batch, made)
    assert batch["cross"].all()
    pairs = Counter()
    for s, w, e in zip(scene, who, expression, strict=True):
        assert made[s]["person"] not in w and made[s]["person"] != made[e]["person"]
        assert np.array_equal(batch["landmarks"][pairs.total()].numpy(), LANDMARKS + s)
        pairs[s, e] += 1
    allowed = {(s, e) for s in range(13) for e in range(13) if made[s]["person"] != made[e]["person"]}
    assert set(pairs) == allowed  # every other picture, and
    for (s, _), n in pairs.items():  # equally often: within five deviations
        expected = scene.count(s) / sum(1 for a, _ in allowed if a == s)
        assert abs(n - expected) < 5 * expected**0.5
    assert len({(s, frozenset(w)) for s, w in zip(scene, who, strict=True)}) == 13 * 3
    together = {(made[e]["person"], frozenset(w)) for w, e in zip(who, expression, strict=True)}
    assert len(together) == 4 * 4  # the two are drawn without regard to each other


def test_a_stranger_is_found_among_thousands_of_one_person(tmp_path: Path) -> None:
    made = rows(60, people=1)
    made[17] |= {"person": "other"}
    batch = drawn(triplets(tmp_path, made), p_self=0.0)
    scene, _, expression = sources(batch, made)
    assert batch["cross"].all() and all(e == 17 for s, e in zip(scene, expression, strict=True) if s != 17)


def test_p_self_is_the_share_of_self_triplets(tmp_path: Path) -> None:
    cross = drawn(triplets(tmp_path, rows()), p_self=0.75, steps=500)["cross"]
    assert abs(float(cross.mean()) - 0.25) < 5 * (0.25 * 0.75 / len(cross)) ** 0.5


def test_another_photograph_says_who(tmp_path: Path) -> None:
    made = [row | {"id_dlib": row["id_dlib"] + np.float32(i)} for i, row in enumerate(rows(count=13, people=4))]
    made[-1]["person"] = "alone"
    data = triplets(tmp_path, made)
    batches = [data.draw(Position(step, 0, 0, 1, 1, 0), 8, 1.0, 0.5) for step in range(60)]
    drawn = {name: torch.cat([b[name] for b in batches]) for name in ("latent", "expression", "cross", "id_dlib")}
    scene, who, expression = sources(drawn, made)
    own, people = [row["id_dlib"].tobytes() for row in made], [row["person"] for row in made]
    moved = [item.numpy().tobytes() != own[s] for item, s in zip(drawn["id_dlib"], scene, strict=True)]
    assert not drawn["cross"].any() and expression == scene
    assert all(w == {people[s]} for s, w in zip(scene, who, strict=True))
    assert not any(m for m, s in zip(moved, scene, strict=True) if people[s] == "alone")
    assert 0.25 < np.mean(moved) < 0.42  # half of them, and of these one in three or four meets the scene again


def test_a_rare_label_is_shown_as_often_as_a_common_one(tmp_path: Path) -> None:
    """Eleven neutral faces of three people, and one sad and one unlabelled of a fourth: each label has a third where labels are drawn."""
    made = [row | {"emotion": "neutral", "person": f"p{i % 3}"} for i, row in enumerate(rows())]
    made[3] |= {"emotion": "sadness", "person": "rare"}
    made[8] |= {"emotion": "", "person": "rare"}
    data = triplets(tmp_path, made)

    def shown(by_label: float) -> tuple[list[int], list[int], Batch]:
        batches = [data.draw(Position(step, 0, 0, 1, 1, 0), 8, 0.25, 0.5, by_label) for step in range(300)]
        drawn = {name: torch.cat([b[name] for b in batches]) for name in ("latent", "expression", "cross", "id_dlib")}
        scene, _, expression = sources(drawn, made)
        return scene, expression, drawn

    scene, expression, batch = shown(1.0)
    people, cross = [row["person"] for row in made], batch["cross"].bool().tolist()
    strangers = [(s, e) for s, e, c in zip(scene, expression, cross, strict=True) if c]
    assert all(people[s] != people[e] for s, e in strangers)
    assert all(s == e for s, e, c in zip(scene, expression, cross, strict=True) if not c)
    of_others = [e for s, e in strangers if people[s] != "rare"]
    for face in (3, 8):
        assert abs(of_others.count(face) / len(of_others) - 1 / 3) < 5 * (2 / 9 / len(of_others)) ** 0.5 + 0.03
    half = [e for s, e, c in zip(*shown(0.5)[:2], cross, strict=True) if c and people[s] != "rare"]
    assert 0.15 < half.count(3) / len(half) < 0.3  # a sixth of those by label, and one in ten or eleven of the others
    plain, halved = shown(0.0)[2], shown(0.5)[2]
    assert all(torch.equal(plain[name], halved[name]) for name in ("latent", "cross", "id_dlib"))  # and nothing else is drawn anew


def test_one_person_alone_has_self_triplets_only(tmp_path: Path) -> None:
    made = rows(5, people=1)
    batch = drawn(triplets(tmp_path, made), p_self=0.0)
    scene, _, expression = sources(batch, made)
    assert not batch["cross"].any() and scene == expression


def test_an_absent_identity_is_not_present_and_not_in_the_mean(tmp_path: Path) -> None:
    made = rows()
    for i in (0, 3, 12):
        made[i]["id_dlib"] = None
    data = triplets(tmp_path, made)
    batch = drawn(data, p_self=1.0)
    scene, who, _ = sources(batch, made)
    assert [bool(p) for p in batch["present"][:, 0]] == [i not in (0, 3, 12) for i in scene]
    assert all(w == {made[i]["person"]} for i, w in zip(scene, who, strict=True) if i not in (0, 3, 12))
    assert float(batch["id_dlib"][~batch["present"][:, 0]].abs().max()) == 0
    cross = drawn(data, p_self=0.0)
    assert torch.equal(cross["present"][:, 0], cross["id_dlib"].abs().sum(1) > 0) and not cross["present"].all()
    mean = np.mean([row["id_dlib"].astype(np.float64) for row in made if row["id_dlib"] is not None], axis=0)
    np.testing.assert_allclose(data.means()["dlib"].numpy(), mean, atol=1e-6)


def test_draws_are_a_function_of_the_position(tmp_path: Path) -> None:
    data = triplets(tmp_path, rows())
    one, again = (data.draw(Position(7, 1, 1, 2, 2, 0), 4, 0.5) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in (Position(7, 0, 1, 2, 2, 0), Position(7, 1, 0, 2, 2, 0), Position(8, 1, 1, 2, 2, 0), Position(7, 1, 1, 2, 2, 1)):
        assert not torch.equal(one["expression"], data.draw(other, 4, 0.5)["expression"])
    places = [Position(step, micro, rank, 3, 3, seed) for step in range(3) for micro in range(3) for rank in range(3) for seed in range(3)]
    assert len({at.rng().random() for at in places}) == len({at.generator().initial_seed() for at in places}) == 81


def test_a_batch_does_not_share_memory_with_the_data(tmp_path: Path) -> None:
    data = triplets(tmp_path, rows())
    at = Position(0, 0, 0, 1, 1, 0)
    first = data.draw(at, 4, 1.0)
    kept = {name: value.clone() for name, value in first.items()}
    for value in first.values():
        value.zero_()
    assert all(torch.equal(value, kept[name]) for name, value in data.draw(at, 4, 1.0).items())


# --- shards -----------------------------------------------------------------------------------------------------------


def test_only_the_asked_split_is_read(tmp_path: Path) -> None:
    made = rows()
    for row in made[::3]:
        row["split"] = "test"
    assert len(triplets(tmp_path, made)) == 8 and len(triplets(tmp_path, made, "test")) == 5 and len(triplets(tmp_path, made, None)) == 13


def test_several_shards_are_one_data_set(tmp_path: Path) -> None:
    made = rows()
    made[1]["id_dlib"] = None  # in one of them only
    shards = [str(synthetic.training_shard(tmp_path / f"{i}.parquet", PRESET, made[i::2])) for i in range(2)]
    data = Triplets(shards, PRESET.autoencoder.channels, PRESET.latent, ("dlib",))
    assert sources(drawn(data, 1.0), made[::2] + made[1::2])[0] and len(data) == 13
    assert data.present[0].tolist() == [True] * 7 + [False] + [True] * 5


def test_missing_and_empty_shards_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="training shards are missing: .*gone.parquet; run `diffsfsr run prepare"):
        read_shards([str(tmp_path / "gone.parquet")], "train")
    with pytest.raises(NotReady, match="training shards are missing; run"):
        read_shards([], "train")
    shard = synthetic.training_shard(tmp_path / "t.parquet", PRESET, rows(3))
    with pytest.raises(InputError, match="no face of split 'test' in 1 shard.*t.parquet: add photographs or change data.test_fraction"):
        read_shards([str(shard)], "test")


def test_crops_are_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    made = [
        {"face_id": str(i), "person": f"p{i}", "emotion": "joy", "split": "test" if i == 1 else "train"}
        | {"landmarks": np.arange(136, dtype=np.float32) + i, "crop": encode_png(picture)}
        for i, picture in enumerate(pictures)
    ]
    tables.write(tmp_path / "f.parquet", tables.from_rows(made, tables.FACES), "m")
    crops = Crops([str(tmp_path / "f.parquet")], 16)
    assert len(crops) == 2 and crops.people == ["p0", "p2"] and crops.emotions == ["joy", "joy"] and crops.face_ids == ["0", "2"]
    assert Crops([str(tmp_path / "f.parquet")], 16, None, most=2).face_ids == ["0", "2"]
    batch = crops.batch(np.array([1, 0, 1]))
    expected = pictures[[2, 0, 2]].transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(batch["images"].numpy(), expected, atol=1e-6)
    assert batch["landmarks"][:, 0, 0].tolist() == [2, 0, 2] and batch["landmarks"].shape == (3, 68, 2)
