"""The state folder: names, shards, networks, and what forgetting leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from assets.embeddings import catalogue_shard
from assets.faces import align_shard, mask_shard
from assets.images import take_stock
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Shard, Workspace, aligned, family, training_shards
from diffsfsr import config, presets, tables
from diffsfsr.errors import InputError, NotReady

TINY = config.override(presets.preset("tiny"), {"data.max_outside": 1.0, "data.shard": 3})


@pytest.mark.parametrize("name", ["lfw", "a-b.c_d", "Zoë", "data-0001", "x..y"])
def test_a_shard_is_found_by_its_key(tmp_path: Path, name: str) -> None:
    shard = Shard(name, 7)
    assert Shard.of(shard.key) == shard
    assert Workspace(tmp_path).file("sources", shard) == tmp_path / "data" / name / "sources" / "0007.parquet"


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a b", "a|b", "new\nline", "a...b", "\0"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a data set"):
        Workspace(tmp_path).dataset(name)


@pytest.mark.parametrize("key", ["lfw", "lfw-1", "lfw-00001x", "-0001"])
def test_what_is_no_shard_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="not a shard"):
        Shard.of(key)


def test_what_is_not_there_is_named_with_what_makes_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.datasets() == [] and workspace.shards() == []
    with pytest.raises(NotReady, match="run prepare"):
        workspace.folder_of("lfw")
    with pytest.raises(NotReady, match="run prepare"):
        workspace.table("aligned-64", [Shard("lfw", 0)])
    with pytest.raises(NotReady, match="run prepare"):
        workspace.table("aligned-64", [])
    with pytest.raises(NotReady, match="preset tiny has no dln yet; run `diffsfsr run train --preset tiny`"):
        workspace.need_network("dln", presets.preset("dln-tiny"))


def test_networks_belong_to_a_family(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "net").mkdir()
    workspace.set_network("dln", presets.preset("dln-tiny"), tmp_path / "net", "v1")
    assert {family(presets.preset(name)) for name in ("tiny", "ae-tiny", "dln-tiny")} == {"tiny"}
    assert workspace.network("dln", presets.preset("tiny")) == (tmp_path / "net", "v1")
    assert workspace.network("dln", presets.preset("lab")) is None and workspace.network("autoencoder", presets.preset("tiny")) is None
    (tmp_path / "net").rmdir()
    assert workspace.network("dln", presets.preset("tiny")) is None  # erased by hand: as if it had not been made


def test_training_shards_are_told_apart_by_what_made_them() -> None:
    parts = [(64, ("dlib",), *pair) for pair in (("a", "b"), ("b", "a"), ("a", "c"), ("c", "b"))]
    names = {training_shards(*each) for each in (*parts, (128, ("dlib",), "a", "b"), (64, ("facenet",), "a", "b"))}
    assert len(names) == 6 and training_shards(64, ("dlib",), "a", "b") in names


def test_labels_that_are_no_words_are_told(tmp_path: Path, tom_hanks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photographs").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(tom_hanks, tmp_path / "photographs" / name)
    (tmp_path / "photographs" / "labels.csv").write_text("file,emotion\na.png,joy\nb.png,flabbergastedness\n")
    take_stock(Workspace(tmp_path / "home"), "photographs", tmp_path / "photographs", TINY)
    assert "photographs: 1 emotion labels are none of the 135 words, first 'flabbergastedness'" in capsys.readouterr().err


# --- forgetting -------------------------------------------------------------------------------------------------------


def prepared(home: Path, *folders: Path) -> Workspace:
    """Folders taken in as data sets of their own names, aligned, masked and catalogued."""
    workspace, catalogue = Workspace(home), Catalogue(home / "catalogue")
    for folder in folders:
        for shard in take_stock(workspace, folder.name, folder, TINY)[0]:
            align_shard(workspace, shard, TINY)
            mask_shard(workspace, shard, TINY)
            faces = tables.read(workspace.file(aligned(TINY), shard), ["face_id"])["face_id"].to_pylist()
            catalogue.put_embeddings("dlib_64", "v", faces or ["none"], np.ones((max(len(faces), 1), 128), np.float32))
            catalogue_shard(workspace, catalogue, shard, TINY)
    return workspace


def people(workspace: Workspace) -> list[tuple[str, str]]:
    """(data set, person) of every aligned face."""
    return sorted((s.dataset, p) for s in workspace.shards() for p in tables.read(workspace.file(aligned(TINY), s))["person"].to_pylist())


@pytest.fixture
def two(tmp_path: Path, six_people: Path, tom_hanks: Path, astronaut: Path) -> Workspace:
    """Two data sets with files of the same names: six people of one photograph beside a rejected one, and two portraits."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    shutil.copy(six_people, first / "1.png")
    (first / "2.png").write_text("broken")
    (first / "labels.csv").write_text("file,person,face\n" + "".join(f"1.png,person-{i},{i}\n" for i in range(6)) + "2.png,person-2,\n")
    shutil.copy(tom_hanks, second / "1.png")
    shutil.copy(astronaut, second / "2.png")
    return prepared(tmp_path / "home", first, second)


