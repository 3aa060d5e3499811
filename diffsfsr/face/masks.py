"""The facial region of a canonical crop: what is hidden from the model and painted anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Mask = TypeVar("Mask", np.ndarray, Tensor)

_FOREHEAD = 0.45  # how far the brows are lifted, in eye-to-mouth distances: to mid-forehead, below most hairlines
_TEMPLES = 0.6  # the outermost brow points' share of that lift, so that the hull rounds off at the temples
_FRAME = 0.18, 0.12, 0.22  # beside the face, above and below the eyes, in distances of their outer corners: where a frame's hinges are
_DILATION = 0.015  # of the crop side, beyond the landmarks: they lie on the contour, which the mask must hide
_REACH = 1.3, 1.0, 0.035  # lift, temples and dilation of what a parser may call this face: to the top of a bald head, no wall beside it
_NOTCH = 0.06  # of the crop side: a gap twice as wide, within the bare hull, is a shadow that a parser took for no face
_SPECK = 0.0004  # of the crop's area: fewer pixels of glasses or hair are a parser's noise
_SEEN = 0.7  # of the inner face: where a parser finds less, it has missed the face


def hull_mask(crop_landmarks: np.ndarray, size: int, brows: np.ndarray | None = None, glasses: bool = False) -> np.ndarray:
    """The landmark hull: (68, 2) landmarks in crop pixels -> (size, size) uint8, 1 inside the facial region, 0 outside.

    The convex hull of the landmarks, its brows lifted toward the forehead, a little dilated. With `brows` (10, 2) of the face that is to
    stand there, those are lifted, and the landmarks' own only hidden. With `glasses`, what of a frame juts out beside the face is hidden
    too: of its stubs a network makes a frame.
    """
    mask = _lifted_hull(crop_landmarks, size, _FOREHEAD, _TEMPLES, _DILATION, brows)
    frame = _frame(crop_landmarks) if glasses else None
    return mask if frame is None else mask | _dilated(_filled_hull(frame, size), size, _DILATION)


def tidy(region: np.ndarray, glasses: np.ndarray, over: np.ndarray, crop_landmarks: np.ndarray) -> np.ndarray:
    """A parser's verdict on a crop, made one facial region: (S, S) uint8, 1 inside.

    The largest connected piece within reach of the landmarks (glasses connect a forehead to its face), its holes and notches filled,
    a little dilated, less what lies over the face. Where the parser has missed the face between eyes and mouth: the landmark hull.

    Args:
        region: (S, S) bool, skin and features.
        glasses: (S, S) bool, part of `over`.
        over: (S, S) bool, what stays outside the mask: glasses, hair, a hat.
        crop_landmarks: (68, 2), crop pixels.
    """
    size, points = len(region), np.asarray(crop_landmarks, np.float64)
    inner = _filled_hull(points[27:], size) > 0
    if not inner.any() or (region | over)[inner].mean() < _SEEN:
        return hull_mask(crop_landmarks, size)
    reach = _lifted_hull(crop_landmarks, size, *_REACH) > 0
    over = over & ~_small_pieces(over, _SPECK * region.size)
    whole = _largest_piece((region | glasses) & reach)
    whole = _without_holes(whole | (_closed(whole, size, _NOTCH) & (_filled_hull(points, size) > 0)))
    return (_dilated(whole & ~over, size, _DILATION) & ~over).astype(np.uint8)


def _lifted_hull(
    crop_landmarks: np.ndarray, size: int, lift: float, temples: float, dilation: float, brows: np.ndarray | None = None
) -> np.ndarray:
    points = np.asarray(crop_landmarks, np.float64)
    eyes, mouth = points[36:48].mean(axis=0), points[48:60].mean(axis=0)
    shares = np.ones((10, 1))
    shares[[0, 9]] = temples
    top = (points[17:27] if brows is None else brows) + (eyes - mouth) * lift * shares
    return _dilated(_filled_hull(np.concatenate([points, top]), size), size, dilation)


def _frame(crop_landmarks: np.ndarray) -> np.ndarray | None:
    """(8, 2): from beside one temple to beside the other, level with the eyes; None where these are less than a pixel apart."""
    points = np.asarray(crop_landmarks, np.float64)
    left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    if not (apart := np.linalg.norm(right - left)) >= 1:
        return None
    across = (right - left) / apart
    beside, above, below = np.array(_FRAME) * np.linalg.norm(points[45] - points[36])
    corners = []
    for eye, out, contour in ((left, -across, points[[0, 1, 17]]), (right, across, points[[15, 16, 26]])):
        end = eye + out * (((contour - eye) @ out).max() + beside)
        corners += [end - above * _turned(across), end + below * _turned(across)]
    return np.array([*corners, *points[[17, 26, 36, 45]]])


def _turned(axis: np.ndarray) -> np.ndarray:
    """From across to down."""
    return np.array([-axis[1], axis[0]])


def _filled_hull(points: np.ndarray, size: int) -> np.ndarray:
    import cv2

    hull = cv2.convexHull(points.astype(np.float32))
    mask = np.zeros((size, size), np.uint8)
    fraction_bits = 4  # OpenCV's fixed-point coordinates
    cv2.fillConvexPoly(mask, np.rint(hull * 2**fraction_bits).astype(np.int32), 1, shift=fraction_bits)
    return mask


def _dilated(mask: np.ndarray, size: int, share: float) -> np.ndarray:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), _disc(size, share)).astype(mask.dtype)


def _closed(mask: np.ndarray, size: int, share: float) -> np.ndarray:
    import cv2

    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(size, share)).astype(mask.dtype)


def _disc(size: int, share: float) -> np.ndarray:
    import cv2

    radius = max(1, round(size * share))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each pixel's connected piece, 0 outside the mask, and the area of each piece, 0 for the outside."""
    import cv2

    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return labels, areas


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    labels, areas = _pieces(mask)
    return mask & (labels == areas.argmax())


def _small_pieces(mask: np.ndarray, area: float) -> np.ndarray:
    labels, areas = _pieces(mask)
    return mask & (areas < area)[labels]


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """With every pixel that no path through zeros joins to the crop's edge."""
    labels, _ = _pieces(np.pad(~mask, 1, constant_values=True))
    return (labels != labels[0, 0])[1:-1, 1:-1]


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
