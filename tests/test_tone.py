"""The scene's light on a painted face: casts and shadows come over, features and holes stay, and nothing outside the mask changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from diffsfsr.config import Data
from diffsfsr.face import tone
from diffsfsr.face.alignment import align
from diffsfsr.face.images import read
from diffsfsr.face.masks import hull_mask

BROWN = np.array([150.0, 105.0, 85.0])


def face(cast: float | np.ndarray = 1.0, mouth: int = 20) -> np.ndarray:
    """An even face with two eyes and a mouth of their own brightness, under a light."""
    crop = np.ones((128, 128, 3)) * BROWN
    crop[45:51, 38:52] = crop[45:51, 76:90] = 40
    crop[88:98, 50:78] = mouth
    return np.clip(crop * cast, 0, 255).astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    rows, columns = np.mgrid[:128, :128]
    return (((rows - 66) / 56) ** 2 + ((columns - 64) / 44) ** 2 < 1).astype(np.uint8)


def lab(crop: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def test_a_cast_and_a_shadow_come_over(mask: np.ndarray) -> None:
    left_to_right = np.linspace(1.5, 0.4, 128)[None, :, None] * np.array([1.05, 1.0, 0.9])
    scene = face(left_to_right)
    lit = tone.matched(face(0.9), scene, mask)
    for column in (35, 64, 93):  # cheeks and nose
        assert np.abs(lab(lit)[72, column] - lab(scene)[72, column]).max() < 4, column
    assert all(np.abs(lab(face(0.9))[72, column] - lab(scene)[72, column]).max() > 8 for column in (35, 93))
    assert np.array_equal(lit[mask == 0], face(0.9)[mask == 0])


def test_what_the_scenes_face_does_or_wears_does_not(mask: np.ndarray) -> None:
    """Its teeth, an open mouth, dark glasses across it: the skin beside them tells the light."""
    painted, quiet = face(0.8), face()
    expected = tone.matched(painted, quiet, mask)
    glasses = face()
    glasses[38:60, 30:98] = 15
    for other in (face(mouth=235), face(mouth=5), glasses):
        assert np.abs(tone.matched(painted, other, mask)[mask > 0].astype(int) - expected[mask > 0]).max() <= 6


def test_features_keep_their_contrast_and_an_open_mouth_its_dark(mask: np.ndarray) -> None:
    painted = face(0.7, mouth=3)
    lit = tone.matched(painted, face(1.3), mask)
    assert lit[92, 64].max() <= 8 and lit[70, 64].mean() > 1.5 * painted[70, 64].mean()
    bright = face(0.7, mouth=230)
    moved = lab(tone.matched(bright, face(), mask)) - lab(bright)
    assert moved[92, 64, 0] == pytest.approx(moved[80, 64, 0], abs=2.5)


def test_a_face_like_the_scenes_stays_and_an_empty_mask_is_no_matter(mask: np.ndarray) -> None:
    assert np.abs(tone.matched(face(), face(), mask).astype(int) - face()).max() <= 1
    assert tone.matched(face(0.5), face(), np.zeros_like(mask)) is not None
    assert np.array_equal(tone.matched(face(0.5), face(), np.zeros_like(mask)), face(0.5))
    black = np.zeros((64, 64, 3), np.uint8)
    assert tone.matched(black, black, np.ones((64, 64), np.uint8)).max() == 0


def test_on_photographs_one_mans_face_takes_on_anothers_light(astronaut: Path, tom_hanks: Path) -> None:
    scene, painted = (align(read(path), 128, Data(max_outside=0.5, face="largest")) for path in (astronaut, tom_hanks))
    mask = hull_mask(scene.crop_landmarks, 128)
    lit = tone.matched(painted.crop, scene.crop, mask)

    def apart(crop: np.ndarray) -> float:
        """Of the medians of skin, over quarters of the face."""
        rows, columns = np.nonzero(mask)
        parts = [(rows < np.median(rows)) == upper for upper in (True, False)]
        sides = [(columns < np.median(columns)) == left for left in (True, False)]
        quarters = [(rows[a & b], columns[a & b]) for a in parts for b in sides]
        return float(np.mean([np.abs(np.median(lab(crop)[q], axis=0) - np.median(lab(scene.crop)[q], axis=0)).mean() for q in quarters]))

    assert apart(lit) < 0.4 * apart(painted.crop)
