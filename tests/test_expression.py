"""How good an expression encoder is: the figures against brute force, and on made-up encoders whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from scipy.stats import spearmanr

from diffsfsr import weights
from diffsfsr.encoders.blendshapes import NAMES
from diffsfsr.encoders.dln import Dln
from diffsfsr.evaluation import expression
from diffsfsr.evaluation.expression import Faces, auc, bootstrap, correlation, draw_triplets, measure, nearer_to, plane, retrieved
from diffsfsr.training.data import Crops
from diffsfsr.training.triplets import Labels

PEOPLE = 60
PICTURES = 4  # of each: two happy, two neutral
SMILES = [NAMES.index("mouthSmileLeft"), NAMES.index("mouthSmileRight")]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def faces(sees: str, seed: int = 0) -> Faces:
    """People who each smile by some degree on two pictures and not on two; an encoder that sees the smile, the person, or nothing."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(PEOPLE), PICTURES)
    smile = np.tile([0.0, 0.0, 1.0, 1.0], PEOPLE) * 0.6 + 0.3 * rng.random(len(person))
    who = unit(rng.normal(size=(PEOPLE, 32)))[person] + 0.02 * rng.normal(size=(len(person), 32))
    off_centre = (
        10 + rng.uniform(0.3, 2, (len(person), 1)) * who
    )  # as dlib's: until the mean is gone a cosine tells lengths apart, not people
    turn = smile * np.pi / 2
    vectors = {
        "expression": np.stack([np.cos(turn), np.sin(turn)], 1),
        "identity": unit(who),
        "nothing": unit(rng.normal(size=(len(person), 16))),
    }[sees]
    blendshapes = np.zeros((len(person), 52), np.float32)
    blendshapes[:, SMILES] = smile[:, None]
    labels = ["happiness" if s >= 0.6 else "neutral" for s in smile]
    return Faces(vectors.astype(np.float32), off_centre.astype(np.float32), [f"p{i}" for i in person], labels, blendshapes)


def values(sees: str) -> dict[str, float]:
    found = measure(faces(sees, 0), faces(sees, 1), draws=20)
    assert all(interval.low <= interval.mean <= interval.high for interval in found.values() if interval.high > interval.low)
    return {name: interval.mean for name, interval in found.items()}


def test_an_encoder_that_sees_the_expression_alone() -> None:
    found = values("expression")
    assert found["happiness_auc"] == found["happiness_auc_smile"] == 1.0
    assert found["triplets_labels"] == found["triplets_blendshapes"] == 1.0
    assert found["blendshape_correlation"] > 0.999
    assert found["identity_top1"] < 0.08 and found["identity_top1_twin"] == 1.0  # chance is 1 in 60, twice that as two smile
    assert found["identity_leakage"] == pytest.approx(found["identity_top1"])


def test_an_encoder_that_sees_the_person_alone() -> None:
    found = values("identity")
    assert found["identity_top1"] == found["identity_top1_twin"] == found["identity_leakage"] == 1.0
    assert abs(found["happiness_auc"] - 0.5) < 0.1 and abs(found["happiness_auc_twin"] - 0.5) < 0.1
    assert found["triplets_labels"] < 0.3  # the anchor's own person among the negatives
    assert abs(found["blendshape_correlation"]) < 0.1


def test_an_encoder_that_sees_nothing() -> None:
    found = values("nothing")
    assert abs(found["happiness_auc"] - 0.5) < 0.1 and abs(found["triplets_labels"] - 1 / 3) < 0.06
    assert abs(found["blendshape_correlation"]) < 0.06 and found["identity_top1"] < 0.06


def test_what_the_faces_do_not_allow_is_absent() -> None:
    whole = faces("expression")
    n = len(whole.people)
    bare = Faces(whole.expression, whole.identity, [""] * n, [""] * n)  # nobody is anybody else
    assert measure(bare, whole, draws=3) == {}
    taught = Faces(whole.expression, whole.identity, whole.people, [""] * n, whole.blendshapes)
    names = {"triplets_blendshapes", "blendshape_correlation", "identity_top1", "identity_top1_twin", "identity_leakage"}
    assert measure(taught, taught, draws=3).keys() == names
    annotated = measure(bare, whole, annotations=Labels(whole.labels, whole.people), draws=3)
    assert annotated.keys() == {"triplets_annotations"} and annotated["triplets_annotations"].mean == 1.0


def test_auc_and_correlation_are_their_definitions_with_items_counted_often() -> None:
    rng = np.random.default_rng(0)
    score, positive, weight = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4, rng.integers(0, 4, 40)
    wins = total = 0.0
    for i in range(40):
        for j in range(40):
            if positive[i] and not positive[j]:
                wins += weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
                total += weight[i] * weight[j]
    assert auc(score, positive, weight) == pytest.approx(wins / total)
    assert np.isnan(auc(score, positive, weight * positive))
    other = score + rng.normal(0, 3, 40)
    often = np.repeat(np.arange(40), weight)
    assert correlation(score, other, weight) == pytest.approx(spearmanr(score[often], other[often])[0])
    assert correlation(other, np.exp(other), weight) == pytest.approx(1) and np.isnan(correlation(score * 0, other, weight))


