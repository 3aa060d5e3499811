"""Other methods' outputs: read from a folder that says everything wrong once, composed two by two, and sent out and taken back."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffsfsr.errors import InputError
from diffsfsr.evaluation.baselines import AlphaPaste, LandmarkWarp, Untouched
from diffsfsr.evaluation.exchange import export_pairs
from diffsfsr.evaluation.items import Faces, Item, PairList, Picture, pair_list, read_pairs
from diffsfsr.evaluation.methods import MANIFEST, Folder, Hybrid, Method, found_again
from diffsfsr.face.alignment import align_all
from diffsfsr.face.images import read, write_image
from diffsfsr.face.masks import hull_mask
from diffsfsr.face.parsing import parser


@pytest.fixture(scope="module")
def faces(six_people: Path) -> Faces:
    """Six people of one photograph, 96 x 96."""
    found = align_all(read(six_people), 96)
    names = [f"face-{i}" for i in range(6)]
    return Faces(names, names, [face.crop for face in found], np.stack([face.crop_landmarks for face in found]).astype(np.float32))


@pytest.fixture(scope="module")
def pairs(faces: Faces) -> PairList:
    return pair_list(faces, "all", [Item(0, 1, 2), Item(3, 4, 5), Item(0, 5, 1)], [11, 12, 13])


class Drawn:
    """A method that answers by a table: scene -> picture; it remembers what it was asked."""

    name, version = "drawn", "1"

    def __init__(self, faces: Faces, table: dict[int, Picture | None] | None = None) -> None:
        self.faces, self.table, self.asked = faces, table or {}, list[tuple[Item, int]]()

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        self.asked += zip(items, seeds, strict=True)
        return [self.table.get(item.scene) for item in items]


# --- a folder -----------------------------------------------------------------------------------------------------------


def outputs(folder: Path, faces: Faces, *rows: str, header: str = "item,file") -> Path:
    """A folder with three pictures, 0.png to 2.png, and a manifest of those rows."""
    folder.mkdir(exist_ok=True)
    for i in range(3):
        write_image(folder / f"{i}.png", faces.crops[i])
    (folder / MANIFEST).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def test_a_folder_gives_its_pictures_by_item_and_nothing_where_it_has_none(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    folder = Folder(faces, pairs, outputs(tmp_path / "simswap", faces, "2,1.png", "0,"), "SimSwap")
    got = folder(pairs.items, pairs.seeds)
    assert got[0] is None and got[1] is None and np.array_equal(got[2], faces.crops[1])  # type: ignore[arg-type]
    assert folder.name == "SimSwap" and np.array_equal(folder(pairs.items[2:], pairs.seeds[2:])[0], faces.crops[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=pairs.fingerprint):
        folder([Item(1, 1, 1)], [0])


def test_a_folders_version_is_its_pictures(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    def version(*rows: str) -> str:
        return Folder(faces, pairs, outputs(tmp_path / "a", faces, *rows)).version

    first = version("0,0.png", "1,1.png")
    assert first == version("1,1.png", "0,0.png") and len({first, version("0,1.png", "1,0.png"), version("0,0.png")}) == 3
    write_image(tmp_path / "a" / "0.png", faces.crops[5])
    assert Folder(faces, pairs, tmp_path / "a").version not in (first, version("0,0.png"))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["0,0.png", "0,1.png"], "item,file", "line 3: item 0 stands twice"),
        (["0,0.png", "1,0.png"], "item,file", "gives 0.png to several items"),
        (["3,0.png"], "item,file", "line 2: item '3' is not one of 0 to 2"),
        (["-1,0.png"], "item,file", "item '-1' is not one of 0 to 2"),
        (["first,0.png"], "item,file", "item 'first'"),
        (["9" * 5000 + ",0.png"], "item,file", "line 2: item '9{20}' is not one of 0 to 2"),
        (["0,a\0b.png"], "item,file", "line 2: .* cannot be a file's name"),
        (["0," + "a" * 5000 + ".png"], "item,file", "line 2: 'a{80}' cannot be a file's name"),
        (["0,circle.png"], "item,file", "line 2: 'circle.png' cannot be a file's name"),
        (["0,none.png"], "item,file", "none.png is not there; leave `file` empty"),
        (["0,../secret.png"], "item,file", "secret.png lies outside the folder"),
        (["0,/etc/passwd"], "item,file", "/etc/passwd lies outside the folder"),
        (["0,link.png"], "item,file", "link.png lies outside the folder"),
        (["0,text.png"], "item,file", r"text.png: unreadable"),
        (["0,small.png"], "item,file", "small.png has 48 x 40 pixels where the scene's crop has 96 x 96"),
        (["0,0.png,0123456789abcdef"], "item,file,pairs", "line 2: it is of the pair list 0123456789abcdef, not of"),
        (["0,0.png"], "number,picture", "has the columns number, picture; it needs item,file"),
        ([], "", "has the columns none"),
        (['0,"0.png'], "item,file", "is no CSV in UTF-8"),
    ],
)
def test_whatever_is_wrong_with_a_folder_is_named(
    rows: list[str], header: str, message: str, faces: Faces, pairs: PairList, tmp_path: Path
) -> None:
    folder = outputs(tmp_path / "made", faces, *rows, header=header)
    write_image(tmp_path / "secret.png", faces.crops[0])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "text.png").write_text("a picture", encoding="utf-8")
    write_image(folder / "small.png", faces.crops[0][:40, :48])
    with pytest.raises(InputError, match=message) as raised:
        Folder(faces, pairs, folder)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_manifest_is_told_what_one_is(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest.csv is not there: .*columns item,file"):
        Folder(faces, pairs, tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"item,file\n0,\xff\xfe.png\n")
    with pytest.raises(InputError, match="UTF-8"):
        Folder(faces, pairs, tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"")
    with pytest.raises(InputError, match="has the columns none; it needs item,file"):
        Folder(faces, pairs, tmp_path)


# --- one after the other ------------------------------------------------------------------------------------------------


def test_a_hybrid_reenacts_what_the_swap_made(faces: Faces, pairs: PairList) -> None:
    """Each stage is asked for its own task, and the second sees the first one's picture with the face found again in it."""
    seconds: list[Drawn] = []

    def first(over: Faces) -> Method:
        return Drawn(over, {0: faces.crops[3], 3: None})

    def second(over: Faces) -> Method:
        seconds.append(Drawn(over, {0: faces.crops[5]}))
        return seconds[-1]

    hybrid = Hybrid(faces, first, second)
    got = hybrid(pairs.items[:2], pairs.seeds[:2])
    assert hybrid.name == "drawn+drawn" and got[1] is None and np.array_equal(got[0], faces.crops[5])  # type: ignore[arg-type]
    assert hybrid.first.asked == [(Item(0, 1, 0), 11), (Item(3, 4, 3), 12)]  # type: ignore[attr-defined]
    (item, seed), over = seconds[-1].asked[0], seconds[-1].faces
    assert item.scene == item.identity and seed == 11 and len(seconds[-1].asked) == 1
    assert np.array_equal(over.crops[item.scene], faces.crops[3]) and np.array_equal(over.crops[item.expression], faces.crops[2])
    assert np.abs(over.landmarks[item.scene] - faces.landmarks[3]).mean() < 2  # of the picture, not of the scene
    assert np.array_equal(over.landmarks[item.expression], faces.landmarks[2])


