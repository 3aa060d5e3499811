"""CelebA-HQ in its published layout, and what data sets say of faces besides who they are, all the way to an evaluation's faces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from assets.images import take_stock
from assets.stores.workspace import Workspace
from diffsfsr import presets, tables
from diffsfsr.errors import InputError
from diffsfsr.face import celeba
from diffsfsr.face.collection import PUBLISHED, scan, split_of

ATTRIBUTES = ("5_o_Clock_Shadow", "Eyeglasses", "Male", "Young")


def published(root: Path, count: int = 60, pictures: int = 60) -> Path:
    """CelebAMask-HQ as its archive unpacks, its first pictures: picture i is CelebA's file 1000 - i, of person i // 3."""
    folder = root / "CelebA-HQ-img"
    folder.mkdir(parents=True)
    (root / "CelebAMask-HQ-mask-anno").mkdir()
    Image.new("RGB", (8, 8)).save(root / "CelebAMask-HQ-mask-anno" / "00000_hair.png")
    for i in range(pictures):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.jpg")
    mapping = [f"{i:<8}{999 - i:<12}{original(i)}" for i in range(count)]
    (root / celeba.MAPPING).write_text("\n".join(["idx     orig_idx    orig_file", *mapping]) + "\n")
    (root / celeba.IDENTITY).write_text("".join(f"{original(i)} {i // 3}\n" for i in range(count)))
    return root


def original(i: int) -> str:
    return f"{1000 - i:06}.jpg"


def attributes(path: Path, names: list[str]) -> None:
    """A published text of attributes: picture i is a man where i is even, and wears glasses where it is a multiple of five."""
    rows = [f"{name}  -1  {1 if i % 5 == 0 else -1}  {1 if i % 2 == 0 else -1}  1" for i, name in enumerate(names)]
    path.write_text("\n".join([str(len(names)), " ".join(ATTRIBUTES), *rows]) + "\n")


def test_people_are_those_of_the_published_lists(tmp_path: Path) -> None:
    rows = scan(published(tmp_path / "CelebAMask-HQ"))
    assert {row["path"]: row["person"] for row in rows} == {f"CelebA-HQ-img/{i}.jpg": f"celeba-{i // 3}" for i in range(60)}


@pytest.mark.parametrize(("text", "named"), [("list_attr_celeba.txt", original), ("CelebAMask-HQ-attribute-anno.txt", "{}.jpg".format)])
def test_gender_and_glasses_come_from_either_list(tmp_path: Path, text: str, named) -> None:  # type: ignore[no-untyped-def]
    root = published(tmp_path / "c")
    attributes(root / text, [named(i) for i in range(60)])
    for row in scan(root):
        i = int(Path(row["path"]).stem)
        assert row["labels"] == {"gender": "male" if i % 2 == 0 else "female", "glasses": "glasses" if i % 5 == 0 else "no glasses"}


def test_one_thousand_of_thirty_thousand_are_test_whatever_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = published(tmp_path / "c", pictures=0)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: (root / "CelebA-HQ-img" / f"{i}.jpg" for i in range(30_000)))
    split = {name: line["split"] for name, line in celeba.lines(root / "CelebA-HQ-img", root).items()}
    assert Counter(split.values()) == {"train": 29_000, "test": 1_000}
    numbers = [int(Path(name).stem) for name, way in split.items() if way == "test"]
    assert 12_000 < sum(numbers) / 1000 < 18_000  # spread over all
    monkeypatch.setattr(Path, "glob", lambda self, pattern: (root / "CelebA-HQ-img" / f"{i}.jpg" for i in range(0, 30_000, 7)))
    assert all(split[name] == line["split"] for name, line in celeba.lines(root / "CelebA-HQ-img", root).items())


def test_by_person_nobody_is_on_both_sides_and_at_random_somebody_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celeba, "COUNT", 60)
    monkeypatch.setattr(celeba, "TEST", 12)
    root = published(tmp_path / "c")

    def in_both(rows: list[dict[str, str]]) -> int:
        sides = {person: {row["split"] for row in rows if row["person"] == person} for person in {row["person"] for row in rows}}
        return sum(len(side) == 2 for side in sides.values())

    assert in_both(scan(root)) > 3 and Counter(row["split"] for row in scan(root))["test"] == 12
    rows = scan(root, test_fraction=0.3, way="person")
    assert in_both(rows) == 0 and all(row["split"] == split_of(row["person"], 0.3) for row in rows)
    assert {row["split"] for row in rows} == {"train", "test"}