OTHERS = [("first", f"person-{i}") for i in (0, 1, 3, 4, 5)]
SECOND = [("second", "1"), ("second", "2")]


def mentions(home: Path, text: bytes) -> list[str]:
    """Tables, whatever their compression, that hold a text."""
    return [f.name for f in (home / "data").rglob("*.parquet") if text in repr(tables.read(f).to_pylist()).encode()]


def test_a_person_is_forgotten_and_nobody_else(two: Workspace, tmp_path: Path) -> None:
    assert people(two) == sorted([*OTHERS, ("first", "person-2"), *SECOND])
    assert two.forget(person="person-2") == 2  # a face and a rejected photograph
    assert people(two) == sorted([*OTHERS, *SECOND]) and mentions(two.home, b"person-2") == []
    for shard in two.shards():
        faces, masks = (tables.read(two.file(kind, shard), ["face_id"])["face_id"].to_pylist() for kind in (aligned(TINY), "masks-64"))
        assert sorted(faces) == sorted(masks)
        assert tables.read(two.file("catalogued-64", shard))["face_id"].to_pylist() == faces
    assert two.forget(person="person-2") == 0 and two.forget(person="") == 0


def test_the_forgotten_do_not_come_back_when_the_folder_is_prepared_again(two: Workspace, tmp_path: Path, tom_hanks: Path) -> None:
    two.forget(person="person-2")
    shutil.copy(tom_hanks, tmp_path / "first" / "new.png")
    prepared(two.home, tmp_path / "first", tmp_path / "second")
    assert people(two) == sorted([*OTHERS, ("first", "new"), *SECOND])
    shutil.copytree(tmp_path / "first", tmp_path / "third")  # the same photographs elsewhere
    prepared(two.home, tmp_path / "third")
    assert ("third", "person-2") not in people(two) and ("third", "person-1") in people(two)


