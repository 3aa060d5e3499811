"""Where embeddings say that brows are: told from faces, and the facial region that a portrait has by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffsfsr.config import Data
from diffsfsr.encoders import brows
from diffsfsr.encoders.brows import BROWS, Brows
from diffsfsr.errors import InputError
from diffsfsr.face.gestures import gestures, upright
from diffsfsr.face.masks import hull_mask

AT, INNER = slice(17, 27), slice(21, 23)


@pytest.fixture(scope="module")
def points(astronaut: Path) -> np.ndarray:
    from diffsfsr.face.alignment import align
    from diffsfsr.face.images import read

    return align(read(astronaut), 128, Data()).crop_landmarks.astype(np.float64)


def crowd(points: np.ndarray, n: int = 2500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One face's landmarks, of any size and roll: its first expression number raises the brows, its second identity number lowers their
    inner ends, both in eye-to-lip distances."""
    rng = np.random.default_rng(0)
    expression, identity = rng.normal(0, 0.3, (n, 4)), rng.normal(0, 0.3, (n, 6))
    (eyes,), (axes,), (unit,) = upright(points[None])
    own = np.repeat(((points - eyes) @ axes.T / unit)[None], n, 0)
    own[:, AT, 1] -= 0.2 * expression[:, :1]
    own[:, INNER, 1] += 0.1 * identity[:, 1:2]
    roll, size = rng.uniform(-0.4, 0.4, n), rng.uniform(20, 60, n)
    turn = np.stack([np.stack([np.cos(roll), np.sin(roll)], 1), np.stack([-np.sin(roll), np.cos(roll)], 1)], 1)
    return own @ turn * size[:, None, None] + rng.uniform(50, 80, (n, 1, 2)), expression, identity


def told(points: np.ndarray) -> Brows:
    landmarks, expression, identity = crowd(points)
    known = brows.told(landmarks, expression, {"a": identity})
    assert known is not None and sorted(known.moves) == ["a", "expression"]
    return known


def lowered(known: Brows, points: np.ndarray, expression: torch.Tensor, identity: dict[str, torch.Tensor]) -> np.ndarray:
    """(10, 2): how far the brows move to the right and down, in eye-to-lip distances."""
    _, (axes,), (unit,) = upright(points[None])
    return (known.moved(points[None], expression, identity)[0] - points[AT]) @ axes.T / unit


def test_the_frame_of_a_face_goes_with_it(points: np.ndarray) -> None:
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    (origin, axes, unit), (there, turned, larger) = upright(points[None]), upright(points[None] @ turn * 3 + 7)
    np.testing.assert_allclose(there, origin @ turn * 3 + 7)
    np.testing.assert_allclose(turned, axes @ turn, atol=1e-12)
    assert larger[0] == pytest.approx(3 * unit[0]) and axes[0, 1, 1] > 0.9  # down
    np.testing.assert_allclose(gestures(points[None]), gestures(points[None] @ turn * 3 + 7), atol=1e-4)


def test_what_the_face_does_and_whose_it_is_are_told_apart(points: np.ndarray) -> None:
    known, same = told(points), torch.zeros(1, 4)
    raised = lowered(known, points, torch.eye(4)[:1], {"a": torch.zeros(1, 6)})
    np.testing.assert_allclose(raised, [[0, -0.2]] * 10, atol=0.01)
    other = lowered(known, points, same, {"a": torch.eye(6)[1:2], "b": torch.ones(1, 9)})
    np.testing.assert_allclose(other, [[0, 0.1 * (4 <= i < 6)] for i in range(10)], atol=0.01)
    np.testing.assert_allclose(lowered(known, points, same, {}), 0, atol=1e-12)


def test_no_brow_goes_astray(points: np.ndarray) -> None:
    far = lowered(told(points), points, 1e4 * torch.eye(4)[:1], {})
    np.testing.assert_allclose(far, [[0, -0.3]] * 10, atol=1e-6)


def test_a_brow_that_was_found_wrongly_teaches_nothing(points: np.ndarray) -> None:
    landmarks, expression, identity = crowd(points)
    landmarks[:5, 20] += 1e4
    landmarks[5], landmarks[6, 3], expression[7, 1], identity[8, 2] = 4.0, np.nan, np.inf, np.nan  # and what is none at all
    bad = brows.told(landmarks, expression, {"a": identity})
    assert bad is not None and (told(points).moves["expression"] - bad.moves["expression"]).abs().max() < 0.01


def test_too_few_to_tell(points: np.ndarray) -> None:
    landmarks, expression, identity = crowd(points, 1999)
    assert brows.told(landmarks, expression, {"a": identity}) is None
    assert brows.told(np.empty((0, 68, 2)), np.empty((0, 4)), {}) is None


def test_a_region_begins_above_the_brows_of_who_is_shown_and_hides_those_that_were_there(points: np.ndarray) -> None:
    own, up = hull_mask(points, 128).astype(bool), np.array([0, -5.0])
    np.testing.assert_array_equal(hull_mask(points, 128, points[AT]), own)
    high, low = (hull_mask(points, 128, points[AT] + way * up).astype(bool) for way in (1, -1))
    assert (high >= own).all() and high.sum() > own.sum() + 100
    assert (low <= own).all() and low.sum() < own.sum() - 100
    assert hull_mask(points, 128, points[AT] - 8 * up).astype(bool)[tuple(np.rint(points[AT]).astype(int).T[::-1])].all()
    below = int(points[AT, 1].max()) + 10
    assert (high[below:] == own[below:]).all() and (low[below:] == own[below:]).all()


