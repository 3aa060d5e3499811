"""What glasses do to an identity embedding: told from faces whose wearers differ from others in more than that, and taken off."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsfsr.encoders import glasses
from diffsfsr.encoders.brows import BROWS
from diffsfsr.encoders.glasses import GLASSES, Glasses
from diffsfsr.errors import InputError
from diffsfsr.face.masks import hull_mask

PUT_ON, OLDER = np.eye(24)[0], np.eye(24)[1]


def crowd(people: int = 300, photographs: int = 4) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings (n, 24): who wears glasses, three of four times, is older; whoever puts them on moves along PUT_ON alone."""
    rng = np.random.default_rng(0)
    wearer = rng.random(people) < 0.3
    who = rng.normal(0, 0.3, (people, 24)) + wearer[:, None] * OLDER
    wears = (rng.random((people, photographs)) < 0.75) & wearer[:, None]
    seen = who[:, None] + wears[..., None] * PUT_ON + rng.normal(0, 0.1, (people, photographs, 24))
    return seen.reshape(-1, 24), wears.ravel(), [f"p{i // photographs}" for i in range(people * photographs)]


def test_putting_them_on_is_told_from_who_wears_them() -> None:
    seen, wears, names = crowd()
    own = glasses.told(seen, wears, names)
    assert own is not None
    score = own.score(torch.from_numpy(seen).float()).numpy()
    assert score[wears].mean() == pytest.approx(1, abs=1e-3) and score[~wears].mean() == pytest.approx(-1, abs=1e-3)
    assert ((score > 0) == wears).mean() > 0.95
    shift = own.shift.double().numpy()
    assert shift @ PUT_ON / np.linalg.norm(shift) > 0.98  # the means of the two kinds of faces differ as much in age
    apart = seen[wears].mean(0) - seen[~wears].mean(0)
    assert apart @ PUT_ON / np.linalg.norm(apart) < 0.8
    assert float(own.normal @ own.shift) == pytest.approx(2, abs=1e-4)


def test_too_few_to_tell() -> None:
    seen, wears, names = crowd()
    assert glasses.told(seen, np.zeros_like(wears), names) is None
    assert glasses.told(seen, np.ones_like(wears), names) is None
    assert glasses.told(seen[:100], wears[:100], names[:100]) is None
    assert glasses.told(seen, wears, [f"{name}{worn}" for name, worn in zip(names, wears, strict=True)]) is None  # nobody with and without
    assert glasses.told(np.empty((0, 24)), np.empty(0, bool), []) is None
    assert glasses.told(np.full_like(seen, np.nan), wears, names) is None
    assert glasses.told(np.ones_like(seen), wears, names) is None  # and what cannot tell them


def test_several_recognisers_tell_who_wears_them() -> None:
    """A rule that sees a third of them, and takes one of fifty others for one; two recognisers that see them otherwise, one not of all."""
    seen, wears, names = crowd(people=600)
    rng = np.random.default_rng(1)
    seem = np.where(wears, rng.random(len(wears)) < 0.33, rng.random(len(wears)) < 0.02)
    views = {name: seen @ rng.normal(size=(24, 24)) + rng.normal(0, 0.6, seen.shape) for name in ("a", "b")}
    views["b"][::7] = np.nan
    found = glasses.worn(views, seem, names)
    assert (found == wears).mean() > 0.93 > (seem == wears).mean() + 0.05
    alone = glasses.worn({"a": views["a"]}, seem, names)
    assert (alone == wears).mean() < (found == wears).mean()
    nothing = np.full((len(seem), 24), np.nan)
    assert np.array_equal(glasses.worn(views | {"c": nothing}, seem, names), found)  # who knows nobody says nothing
    assert np.array_equal(glasses.worn({"a": nothing}, seem, names), seem)
    few = slice(0, 80)
    assert np.array_equal(glasses.worn({"a": views["a"][few]}, seem[few], names[few]), seem[few])
    assert np.array_equal(glasses.worn({}, seem, names), seem)


def axis(width: int = 4) -> Glasses:
    """Scores an embedding by its first number."""
    first = torch.eye(width)[0]
    return Glasses(first, torch.tensor(0.0), 2 * first + 2 * torch.eye(width)[1])


def test_who_wears_them_by_all_encoders_that_tell() -> None:
    known = {"a": axis(4), "b": axis(2)}
    identity = {"a": torch.tensor([[2.0, 0, 0, 0], [2.0, 0, 0, 0], [-1.0, 9, 9, 9]]), "b": torch.tensor([[-1.0, 0], [-3.0, 0], [0.5, 0]])}
    assert glasses.wearers(identity, known).tolist() == [True, False, False]
    assert glasses.wearers({"a": identity["a"]}, known).tolist() == [True, True, False]
    assert glasses.wearers(identity, {}).tolist() == glasses.wearers({"c": torch.ones(3, 8)}, known).tolist() == [False] * 3


@pytest.mark.parametrize(("own", "bare"), [(3.0, -1.0), (-0.5, -1.0), (-1.1, -1.1), (-2.5, -2.5)])
def test_who_wears_them_is_shown_without(own: float, bare: float) -> None:
    changed = glasses.taken_off({"a": torch.tensor([[own, 0.0, 7.0, 7.0]])}, {"a": axis()})["a"]
    torch.testing.assert_close(changed, torch.tensor([[bare, bare - own, 7.0, 7.0]]))