def test_forgetting_looks_at_no_photograph_again(two: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two.forget(person="person-2")
    counts = []
    for name in ("first", "second"):
        shards, changed = take_stock(two, name, tmp_path / name, TINY)
        assert changed == []
        counts += [align_shard(two, shard, TINY) for shard in shards]
    assert sum(counts) == 0


def test_pair_lists_and_outputs_go_with_the_forgotten(two: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the process is killed before it has dropped a row: a second try finds the person by the rows."""
    lists = [two.home / "reports" / "pairs" / f"{name}-all-0123456789.parquet" for name in ("first", "second")]
    made = [two.outputs(name) / "ab" / "abcd.png" for name in ("first", "second")]
    for file in (*lists, *made):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of person-2")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("assets.stores.workspace._drop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        two.forget(person="person-2")
    assert [file.exists() for file in (*lists, *made)] == [False, True, False, True]
    assert two.forget(person="person-2") == 2
    lists[0].write_text("of person-1")
    two.forget(dataset="first")
    assert [file.exists() for file in lists] == [False, True]


def test_what_a_killed_writer_left_is_erased_too(two: Workspace) -> None:
    file = two.file("sources", two.shards("first")[0])
    left = file.with_name(f".{file.name}.abcd1234.parquet")
    left.write_bytes(file.read_bytes()[:200])
    assert two.forget(person="person-2") == 2 and not left.exists() and mentions(two.home, b"person-2") == []


def test_a_damaged_table_is_told_before_anything_is_erased(two: Workspace, tmp_path: Path) -> None:
    shard = two.shards("first")[0]
    file = two.file("masks-64", shard)
    file.write_bytes(file.read_bytes()[:-20])
    before = two.file(aligned(TINY), shard).read_bytes()
    with pytest.raises(InputError, match=r"masks-64/0000.parquet is damaged, .* run `diffsfsr run prepare`"):
        two.forget(person="person-2")
    assert two.file(aligned(TINY), shard).read_bytes() == before and two.forgotten() == set()
    prepared(two.home, tmp_path / "first")
    assert two.forget(person="person-2") == 2
    for sources in (two.file("sources", shard) for shard in two.shards("first")):
        sources.write_bytes(sources.read_bytes()[:-20])
    assert two.forget(dataset="first") == 1 and not two.dataset("first").exists()  # as a whole it goes all the same


def test_a_damaged_record_of_the_forgotten_is_named(two: Workspace, tmp_path: Path) -> None:
    (two.home / "forgotten.json").write_text('[["a"')
    with pytest.raises(InputError, match="forgotten.json is damaged"):
        take_stock(two, "first", tmp_path / "first", TINY)


def test_a_bad_name_leaves_no_lock_behind(two: Workspace) -> None:
    before = sorted(two.home.parent.rglob("*"))
    with pytest.raises(InputError, match="cannot name a data set"):
        two.forget(dataset="../../x")
    assert sorted(two.home.parent.rglob("*")) == before


def test_a_face_is_forgotten_alone(two: Workspace) -> None:
    table = two.table(aligned(TINY), two.shards("first"), ["face_id", "person"]).to_pylist()
    face_id = next(row["face_id"] for row in table if row["person"] == "person-2")
    assert two.forget(face_id=face_id) == 1
    assert people(two) == sorted([*OTHERS, *SECOND]) and mentions(two.home, face_id.encode()) == []


def test_a_data_set_is_forgotten_whole_and_may_come_back(two: Workspace, tmp_path: Path) -> None:
    assert two.forget(dataset="first") == 7
    assert people(two) == SECOND and two.datasets() == ["second"]
    prepared(two.home, tmp_path / "first")
    assert people(two) == sorted([*OTHERS, ("first", "person-2"), *SECOND])


def test_the_catalogue_follows(two: Workspace, tmp_path: Path) -> None:
    catalogue = Catalogue(two.home / "catalogue")

    def catalogued() -> list[tuple[str, str]]:
        return sorted(zip(*(catalogue.faces([c])[c].to_pylist() for c in ("dataset", "person")), strict=True))

    assert catalogued() == people(two) and catalogue.duplicates() == 0
    two.forget(person="person-2")
    prepared(two.home, tmp_path / "first")  # without the catalogue's own forget, bringing it up to date drops the row too
    assert catalogued() == people(two) == sorted([*OTHERS, *SECOND])
    (tmp_path / "second" / "1.png").unlink()
    prepared(two.home, tmp_path / "second")
    assert catalogued() == people(two) == sorted([*OTHERS, ("second", "2")])


def test_a_table_keeps_its_columns_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    tables.write(file, pa.table({"face_id": ["a"], "x": [1.0]}), "m")
    from assets.stores.workspace import _drop

    _drop(file, {"a"}, set())
    assert tables.read(file).num_rows == 0 and tables.read(file).column_names == ["face_id", "x"] and tables.mark_of(file) != "m"