def test_a_file_of_them_comes_back_and_a_broken_one_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert brows.load(tmp_path) is None
    brows.save(None, tmp_path)
    assert not (tmp_path / BROWS).exists()
    known = Brows({"dlib": torch.randn(128, 10), "expression": torch.randn(16, 10)})
    brows.save(known, tmp_path)
    again = brows.load(tmp_path, {"dlib": 128, "expression": 16})
    assert again is not None and all(torch.equal(again.moves[name], part) for name, part in known.moves.items())
    with pytest.raises(ValueError, match="does not fit the embeddings of dlib"):
        brows.load(tmp_path, {"expression": 16})
    for part in (torch.full((16, 10), torch.nan), torch.zeros(16, 10, dtype=torch.int64)):
        save_file({"expression": part}, tmp_path / BROWS)
        with pytest.raises(ValueError, match="no finite numbers in expression"):
            brows.load(tmp_path)
    save_file({"dlib": torch.zeros(128, 10)}, tmp_path / BROWS)
    with pytest.raises(ValueError, match="lacks 'expression'"):
        brows.load(tmp_path)


def test_a_studio_paints_from_above_the_brows_of_who_is_shown(tmp_path: Path, astronaut: Path) -> None:
    """The shipped model, told that one number of an expression raises the brows, and one of an identity."""
    from diffsfsr.face.images import read
    from diffsfsr.portrait import shipped
    from diffsfsr.portrait.compose import Studio

    folder = tmp_path / "starter"
    shutil.copytree(shipped.PLACE, folder)
    moves = {"expression": torch.zeros(16, 10), "dlib": torch.zeros(128, 10)}
    moves["expression"][3], moves["dlib"][5] = -0.2, -1.0
    brows.save(Brows(moves), folder)
    studio, scene = Studio(folder), read(astronaut)
    face = studio.face(scene, "the scene")
    plain = studio.parser.masks(face.crop[None], face.crop_landmarks[None])[0]
    own, who = studio.embed_expression(face), studio.embed_identity([face])
    risen = torch.nn.functional.normalize(own + torch.eye(16)[3])
    _, (axes,), (unit,) = upright(face.crop_landmarks[None])

    def raised(by: float) -> np.ndarray:
        return hull_mask(face.crop_landmarks, 128, face.crop_landmarks[AT] - by * unit * axes[1])

    def mask(told: Studio, **wishes: Any) -> np.ndarray:
        return told.sit([face], scene, risen[0].numpy(), **wishes).mask

    by = 0.2 * float(risen[0, 3] - own[0, 3])
    np.testing.assert_array_equal(mask(studio), raised(by))
    assert mask(studio).sum() > plain.sum()
    np.testing.assert_array_equal(mask(studio, task="identity"), plain)  # with the scene's own expression
    np.testing.assert_array_equal(mask(studio, strength=3.0), mask(studio))  # an exaggerated expression moves it no further
    one = face.crop[None], face.crop_landmarks[None]
    other = {"dlib": who["dlib"] + 0.1 * torch.eye(128)[5]}
    np.testing.assert_array_equal(studio.masks(*one, other, own)[0], raised(0.1))
    np.testing.assert_array_equal(studio.masks(*one, {}, risen)[0], raised(by))  # its encoder is not on this machine
    text = (folder / "preset.json").read_text()
    assert json.loads(text)["sampling"]["own_brows"]
    (folder / "preset.json").write_text(text.replace('"own_brows": true', '"own_brows": false'))
    np.testing.assert_array_equal(mask(Studio(folder)), plain)
    (folder / BROWS).write_bytes(b"short")
    with pytest.raises(InputError, match=r"is no whole model \(.*brows.safetensors"):
        Studio(folder)


def test_the_shipped_model_raises_brows_for_surprise_and_lowers_them_for_anger(astronaut: Path) -> None:
    from diffsfsr.face.images import read
    from diffsfsr.portrait import shipped
    from diffsfsr.portrait.compose import Studio
    from diffsfsr.portrait.words import beside

    studio, words = Studio(shipped.PLACE), beside(shipped.PLACE)
    assert studio.brows is not None and words is not None
    face = studio.face(read(astronaut), "the scene")
    who = {name: part[0] for name, part in studio.embed_identity([face]).items()}

    def top(word: str) -> float:
        """The mean first row of the region, over all that may stand for the word."""
        found = [studio.mask(face, who, torch.from_numpy(words.reference(word, seed).vector)) for seed in range(8)]
        return float(np.mean([mask.any(1).argmax() for mask in found]))

    assert top("surprise") < top("neutral") - 1 and top("neutral") < top("anger")


def test_a_parser_that_sees_the_face_keeps_its_region(astronaut: Path) -> None:
    from diffsfsr.face.images import read
    from diffsfsr.portrait import shipped
    from diffsfsr.portrait.compose import Studio

    class Sees:
        name = "unet"

        def masks(self, crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
            return np.ones(crops.shape[:3], np.uint8)

    studio = Studio(shipped.PLACE)
    face = studio.face(read(astronaut), "the scene")
    studio.parser = Sees()  # type: ignore[assignment]
    assert studio.sit([face], read(astronaut), -studio.embed_expression(face)[0].numpy()).mask.all()
