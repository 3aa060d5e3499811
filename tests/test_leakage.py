"""What training may have seen of the test faces, against brute force and against leaks planted by hand."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from assets import unseen
from assets.checks import leakage_check
from assets.stores.catalogue import Catalogue
from diffsfsr import presets
from diffsfsr.evaluation import leakage


def brute(train: np.ndarray, train_people: list[str], test: np.ndarray, test_people: list[str]) -> list[tuple[int, float]]:
    """The nearest of another name, one cosine at a time."""
    mean = train.mean(axis=0)
    found = []
    for vector, name in zip(test, test_people, strict=True):
        best = (-1, -np.inf)
        for i, (other, other_name) in enumerate(zip(train, train_people, strict=True)):
            a, b = vector - mean, other - mean
            cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
            if (not name or name != other_name) and cosine > best[1]:
                best = (i, cosine)
        found.append(best)
    return found


def test_nearest_is_what_brute_force_finds_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(2, 1, (83, 7)), rng.normal(2, 1, (31, 7))
    people = [f"p{i % 20}" if i % 5 else "" for i in range(83)]
    others = [f"p{i % 25}" if i % 4 else "" for i in range(31)]
    monkeypatch.setattr(leakage, "_SAMPLED", 100)
    wanted = brute(train, people, test, others)
    for block in (2048, 10, 1):
        monkeypatch.setattr(leakage, "_BLOCK", block)
        found = leakage.find(train, people, test, others, threshold=-2.0)
        by_test = {s.test: (s.train, s.cosine) for s in found.suspects}
        assert [by_test[i][0] for i in range(31)] == [i for i, _ in wanted]
        assert [by_test[i][1] for i in range(31)] == pytest.approx([c for _, c in wanted], abs=1e-5)
        cosines = [s.cosine for s in found.suspects]
        assert cosines == sorted(cosines, reverse=True)


def test_planted_leaks_are_found_and_nothing_else() -> None:
    """A photograph is its person's direction and noise. Of the test people three are in training by other names, two by their own."""
    rng = np.random.default_rng(1)
    people = rng.normal(size=(400, 128))

    def photographs(who: list[int]) -> np.ndarray:
        return people[who] + rng.normal(0, 0.5, (len(who), 128)) + 3.0  # far from the origin, as dlib's are

    train = [i for i in range(300) for _ in range(5)]
    test = [*range(300, 400), 7, 8, 9, 20, 21]
    names = [f"n{i}" for i in range(300, 400)] + ["alias seven", "", "alias nine", "n20", "n21"]
    found = leakage.find(photographs(train), [f"n{i}" for i in train], photographs(test), names)
    assert {(s.test, train[s.train]) for s in found.suspects[:3]} == {(100, 7), (101, 8), (102, 9)}
    assert min(s.cosine for s in found.suspects[:3]) > 0.6 and all(s.cosine < 0.5 for s in found.suspects[3:])
    assert len(found.suspects) < 8  # by chance about one, and one person's photographs come together
    assert found.shared == {"n20": (5, 1), "n21": (5, 1)} and found.shared_faces == 2
    assert (found.train, found.test) == (1500, 105)
    assert found.strangers[0] == pytest.approx(0.0, abs=0.02) and found.strangers[1] == pytest.approx(1 / np.sqrt(128), rel=0.1)
    # Such pairs are normal: of 1500 * 105 one is beyond 4.36 standard deviations.
    assert (found.threshold - found.strangers[0]) / found.strangers[1] == pytest.approx(4.36, abs=0.02)


def test_strangers_alone_raise_about_one_suspicion() -> None:
    counts = []
    for seed in range(12):
        vectors = np.random.default_rng(seed).normal(size=(700, 256))
        names = [f"p{i}" for i in range(700)]
        counts.append(len(leakage.find(vectors[:600], names[:600], vectors[600:], names[600:]).suspects))
    assert 0.3 < np.mean(counts) < 3


def test_people_in_both_are_counted_by_name() -> None:
    found = leakage.shared_people(["a", "a", "b", "", "c"], ["b", "b", "c", "", "d"])
    assert found == {"b": (1, 2), "c": (1, 1)} and list(found) == ["b", "c"]


def test_faces_without_embedding_or_split_raise_no_suspicion() -> None:
    rng = np.random.default_rng(2)
    train, test = rng.normal(size=(50, 16)), rng.normal(size=(5, 16))
    train[3], test[1], test[2] = np.nan, np.nan, np.inf
    test[0] = train[7]
    found = leakage.find(train, ["x"] * 25 + ["y"] * 25, test, ["z"] * 5, threshold=0.99)
    assert [(s.test, s.train) for s in found.suspects] == [(0, 7)]
    nothing = np.zeros((0, 16))
    assert leakage.find(nothing, [], test, ["z"] * 5).suspects == [] and leakage.find(train, ["x"] * 50, nothing, []).suspects == []