def test_a_hybrid_fails_where_the_swap_left_no_face(faces: Faces, pairs: PairList) -> None:
    blank = np.full_like(faces.crops[0], 90)
    hybrid = Hybrid(faces, lambda over: Drawn(over, {0: blank, 3: faces.crops[3]}), Untouched)
    got = hybrid(pairs.items, pairs.seeds)
    assert got[0] is None and got[2] is None and np.array_equal(got[1], faces.crops[3])  # type: ignore[arg-type]
    versions = {Hybrid(faces, a, b).version for a in (AlphaPaste, LandmarkWarp) for b in (AlphaPaste, LandmarkWarp)}
    assert len(versions) == 4


def test_the_face_in_place_is_found_and_no_bystander(faces: Faces) -> None:
    wanted = faces.landmarks[0]
    found = found_again(faces.crops[0], wanted)
    assert found is not None and np.abs(found - wanted).mean() < 2
    assert found_again(faces.crops[0], wanted + 60) is None


# --- out and back -------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_pairs_go_out_and_outputs_come_back(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    """Another program that knows nothing but the files: it returns each identity image, and of item 1 nothing."""
    sent, made = tmp_path / "lfw-all", tmp_path / "made"
    assert export_pairs(sent, faces, pairs, parser("hull").masks) == {"items": 3, "of_faces": 6, "without_scene": 0}
    made.mkdir()
    for row, answer in zip(rows_of(sent / "pairs.csv"), rows_of(sent / MANIFEST), strict=True):
        if row["item"] != "1":
            write_image(made / answer["file"], read(sent / row["identity"]))
    text = (sent / MANIFEST).read_text(encoding="utf-8")
    (made / MANIFEST).write_text(text.replace("00001.png", ""), encoding="utf-8")
    got = Folder(faces, pairs, made)(pairs.items, pairs.seeds)
    assert got[1] is None
    assert np.array_equal(got[0], faces.crops[1]) and np.array_equal(got[2], faces.crops[5])  # type: ignore[arg-type]
    other = pair_list(faces, "all", pairs.items, [1, 2, 3])
    with pytest.raises(InputError, match=f"of the pair list {pairs.fingerprint}, not of {other.fingerprint}"):
        Folder(faces, other, made)


