"""The facial region of a canonical crop: what is hidden from the model and painted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Mask = TypeVar("Mask", np.ndarray, Tensor)

_FOREHEAD = 0.45  # how far the brows are lifted, in eye-to-mouth distances: to mid-forehead, below most hairlines
_TEMPLES = 0.6  # the outermost brow points' share of that lift, so that the hull rounds off at the temples
_DILATION = 0.015  # of the crop side, beyond the landmarks: they lie on the contour, which the mask must hide


def hull_mask(crop_landmarks: np.ndarray, size: int) -> np.ndarray:
    """The landmark hull: (68, 2) landmarks in crop pixels -> (size, size) uint8, 1 inside the facial region, 0 outside.

    The convex hull of the landmarks, its brows lifted toward the forehead, a little dilated.
    """
    import cv2

    points = np.asarray(crop_landmarks, np.float64)
    eyes, mouth = points[36:48].mean(axis=0), points[48:60].mean(axis=0)
    lift = np.ones((10, 1))
    lift[[0, 9]] = _TEMPLES
    brows = points[17:27] + (eyes - mouth) * _FOREHEAD * lift
    hull = cv2.convexHull(np.concatenate([points, brows]).astype(np.float32))
    mask = np.zeros((size, size), np.uint8)
    fraction_bits = 4  # OpenCV's fixed-point coordinates
    cv2.fillConvexPoly(mask, np.rint(hull * 2**fraction_bits).astype(np.int32), 1, shift=fraction_bits)
    radius = max(1, round(size * _DILATION))
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))


def latent_mask(mask: Mask, factor: int = 8) -> Mask:
    """Max-pool a mask to latent positions: (S, S) array -> (h, w), or (B, 1, S, S) tensor -> (B, 1, h, w), same dtype.

    A latent position that touches the face is face. Raises ValueError when `factor` does not divide the sides.
    """
    height, width = mask.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"mask sides {height} x {width} are not multiples of {factor}")
    blocks = mask.reshape(*mask.shape[:-2], height // factor, factor, width // factor, factor)
    if isinstance(blocks, np.ndarray):
        return blocks.max(axis=(-3, -1))
    return blocks.amax(dim=(-3, -1))