def test_sharpness_is_the_share_of_people_that_would_be_found() -> None:
    """Of people with two photographs, by how much those differ. Whoever has one photograph or no name says nothing."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(200, 64))
    noise = np.where(np.arange(200) < 150, 0.2, 30.0)[:, None]  # a quarter of the people are not to be known again
    train = np.concatenate([base, base + noise * rng.normal(size=base.shape), rng.normal(size=(80, 64))])
    names = [f"p{i}" for i in range(200)] * 2 + [f"single{i}" for i in range(40)] + [""] * 40
    assert leakage.sharpness(train, names, 100) == pytest.approx(0.75, abs=0.02)
    assert np.isnan(leakage.sharpness(train[:200], names[:200], 100)) and np.isnan(leakage.sharpness(np.zeros((0, 4)), [], 3))


def test_a_person_is_left_out_where_half_of_their_faces_are_suspected() -> None:
    names = ["ann"] * 4 + ["bob"] * 4 + ["", ""] + ["eve"] * 2
    suspects = [leakage.Suspect(i, 0, 0.9) for i in (0, 3, 5, 8)]
    leaks = leakage.Leakage(1, 12, {"eve": (1, 2)}, suspects, 0.5, (0.0, 0.1))
    assert leakage.seen(leaks, names) == {0, 1, 2, 3, 5, 8, 10, 11}
    assert leakage.seen(leakage.Leakage(1, 12, {}, [], 0.5, (0.0, 0.1)), names) == set()


def test_the_sharpest_recogniser_compares() -> None:
    """One that tells nobody apart comes first in the preset's order; one that does finds the leak."""
    preset, rng = presets.preset("starter"), np.random.default_rng(6)
    names = [f"p{i // 2}" for i in range(80)]
    sharp = np.repeat(rng.normal(size=(40, 128)), 2, 0) + rng.normal(0, 0.1, (80, 128))
    sharp[79] = sharp[3]  # of another data set
    rows = [{"face_id": f"d{i > 70}/{i}/0", "person": names[i], "path": f"{i}.png"} for i in range(80)]

    class Stored:
        columns: tuple[str, ...] = ("id_dlib", "id_mobilefacenet_arcface")
        backwards = False

        def faces(self, columns: list[str], split: str, size: int) -> pa.Table:
            vectors = rng.normal(size=(80, 128)) if columns[-1] == "id_dlib" else sharp
            part = slice(0, 70) if split == "train" else slice(70, 80)
            column = pa.FixedSizeListArray.from_arrays(pa.array(np.float32(vectors[part]).ravel()), 128)
            table = pa.Table.from_pylist(rows[part]).append_column(columns[-1], column)
            return table.take(list(range(len(table)))[:: -1 if self.backwards else 1])

    found = unseen.compare(Stored(), preset)  # type: ignore[arg-type]
    assert found is not None and found.encoder == "mobilefacenet_arcface"
    assert [s.test for s in found.leaks.suspects] == [9] and found.people("test")[9] == "p39"
    plain, Stored.backwards = found, True
    found = unseen.compare(Stored(), preset)  # type: ignore[arg-type]
    assert found is not None and (found.leaks, found.rows) == (plain.leaks, plain.rows)  # the store's own order changes nothing
    Stored.columns = ()
    assert unseen.compare(Stored(), preset) is None  # type: ignore[arg-type]


def test_the_papers_size_takes_seconds_and_little_memory() -> None:
    rng = np.random.default_rng(3)
    train, test = (rng.standard_normal((n, 512), dtype=np.float32) for n in (30_000, 1_000))
    test[5] = train[29_000]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = leakage.find(train, [str(i // 3) for i in range(30_000)], test, [f"t{i}" for i in range(1_000)])
    assert found.suspects[0].test == 5 and found.suspects[0].train == 29_000
    assert time.process_time() - started < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300e6  # all cosines at once would be 120e6 and copies


def test_the_check_of_a_catalogue_names_people_and_pairs_and_warns(tmp_path: Path) -> None:
    """Faces of another size, and faces without an embedding, are none of the preset's."""
    preset, rng = presets.preset("tiny"), np.random.default_rng(4)
    catalogue, encoder = Catalogue(tmp_path / "catalogue"), preset.conditioning.identity[0]
    vectors = rng.normal(size=(60, 128)).astype(np.float32)
    vectors[50] = vectors[3] + 0.01
    people = [f"p{i}" for i in range(60)]
    people[51] = "p4"
    rows = {"face_id": [f"d/{i}/0" for i in range(60)], "path": [f"{i}.png" for i in range(60)], "person": people}
    rows |= {"split": ["train"] * 50 + ["test"] * 10, "size": [preset.crop] * 58 + [preset.crop * 2] * 2}
    embedded = pa.array([v.tolist() if i != 57 else None for i, v in enumerate(vectors)], pa.list_(pa.float32(), 128))
    catalogue.upsert_faces(pa.table(rows | {f"id_{encoder}": embedded, f"id_{encoder}_version": ["v"] * 60}))
    found = leakage_check(catalogue, preset)
    told = {name: entry.value for name, entry in found.metadata.items()}
    assert not found.passed and found.severity == dg.AssetCheckSeverity.WARN
    assert (told["train"], told["test"], told["people_in_both"], told["test_faces_of_people_in_both"]) == (50, 7, 1, 1)
    assert told["pairs"].splitlines()[2].endswith("| 50.png | 3.png |") and told["encoder"] == encoder
    assert told["left_out_of_evaluations"] == told["suspects_by_embedding"] + 1  # whoever is in both by name
    catalogue.forget(person="p4")
    assert leakage_check(catalogue, preset).passed
    empty = leakage_check(Catalogue(tmp_path / "empty"), preset)
    assert empty.passed and "no face" in str(empty.metadata["compared"].value)
