"""The catalogue against brute force over the same rows, real processes that write at once, and the bytes on disk."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from assets.stores.catalogue import Catalogue
from diffsfsr.errors import InputError, NotReady

LABELS = ["happiness", "anger", "contempt"]
SPAWN = multiprocessing.get_context("spawn")  # LanceDB's threads do not survive a fork


def unit_vectors(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def face_rows(count: int, dataset: str = "lfw", **columns: list[Any]) -> pa.Table:
    rows = {
        "face_id": [f"{dataset}/{i:016x}/0" for i in range(count)],
        "dataset": [dataset] * count,
        "split": ["test" if i % 5 == 0 else "train" for i in range(count)],
        "person": [f"person {i // 2}" for i in range(count)],
        "emotion": [LABELS[i % 3] for i in range(count)],
        "path": [f"{i}.jpg" for i in range(count)],
        "expression": list(unit_vectors(count)),
        "expression_version": ["v1"] * count,
    }
    return pa.table(rows | columns)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue é's")


def files_with(folder: Path, needle: bytes) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]


def write_together(uri: str, gate: Any, rounds: int) -> None:
    rows = face_rows(300)
    gate.wait()
    catalogue = Catalogue(uri)
    for _ in range(rounds):
        catalogue.upsert_faces(rows)
        catalogue.put_embeddings("dlib", "v1", rows["face_id"].to_pylist(), unit_vectors(300, 128))
        catalogue.fill("id_dlib", "v1", rows["face_id"].to_pylist(), unit_vectors(300, 128))


def test_two_processes_that_open_and_write_the_same_rows_at_once_leave_one_of_each(tmp_path: Path) -> None:
    gate = SPAWN.Barrier(2)
    writers = [SPAWN.Process(target=write_together, args=(str(tmp_path / "c"), gate, 4)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0, 0]
    catalogue = Catalogue(tmp_path / "c")
    assert catalogue.counts() == {"embeddings_dlib": 300, "faces": 300}
    assert catalogue.duplicates() == 0


def test_a_second_writer_waits_for_the_first(catalogue: Catalogue) -> None:
    second = threading.Thread(target=Catalogue(catalogue.uri).upsert_faces, args=(face_rows(3),))
    with catalogue._writer:
        second.start()
        second.join(0.5)
        assert second.is_alive() and catalogue.counts() == {}
    second.join(30)
    assert catalogue.counts() == {"faces": 3}


def test_duplicates_are_counted(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(4))
    catalogue._db.open_table("faces").add(catalogue.faces().slice(0, 3))  # what a writer beside the lock would do
    assert catalogue.duplicates() == 3


def test_an_upsert_updates_what_it_names_and_keeps_the_rest(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(6))
    ids = face_rows(6)["face_id"].to_pylist()
    changed = pa.table({"face_id": [ids[1], ids[1], "lfw/new/0"], "emotion": ["lost", "anger", "contempt"]})
    assert catalogue.upsert_faces(changed) == 2  # the last of two rows of one key wins
    row = catalogue.faces(face_id=ids[1]).to_pylist()[0]
    assert (row["emotion"], row["person"]) == ("anger", "person 0")
    assert row["expression"] == pytest.approx(unit_vectors(6)[1].tolist())
    assert catalogue.faces(face_id="lfw/new/0").to_pylist()[0]["expression"] is None
    assert catalogue.counts() == {"faces": 7}


def test_a_new_encoder_adds_its_column_and_fills_only_that(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(5))
    before = catalogue.faces().sort_by("face_id")
    ids, vectors = before["face_id"].to_pylist(), unit_vectors(5, 128)
    assert catalogue.fill("id_dlib", "w1", [*ids[:3], "lfw/absent/0"], vectors[:4]) == 3
    after = catalogue.faces().sort_by("face_id")
    assert after.select(before.column_names).equals(before)
    assert after["id_dlib"].to_pylist()[3:] == [None, None]
    np.testing.assert_array_equal(np.stack(after["id_dlib"].to_pylist()[:3]), vectors[:3])
    assert after["id_dlib_version"].to_pylist() == ["w1"] * 3 + [None] * 2
    wide = face_rows(2, "ffhq").append_column("id_facenet", pa.array(list(unit_vectors(2, 8)), pa.list_(pa.float64(), 8)))
    catalogue.upsert_faces(wide)
    assert catalogue.faces(["id_facenet"], dataset="ffhq")["id_facenet"].null_count == 0
    assert catalogue.duplicates() == 0


def test_embeddings_are_cached_by_face_and_weights(catalogue: Catalogue) -> None:
    ids, vectors = [f"a/{i}/0" for i in range(9)], unit_vectors(9, 128)
    assert catalogue.missing("dlib", "v1", ids) == ids
    assert catalogue.put_embeddings("dlib", "v1", ids[:6] + ids[:1], vectors[[0, 1, 2, 3, 4, 5, 5]]) == 6
    assert catalogue.missing("dlib", "v1", ids + ids) == ids[6:]
    assert catalogue.missing("dlib", "v2", ids) == ids
    found = catalogue.get_embeddings("dlib", "v1", ids)
    assert sorted(found) == ids[:6]
    np.testing.assert_array_equal(found[ids[3]], vectors[3])
    np.testing.assert_array_equal(found[ids[0]], vectors[5])
    with pytest.raises(InputError, match="do not fit"):
        catalogue.put_embeddings("dlib", "v1", ids, unit_vectors(9))


@pytest.mark.parametrize("indexed", [False, True])
def test_retrieval_equals_brute_force(catalogue: Catalogue, indexed: bool) -> None:
    rows = face_rows(60, expression=[None if i == 0 else v for i, v in enumerate(unit_vectors(60))])
    catalogue.upsert_faces(rows)
    if indexed:
        catalogue.index()
    ids, vectors = rows["face_id"].to_pylist(), unit_vectors(60)
    angry_test = [i for i in range(1, 60) if i % 3 == 1 and i % 5 == 0]
    assert catalogue.labels() == {"anger": 20, "contempt": 20, "happiness": 19}
    assert catalogue.labels(split="test")["anger"] == len(angry_test)
    found, matrix = catalogue.by_label("anger", split="test", version="v1")
    assert found == [ids[i] for i in angry_test]
    np.testing.assert_array_equal(matrix, vectors[angry_test])
    assert catalogue.by_label("anger", version="other")[1].shape == (0, 16)

    query = unit_vectors(1, seed=9)[0]
    distances = np.linalg.norm(vectors - query, axis=1)
    for label, members in ((None, range(1, 60)), ("anger", [i for i in range(60) if i % 3 == 1])):
        expected = sorted(members, key=lambda i: distances[i])[:7]
        near = catalogue.nearest(query, 7, label=label, version="v1")
        assert near["face_id"].to_pylist() == [ids[i] for i in expected]
        np.testing.assert_allclose(near["distance"].to_numpy(), distances[expected], rtol=1e-4)
    near = catalogue.nearest(query, 3, label="anger", split="test")  # two conditions, an index on one, and a limit
    assert near["face_id"].to_pylist() == [ids[i] for i in sorted(angry_test, key=lambda i: distances[i])[:3]]


def test_a_random_face_is_uniform_in_its_label_and_sees_new_rows(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(30))
    rng = np.random.default_rng(0)
    drawn = [catalogue.random_face("anger", rng, version="v1")["face_id"] for _ in range(200)]
    assert set(drawn) == set(catalogue.by_label("anger")[0])
    assert drawn[:5] == [catalogue.random_face("anger", r)["face_id"] for r in [np.random.default_rng(0)] for _ in range(5)]
    one = face_rows(1, "new", emotion=["awe"])
    with pytest.raises(NotReady, match="awe"):
        catalogue.random_face("awe", rng)
    Catalogue(catalogue.uri).upsert_faces(one)
    assert catalogue.random_face("awe", rng, split="test")["face_id"] == one["face_id"][0].as_py()


def test_a_draw_survives_a_write_between_finding_a_row_and_taking_it(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(3))
    directory, writes = catalogue._directory, [face_rows(3)]

    def and_then_somebody_writes(faces: Any) -> Any:
        found = directory(faces)
        if writes:
            Catalogue(catalogue.uri).upsert_faces(writes.pop())
        return found

    catalogue._directory = and_then_somebody_writes  # type: ignore[method-assign]
    assert catalogue.random_face("anger", np.random.default_rng(0))["emotion"] == "anger"


HOSTILE = ["O'Brien", "x' OR '1'='1", "'; DROP TABLE faces; --", 'a"b', "back\\slash\\'", "%", "_", "名 前\n\t", "''", "é`$(x)"]


def test_hostile_names_are_only_names(catalogue: Catalogue) -> None:
    count = len(HOSTILE)
    catalogue.upsert_faces(face_rows(count, person=HOSTILE, face_id=[f"lfw/{name}/0" for name in HOSTILE]))
    for name in HOSTILE:
        assert catalogue.faces(["person"], person=name)["person"].to_pylist() == [name]
        assert catalogue.missing("dlib", name, [name]) == [name]
        catalogue.put_embeddings("dlib", name, [name], unit_vectors(1))
        assert catalogue.missing("dlib", name, HOSTILE) == [n for n in HOSTILE if n != name]
    assert catalogue.faces(person=HOSTILE).num_rows == count
    assert catalogue.by_label("x' OR '1'='1")[0] == []
    assert catalogue.forget(person="x' OR '1'='1")["faces"] == 1
    assert catalogue.counts()["faces"] == count - 1
    with pytest.raises(InputError, match="did you mean person"):
        catalogue.faces(**{"persn": "x"})
    for wrong in ("a b", "../x", ""):
        with pytest.raises(InputError, match="encoder name"):
            catalogue.missing(wrong, "v", ["a"])


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("whole_table", [False, True])
def test_forgetting_removes_the_bytes(catalogue: Catalogue, indexed: bool, whole_table: bool) -> None:
    count = 2 if whole_table else 40
    folder, ids = Path(catalogue.uri), face_rows(count)["face_id"].to_pylist()
    identity, expression = unit_vectors(count, 128, seed=3), unit_vectors(count)
    people = ["Zebediah O'Brien", "Zebediah O'Brien"] + [f"p{i}" for i in range(2, count)]
    catalogue.upsert_faces(face_rows(count, person=people, path=[f"{p}.jpg" for p in people]))
    catalogue.put_embeddings("dlib", "v1", ids, identity)
    catalogue.fill("id_dlib", "v1", ids, identity)
    catalogue.upsert_faces(pa.table({"face_id": ids, "emotion": ["anger"] * count}))  # older versions hold the bytes too
    if indexed:
        catalogue.index()
        from lancedb.index import IvfFlat

        catalogue._db.open_table("faces").create_index("expression", config=IvfFlat(num_partitions=1))
    secrets = [expression[1].tobytes(), identity[0].tobytes(), identity[1].tobytes(), b"Zebediah", ids[1].encode()]
    assert all(files_with(folder, secret) for secret in secrets)
    assert catalogue.forget(person="Zebediah O'Brien") == {"embeddings_dlib": 2, "faces": 2}
    for secret in secrets:
        assert files_with(folder, secret) == []
    assert catalogue.counts() == {"embeddings_dlib": count - 2, "faces": count - 2}
    assert catalogue.missing("dlib", "v1", ids) == ids[:2]
    if not whole_table:
        assert files_with(folder, expression[5].tobytes())
        assert len(catalogue.by_label("anger")[0]) == count - 2


def test_a_forget_that_was_killed_is_finished_by_the_next(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    from assets.stores import catalogue as module

    catalogue.upsert_faces(face_rows(6))
    catalogue.put_embeddings("dlib", "v1", face_rows(6)["face_id"].to_pylist(), unit_vectors(6, 128))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(module, "purge", lambda table: (_ for _ in ()).throw(KeyboardInterrupt))
        catalogue.forget(person="person 1")
    catalogue.forget(person="person 1")
    assert catalogue.counts() == {"embeddings_dlib": 4, "faces": 4}
    for secret in (unit_vectors(6)[2].tobytes(), unit_vectors(6, 128)[3].tobytes()):
        assert files_with(Path(catalogue.uri), secret) == []


def test_forgetting_by_id_and_by_data_set(catalogue: Catalogue) -> None:
    catalogue.upsert_faces(face_rows(6))
    catalogue.upsert_faces(face_rows(4, "ffhq"))
    catalogue.put_embeddings("dlib", "v1", ["ffhq/orphan/0", "lfw/orphan/0"], unit_vectors(2))
    assert catalogue.forget(face_ids=face_rows(1)["face_id"].to_pylist())["faces"] == 1
    assert catalogue.forget(dataset="lfw", path="3.jpg")["faces"] == 1
    assert catalogue.forget(dataset="ffhq") == {"embeddings_dlib": 1, "faces": 4}
    assert catalogue.counts() == {"embeddings_dlib": 1, "faces": 4}
    with pytest.raises(InputError, match="forget needs"):
        catalogue.forget()


def test_bad_rows_are_refused_whole(catalogue: Catalogue) -> None:
    good = face_rows(2)
    nan = [np.full(16, np.nan, np.float32), unit_vectors(1)[0]]
    bad = {
        "NaN": face_rows(2, expression=nan),
        "face_id": face_rows(2, face_id=["a", None]),
        "did you mean emotion": good.append_column("emotoin", pa.array(["x", "y"])),
        "do not fit": face_rows(2, expression=list(unit_vectors(2, 15))),
        "fixed length": good.append_column("id_new", pa.array([[1.0], [1.0, 2.0]])),
    }
    for message, rows in bad.items():
        with pytest.raises(InputError, match=message):
            catalogue.upsert_faces(rows)
    assert catalogue.counts().get("faces", 0) == 0
    with pytest.raises(InputError, match="shape"):
        catalogue.put_embeddings("dlib", "v1", ["a"], unit_vectors(2))


def test_an_empty_catalogue_answers(catalogue: Catalogue) -> None:
    assert catalogue.counts() == {} and catalogue.labels() == {} and catalogue.duplicates() == 0
    assert catalogue.faces(person="x").num_rows == 0
    assert catalogue.by_label("anger")[1].shape == (0, 16)
    assert catalogue.forget(person="x") == {}
    with pytest.raises(NotReady, match="diffsfsr run prepare"):
        catalogue.nearest(np.zeros(16), 1)


def test_a_damaged_catalogue_says_what_to_do(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.upsert_faces(face_rows(20))
    for file in Path(catalogue.uri).rglob("*.lance"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=r"table faces is damaged .*buffer\): move the catalogue away"):
        catalogue.faces(["face_id", "person"])


def test_a_url_serves_as_a_folder_does(tmp_path: Path) -> None:
    catalogue = Catalogue(f"file-object-store://{tmp_path}/bucket")
    catalogue.upsert_faces(face_rows(5))
    catalogue.put_embeddings("dlib", "v1", ["a/0/0"], unit_vectors(1))
    assert catalogue.forget(face_ids=["a/0/0", "lfw/0000000000000001/0"]) == {"embeddings_dlib": 1, "faces": 1}
    assert files_with(tmp_path, unit_vectors(5)[1].tobytes()) == []
    assert catalogue.labels() == {"contempt": 1, "happiness": 2, "anger": 1}