def test_nearer_to_is_a_difference_of_distances() -> None:
    one, other = np.array([[2.0, 0], [4, 0]]), np.array([[0.0, 4]])
    assert nearer_to(np.array([[3.0, 0], [0, 4], [0, 0]]), one, other).tolist() == [5, -5, 1]


def test_retrieval_is_the_nearest_of_the_gallery() -> None:
    rng = np.random.default_rng(0)
    vectors, people = rng.normal(size=(30, 3)), [str(i % 8) for i in range(30)]
    gallery, probes = np.arange(8), np.arange(8, 30)
    want = []
    for i in probes:
        cosines = [v @ vectors[i] / np.linalg.norm(v) for v in vectors[gallery]]
        want.append(people[int(np.argmax(cosines))] == people[i])
    assert retrieved(vectors, people, gallery, probes).tolist() == want and 0 < np.mean(want) < 1
    assert not retrieved(np.ones((30, 3)), people, gallery, probes).any()  # who finds all faces alike finds nobody


def test_the_bootstrap_draws_people_and_not_pictures() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=200)
    people = [str(i) for i in range(200)]

    def mean_of(x: np.ndarray) -> expression.Statistic:
        return lambda w: float((w * x).sum() / w.sum())

    alone = bootstrap(mean_of(one), people, n=2000)
    assert alone.count == 200 and alone.mean == pytest.approx(one.mean())
    error = 1.96 * one.std() / 200**0.5
    assert alone.low == pytest.approx(one.mean() - error, abs=0.15 * error) and alone.high == pytest.approx(
        one.mean() + error, abs=0.15 * error
    )
    copies = bootstrap(mean_of(np.repeat(one, 5)), np.repeat(people, 5).tolist(), n=2000)
    assert (copies.low, copies.high, copies.count) == pytest.approx((alone.low, alone.high, 200))  # five copies say no more than one


def test_triplets_are_drawn_as_in_training() -> None:
    labels, people = ["x", "y"] * 50, [str(i) for i in range(100)]
    rows = draw_triplets(Labels(labels, people), 250)
    assert rows.shape == (250, 3) and all(labels[a] == labels[p] != labels[n] and a != p for a, p, n in rows.tolist())
    assert np.array_equal(rows, draw_triplets(Labels(labels, people), 250))


def test_encoding_is_that_of_the_network_and_its_twin(six_people: Path, tmp_path: Path) -> None:
    shard = synthetic.face_shard(tmp_path / "f.parquet", synthetic.faces(six_people, 64), ["joy", "anger"] * 3)
    crops, dln = Crops([str(shard)], 64), Dln.from_identity(weights.resolve("dlib-face"))
    dln.drift.normal_(generator=torch.Generator().manual_seed(0))
    made = expression.encode(dln, crops, batch=4)
    batch = crops.batch(np.arange(6))
    with torch.no_grad():
        np.testing.assert_allclose(made.expression, dln(batch["images"], batch["landmarks"]), atol=1e-5)
        twin = dln.frozen(dln.backbone.chips(batch["images"], batch["landmarks"]))
    np.testing.assert_allclose(made.identity, twin, atol=1e-5)
    assert made.people == crops.people and made.labels == ["joy", "anger"] * 3


def test_the_plane_keeps_what_lies_in_one() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(40, 2)) * [3, 1]
    turned = flat @ np.linalg.qr(rng.normal(size=(16, 2)))[0].T + 5
    points = plane(turned)
    apart = np.linalg.norm(flat[:, None] - flat, axis=2)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points, axis=2), apart, atol=1e-9)
    assert points[:, 0].std() > points[:, 1].std()


def test_a_map_colours_the_frequent_names() -> None:
    whole = faces("expression")
    for picture in expression.maps(whole).values():
        assert picture.dtype == np.uint8 and picture.shape == (500, 600, 3)
    spread = np.random.default_rng(0).normal(size=(300, 16))

    def pixels(names: list[str], colour: tuple[int, int, int]) -> int:
        image = expression.embedding_map(spread, names, "a map", most=2).astype(int)
        return int((np.abs(image - colour).max(2) < 12).sum())

    blue, orange, grey = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (204, 204, 204)
    names = ["a"] * 200 + ["b"] * 60 + ["c"] * 30 + [""] * 10
    assert pixels(names, blue) > 1.5 * pixels(names, orange) > 100
    assert pixels(names, grey) > pixels(["a"] * 240 + ["b"] * 60, grey)