def test_what_goes_out_is_what_we_have(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    export_pairs(tmp_path, faces, pairs, parser("hull").masks, preset="lab")
    assert read_pairs(tmp_path / "pairs.parquet", faces) == pairs
    landmarks = {row.pop("file"): np.array([float(v) for v in row.values()]) for row in rows_of(tmp_path / "landmarks.csv")}
    for row, item, seed in zip(rows_of(tmp_path / "pairs.csv"), pairs.items, pairs.seeds, strict=True):
        assert int(row["seed"]) == seed
        for role in ("scene", "identity", "expression"):
            i = getattr(item, role)
            assert np.array_equal(read(tmp_path / row[role]), faces.crops[i])
            np.testing.assert_allclose(landmarks[row[role]].reshape(68, 2), faces.landmarks[i], atol=6e-4)
        assert np.array_equal(read(tmp_path / row["mask"])[..., 0], 255 * hull_mask(faces.landmarks[item.scene], 96))
    note = (tmp_path / "README.txt").read_text(encoding="utf-8")
    assert pairs.fingerprint in note and "96 x 96" in note and "--preset lab --method NAME --outputs" in note


def test_the_second_stage_of_a_hybrid_gets_the_first_ones_pictures(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    blank = np.zeros_like(faces.crops[0])
    first = {0: faces.crops[3], 1: blank, 2: None}
    assert export_pairs(tmp_path, faces, pairs, parser("hull").masks, first.get) == {"items": 3, "of_faces": 6, "without_scene": 2}
    (row,) = rows_of(tmp_path / "pairs.csv")
    assert row["item"] == "0" and np.array_equal(read(tmp_path / row["scene"]), faces.crops[3])
    assert np.array_equal(read(tmp_path / row["expression"]), faces.crops[2])
    inside = read(tmp_path / row["mask"])[..., 0] > 0
    assert (inside == (hull_mask(faces.landmarks[3], 96) > 0)).mean() > 0.97  # where the face is now, not where the scene's was
    assert [answer["file"] for answer in rows_of(tmp_path / MANIFEST)] == ["00000.png", "", ""]


def test_an_export_goes_on_and_does_not_mix(faces: Faces, pairs: PairList, tmp_path: Path) -> None:
    def masks(crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_pairs(tmp_path, faces, pairs, masks)
    assert not (tmp_path / MANIFEST).exists()
    export_pairs(tmp_path, faces, pairs, parser("hull").masks)
    assert len(rows_of(tmp_path / MANIFEST)) == 3
    other = pair_list(faces, "identity", [Item(0, 1, 0)], [1])
    with pytest.raises(InputError, match="--export-pairs"):
        export_pairs(tmp_path, faces, other, parser("hull").masks)