def test_each_item_and_encoder_for_itself_and_one_that_cannot_tell_stays() -> None:
    identity = {"a": torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]]), "b": torch.tensor([[-1.5, 0], [1.0, 0]]), "c": torch.ones(2, 8)}
    bare = glasses.taken_off(identity, {"a": axis(4), "b": axis(2), "d": axis(3)})
    assert bare["a"][:, 0].tolist() == [-1, -2] and bare["b"][:, 0].tolist() == [-1.5, -1]
    assert bare["c"] is identity["c"] and list(bare) == ["a", "b", "c"]
    assert glasses.taken_off(identity, {})["a"] is identity["a"] and glasses.taken_off({}, {"a": axis()}) == {}


def test_a_file_of_them_comes_back_and_a_broken_one_is_told(tmp_path: Path) -> None:
    assert glasses.load(tmp_path) == {}
    glasses.save({}, tmp_path)
    assert not (tmp_path / GLASSES).exists()
    known = {"dlib": axis(128), "mobileface_v2": axis(256)}
    glasses.save(known, tmp_path)
    again = glasses.load(tmp_path)
    assert list(again) == list(glasses.load(tmp_path, {"dlib": 128, "mobileface_v2": 256, "expression": 16})) == ["dlib", "mobileface_v2"]
    for dims in ({"dlib": 128, "mobileface_v2": 128}, {"dlib": 128}):
        with pytest.raises(ValueError, match="does not fit the embeddings of mobileface_v2"):
            glasses.load(tmp_path, dims)
    for name, own in known.items():
        assert all(torch.equal(a, b) for a, b in zip(dataclasses.astuple(own), dataclasses.astuple(again[name]), strict=True))
    from safetensors.torch import save_file

    glasses.save({"dlib": dataclasses.replace(axis(128), offset=torch.tensor(torch.nan))}, tmp_path)
    with pytest.raises(ValueError, match="no finite numbers in dlib.offset"):
        glasses.load(tmp_path)
    save_file({"dlib.normal": torch.zeros(128)}, tmp_path / GLASSES)
    with pytest.raises(ValueError, match="lacks 'dlib.offset'"):
        glasses.load(tmp_path)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[], Path]:
    from diffsfsr.portrait import shipped

    def copy() -> Path:
        shutil.copytree(shipped.PLACE, tmp_path / "starter")
        return tmp_path / "starter"

    return copy


def test_a_studio_paints_whom_its_preset_says_without(
    copied: Callable[[], Path], astronaut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped model, with glasses that the selfie scores as wearing."""
    import json

    from diffsfsr.face.images import read, to_tensor
    from diffsfsr.portrait.compose import Studio

    folder = copied()
    assert json.loads((folder / "preset.json").read_text())["sampling"]["without_glasses"]
    (folder / GLASSES).unlink()
    plain = Studio(folder)
    face = plain.face(read(astronaut), "the selfie")
    who = plain.embed_identity([face])["dlib"]
    normal = who[0] / who.square().sum()
    own = Glasses(normal, torch.tensor(0.5), torch.randn(128, generator=torch.Generator().manual_seed(0)) * 0.02)  # a score of 1.5
    glasses.save({"dlib": own}, folder)
    given = to_tensor(face.crop), plain.parser.masks(face.crop[None], face.crop_landmarks[None]), face.crop_landmarks[None]
    expression = plain.embed_expression(face)

    def made(studio: Studio, identity: torch.Tensor) -> np.ndarray:
        return studio.generate(*given, {"dlib": identity}, expression, [1], 2)

    bare = made(Studio(folder), who)
    assert np.array_equal(bare, made(plain, who - 1.25 * own.shift)) and not np.array_equal(bare, made(plain, who))
    for studio, told in ((Studio(folder), True), (plain, False)):
        studio.sit([face], read(astronaut), None, task="identity")
        assert ("the scene's face seems to wear glasses" in capsys.readouterr().err) == told
    one, hull = (face.crop[None], face.crop_landmarks[None], {"dlib": who}, expression), plain.masks
    assert Studio(folder).masks(*one)[0].sum() > hull(*one)[0].sum()  # with the scene's frame
    (folder / BROWS).unlink()
    wide = hull_mask(face.crop_landmarks, 128, glasses=True)
    np.testing.assert_array_equal(Studio(folder).masks(*one)[0], wide)
    glasses.save({"dlib": dataclasses.replace(own, offset=torch.tensor(-1.5))}, folder)  # a score of -.5
    np.testing.assert_array_equal(Studio(folder).masks(*one)[0], hull_mask(face.crop_landmarks, 128))
    glasses.save({"dlib": own}, folder)
    text = (folder / "preset.json").read_text()
    (folder / "preset.json").write_text(text.replace('"without_glasses": true', '"without_glasses": false'))
    assert np.array_equal(made(Studio(folder), who), made(plain, who))
    np.testing.assert_array_equal(Studio(folder).masks(*one)[0], hull_mask(face.crop_landmarks, 128))
    (folder / GLASSES).write_bytes(b"short")
    with pytest.raises(InputError, match="is no whole model"):
        Studio(folder)
