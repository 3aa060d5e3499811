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