def test_without_lists_each_picture_is_a_person_and_the_folder_of_pictures_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = published(tmp_path / "c")
    (root / celeba.IDENTITY).unlink()
    rows = scan(root)
    assert {row["person"] for row in rows} == {f"celeba-hq-{i}" for i in range(60)} and "person of its own" in capsys.readouterr().err
    assert [row["path"] for row in scan(root / "CelebA-HQ-img")] == sorted(f"{i}.jpg" for i in range(60))


@pytest.mark.parametrize("name", [celeba.MAPPING, celeba.IDENTITY])
def test_a_damaged_list_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    root = published(tmp_path / "c")
    (root / name).write_text((root / name).read_text() + "000001.jpg\n")
    with pytest.raises(InputError, match=f"{name}, line 6.: 1 words"):
        scan(root)
    (root / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        scan(root)


def test_a_line_of_attributes_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    root = published(tmp_path / "c")
    attributes(root / "list_attr_celeba.txt", [original(i) for i in range(60)])
    text = (root / "list_attr_celeba.txt").read_text()
    (root / "list_attr_celeba.txt").write_text(text.rstrip()[:-3])
    with pytest.raises(InputError, match="3 attributes, the header 4"):
        scan(root)


# --- what else is said of a face -------------------------------------------------------------------------------------------


def folder_with_labels(root: Path) -> Path:
    root.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / f"{i}.png")
    (root / "labels.csv").write_text("file,person,split,gender,glasses\n0.png,a,test,female,\n1.png,a,train,,no glasses\n2.png,b,,,\n")
    return root


def test_other_columns_of_labels_csv_are_labels(tmp_path: Path) -> None:
    rows = {row["path"]: row for row in scan(folder_with_labels(tmp_path / "d"))}
    assert [rows[f"{i}.png"]["labels"] for i in range(4)] == [{"gender": "female"}, {"glasses": "no glasses"}, {}, {}]


def test_labels_are_kept_found_again_and_forgotten_and_make_nothing_anew(tmp_path: Path) -> None:
    folder, workspace, preset = folder_with_labels(tmp_path / "d"), Workspace(tmp_path / "home"), presets.preset("tiny")
    take_stock(workspace, "d", folder, preset)
    assert workspace.labels("d") == {("0.png", ""): {"gender": "female"}, ("1.png", ""): {"glasses": "no glasses"}}
    shard = workspace.shards("d")[0]
    mark = tables.mark_of(workspace.file("sources", shard))
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("female", "male"))
    assert take_stock(workspace, "d", folder, preset)[1] == []  # no face need be aligned again
    assert workspace.labels("d")["0.png", ""] == {"gender": "male"} and tables.mark_of(workspace.file("sources", shard)) == mark
    workspace.forget(person="a")
    assert workspace.labels("d") == {}
    (folder / "labels.csv").unlink()
    take_stock(workspace, "d", folder, preset)
    assert not workspace.file("labels", shard).exists()


def test_the_way_of_splitting_is_remembered(tmp_path: Path) -> None:
    folder, workspace, preset = folder_with_labels(tmp_path / "d"), Workspace(tmp_path / "home"), presets.preset("tiny")

    def splits() -> dict[str, str]:
        return {row["path"]: row["split"] for s in workspace.shards("d") for row in tables.read(workspace.file("sources", s)).to_pylist()}

    take_stock(workspace, "d", folder, preset)
    assert workspace.way_of("d") == PUBLISHED and (splits()["0.png"], splits()["1.png"]) == ("test", "train")
    take_stock(workspace, "d", folder, preset, "person")
    assert splits()["0.png"] == splits()["1.png"] == split_of("a", preset.data.test_fraction)
    take_stock(workspace, "d", folder, preset)
    assert workspace.way_of("d") == "person" and splits()["0.png"] == splits()["1.png"]
