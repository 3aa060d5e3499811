"""The facial region against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsfsr.face import alignment, images, masks


@pytest.fixture(scope="module")
def landmarks(astronaut: Path) -> np.ndarray:
    """(68, 2) in a crop of side 1, centres of pixels aside."""
    return alignment.align_all(images.read(astronaut), 256)[0].crop_landmarks / 256


def _inside_hull(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Brute force: a point is in the hull of others unless some direction separates it from all of them."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return ((queries @ directions) <= (points @ directions).max(axis=0) + 1e-6).all(axis=1)


@pytest.mark.parametrize("size", [64, 128, 512])
def test_mask_is_the_lifted_hull(landmarks: np.ndarray, size: int) -> None:
    points = landmarks * size
    mask = masks.hull_mask(points, size)
    assert mask.shape == (size, size) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    xs, ys = np.random.default_rng(0).integers(0, size, (2, 4000))
    assert mask[ys, xs][_inside_hull(points, np.stack([xs, ys], axis=1).astype(float))].all()
    # nothing lies below the chin, beside the jaw, or more than an eye-to-mouth distance above the brows
    ys, xs = np.nonzero(mask)
    slack = max(2, 0.03 * size)
    lift = points[48:60, 1].mean() - points[36:48, 1].mean()
    assert xs.min() >= points[:, 0].min() - slack and xs.max() <= points[:, 0].max() + slack
    assert ys.max() <= points[:, 1].max() + slack
    assert points[17:27, 1].min() - lift < ys.min() < points[17:27, 1].min() - lift / 4


def test_mask_scales_with_the_crop(landmarks: np.ndarray) -> None:
    shares = [masks.hull_mask(landmarks * size, size).mean() for size in (64, 128, 512)]
    assert max(shares) - min(shares) < 0.02


def test_mirrored_landmarks_give_the_mirrored_mask(landmarks: np.ndarray) -> None:
    mirrored = landmarks * 128 * (-1, 1) + (127, 0)
    order = np.arange(68)
    order[17:27] = order[17:27][::-1]
    difference = masks.hull_mask(mirrored[order], 128) != masks.hull_mask(landmarks * 128, 128)[:, ::-1]
    assert difference.mean() < 0.005


def test_a_region_takes_in_what_of_a_frame_juts_out(landmarks: np.ndarray) -> None:
    """Beside the face, level with the eyes, on either side; nothing else is added, and nothing taken away."""
    points = landmarks * 128
    plain, wide = (masks.hull_mask(points, 128, glasses=worn).astype(bool) for worn in (False, True))
    assert (wide >= plain).all()
    rows, columns = np.nonzero(wide & ~plain)
    eyes, span = points[36:48].mean(0), np.linalg.norm(points[45] - points[36])
    assert np.abs(rows - eyes[1]).max() < 0.35 * span and len(rows) > 0.02 * plain.sum()
    level = plain[round(eyes[1])].nonzero()[0]
    assert (columns < level[0] + 3).sum() > 20 < (columns > level[-1] - 3).sum()
    assert ((columns < level[0] + 3) | (columns > level[-1] - 3)).all() and np.ptp(columns) < np.ptp(level) + 0.6 * span
    turn = np.array([[0.9, 0.436], [-0.436, 0.9]]) / np.hypot(0.9, 0.436)
    upright, turned = points - points.mean(0) + 64, (points - points.mean(0)) @ turn + 64  # neither beyond the crop
    wanted = (np.argwhere(masks.hull_mask(upright, 128, glasses=True))[:, ::-1] - 64) @ turn + 64
    there = np.zeros((128, 128), bool)
    there[tuple(np.rint(wanted).astype(int).T[::-1])] = True
    assert (masks.hull_mask(turned, 128, glasses=True).astype(bool) & there).sum() > 0.985 * there.sum()
    eyes_in_one = points.copy()
    eyes_in_one[36:48] = points[36]
    assert np.array_equal(masks.hull_mask(eyes_in_one, 128, glasses=True), masks.hull_mask(eyes_in_one, 128))


def test_a_face_beyond_the_crop_is_clipped(landmarks: np.ndarray) -> None:
    mask = masks.hull_mask(landmarks * 128 + (100, -90), 128)
    assert mask.shape == (128, 128) and mask[:, :20].sum() == 0


def test_latent_mask_touches(landmarks: np.ndarray) -> None:
    mask = masks.hull_mask(landmarks * 128, 128)
    pooled = masks.latent_mask(mask)
    expected = np.array([[mask[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any() for j in range(16)] for i in range(16)])
    np.testing.assert_array_equal(pooled, expected)
    assert pooled.dtype == mask.dtype
    batch = torch.from_numpy(np.stack([mask, mask.T]))[:, None].float()
    latent = masks.latent_mask(batch)
    assert latent.shape == (2, 1, 16, 16) and latent.dtype == torch.float32
    np.testing.assert_array_equal(latent[0, 0].numpy(), pooled)
    np.testing.assert_array_equal(latent[1, 0].numpy(), pooled.T)
    with pytest.raises(ValueError, match="multiples"):
        masks.latent_mask(mask[:100, :100])


# --- what a parser found, made one region ---------------------------------------------------------------------------


def _disc(x: float, y: float, radius: float, size: int = 128) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size]
    return np.hypot(xs - x, ys - y) <= radius


@pytest.fixture(scope="module")
def points(landmarks: np.ndarray) -> np.ndarray:
    return landmarks * 128


@pytest.fixture(scope="module")
def face(points: np.ndarray) -> np.ndarray:
    """What a perfect parser would call face: the hull itself."""
    return masks.hull_mask(points, 128) > 0


NOTHING = np.zeros((128, 128), bool)


def test_a_perfect_parser_is_only_dilated(face: np.ndarray, points: np.ndarray) -> None:
    mask = masks.tidy(face, NOTHING, NOTHING, points)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1} and mask[face].all()
    rim = mask.astype(bool) & ~face
    ys, xs = np.nonzero(face)
    distance = [np.hypot(ys - y, xs - x).min() for y, x in zip(*np.nonzero(rim), strict=True)]
    assert distance and max(distance) < 2.5


def test_an_open_mouth_and_a_shadow_are_filled(face: np.ndarray, points: np.ndarray) -> None:
    mouth = _disc(*points[48:60].mean(axis=0), 9)
    shadow = _disc(*points[2], 7)  # open to the outside, at the edge of the cheek
    mask = masks.tidy(face & ~mouth & ~shadow, NOTHING, NOTHING, points).astype(bool)
    assert mask[mouth].all()
    assert mask[shadow & face].mean() > 0.7


def test_only_this_face_is_kept(face: np.ndarray, points: np.ndarray) -> None:
    bystander, wall = _disc(118, 20, 8), np.zeros_like(face)
    wall[40:80, :20] = True  # joined to the face by a bridge, as where skin and wall have one colour
    wall[60:63, :50] = True
    alone = masks.tidy(face, NOTHING, NOTHING, points).astype(bool)
    mask = masks.tidy(face | bystander | wall, NOTHING, NOTHING, points).astype(bool)
    assert not mask[bystander].any() and not mask[:, :8].any() and mask[alone].all()
    assert mask.sum() < 1.1 * alone.sum()


def test_glasses_and_hair_stay_outside_and_lose_no_forehead(face: np.ndarray, points: np.ndarray) -> None:
    brow, eyes = points[17:27, 1].mean(), points[36:48, 1].mean()
    rows = np.arange(128)[:, None] * np.ones((1, 128))
    glasses = (abs(rows - eyes) < 6) & face  # from ear to ear: the forehead is cut off from the rest
    fringe = _disc(points[21, 0], brow - 9, 8)
    parsed = face & ~glasses & ~fringe
    mask = masks.tidy(parsed, glasses, glasses | fringe, points).astype(bool)
    assert not mask[glasses].any() and not mask[fringe].any()
    forehead = parsed & (rows < eyes - 6)
    assert mask[forehead].all() and mask[parsed & (rows > eyes)].all()
    unseen = masks.tidy(parsed, NOTHING, NOTHING, points).astype(bool)  # a parser that knows no glasses fills or drops them
    assert (unseen != mask).sum() > 100


def test_specks_of_hair_are_noise_and_strands_are_not(face: np.ndarray, points: np.ndarray) -> None:
    cheek = points[[2, 31]].mean(axis=0)
    speck, strand = _disc(*cheek, 1.2), np.zeros_like(face)
    strand[40:90, round(points[45, 0]) + 4] = True
    assert 0 < speck.sum() < 7 < strand.sum()
    mask = masks.tidy(face & ~speck & ~strand, NOTHING, speck | strand, points).astype(bool)
    assert mask[speck].all() and not mask[strand].any()


def test_a_parser_that_missed_the_face_gives_way_to_the_hull(face: np.ndarray, points: np.ndarray) -> None:
    hull = masks.hull_mask(points, 128)
    elsewhere = _disc(20, 20, 15)
    for parsed in (NOTHING, elsewhere, face & (np.arange(128) < points[30, 0])[None]):
        np.testing.assert_array_equal(masks.tidy(parsed, NOTHING, NOTHING, points), hull)
    away = masks.tidy(NOTHING, NOTHING, NOTHING, points + 500)  # landmarks outside the crop
    assert away.shape == (128, 128) and away.sum() == 0
