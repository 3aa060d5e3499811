"""Views of a face: mirrored with its mask and landmarks, altered without leaving its values' range, and the same again by the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffsfsr.config import Data
from diffsfsr.face import images
from diffsfsr.face.alignment import align
from diffsfsr.face.augment import KINDS, View, altered, mirrored, views
from diffsfsr.face.gestures import GESTURES, gestures
from diffsfsr.face.landmarks import MIRRORED
from diffsfsr.face.masks import hull_mask

rng = np.random.default_rng


@pytest.fixture(scope="module")
def face(astronaut: Path) -> View:
    found = align(images.read(astronaut), 128, Data())
    return View(found.crop, hull_mask(found.crop_landmarks, 128), found.crop_landmarks.astype(np.float32))


def test_a_mirrored_face_is_one_again_when_mirrored_twice(face: View) -> None:
    once = mirrored(face)
    twice = mirrored(once)
    assert (twice.crop == face.crop).all() and (twice.mask == face.mask).all()
    assert np.allclose(twice.landmarks, face.landmarks, atol=1e-4)
    assert sorted(MIRRORED) == list(range(68))
    # What was the left eye's outer corner lies where the right one's was, on the other side of the crop.
    assert once.landmarks[36] == pytest.approx([127 - face.landmarks[45][0], face.landmarks[45][1]], abs=1e-3)


def test_a_mirrored_face_makes_the_mirrored_gesture(face: View) -> None:
    raised = face.landmarks.copy()
    raised[17:22] -= [0, 6]  # one brow
    here, there = gestures(np.stack([raised, mirrored(face._replace(landmarks=raised)).landmarks]))
    swapped = [GESTURES.index(n.replace("left", "R").replace("right", "left").replace("R", "right")) for n in GESTURES]
    assert there[swapped] == pytest.approx(here, abs=1e-3) and abs(there - here).max() > 0.5


def test_gestures_do_not_depend_on_size_place_and_tilt(face: View) -> None:
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = 3.7 * face.landmarks @ turn.T + [50, -20]
    assert gestures(moved[None])[0] == pytest.approx(gestures(face.landmarks[None])[0], abs=1e-3)


def test_an_opened_mouth_is_told_by_its_gesture(face: View) -> None:
    opened = face.landmarks.copy()
    opened[[65, 66, 67, 55, 56, 57, 58, 59]] += [0, 8]
    change = gestures(opened[None])[0] - gestures(face.landmarks[None])[0]
    assert change[GESTURES.index("open")] > 1 and abs(change[[4, 5, 6, 7, 8]]).max() < 0.2


def test_views_are_those_asked_for(face: View) -> None:
    assert len(views(face, (), rng(0))) == 1
    assert len(views(face, ("flip",), rng(0))) == 2
    assert len(views(face, ("grey",), rng(0))) == 2
    all_three = views(face, KINDS, rng(0))
    again = views(face, KINDS, rng(0))
    assert len(all_three) == 3 and all((a.crop == b.crop).all() for a, b in zip(all_three, again, strict=True))
    assert (all_three[2].crop != all_three[0].crop).any() and all_three[2].crop.dtype == np.uint8


@pytest.mark.parametrize("kind", ["colour", "grey", "blur"])
def test_each_kind_changes_what_it_says(face: View, kind: str) -> None:
    made = np.stack([altered(face.crop, (kind,), rng(seed)) for seed in range(20)]).astype(float)
    changed = (made != face.crop).any((1, 2, 3))
    spread = np.ptp(made, axis=-1).mean((1, 2))  # how colourful
    sharp = np.abs(np.diff(made, axis=2)).mean((1, 2, 3))
    if kind == "colour":
        assert changed.all() and spread.max() > 1.2 * spread.min()
    if kind == "grey":
        assert 1 <= (spread < 1e-9).sum() == changed.sum() <= 15
    if kind == "blur":
        assert 1 <= changed.sum() <= 16 and (sharp[changed] < sharp[~changed].min()).all()
