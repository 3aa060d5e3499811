"""Detect, choose, landmarks -> AlignedFace. The geometry of crops is in `warping`, head pose in `pose`; both are offered here too.

A crop is tied to its picture by one similarity `matrix` (2, 3), source pixels -> crop pixels. Coordinates are (x, y) with the
centre of the first pixel at (0, 0), in the picture and in the crop alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from diffsfsr.config import Data
from diffsfsr.errors import InputError
from diffsfsr.face.detection import Box, Found, load_detector
from diffsfsr.face.images import Rejected
from diffsfsr.face.landmarks import load_landmarks
from diffsfsr.face.pose import Pose, head_pose
from diffsfsr.face.warping import (
    affine,
    canonical_matrix,
    compose,
    feathered_mask,
    invert_matrix,
    paste_back,
    scaled,
    transform,
    warp_crop,
)

__all__ = [
    "AlignedFace",
    "Box",
    "Pose",
    "align",
    "align_all",
    "canonical_matrix",
    "feathered_mask",
    "head_pose",
    "invert_matrix",
    "paste_back",
    "warp_crop",
]

_WEAK = 0.25  # of the best score: below it a find is more often a pattern, or a face cut in half, than a second person
_WHOLE = 0.9  # share of a box in the picture; somebody who is cut off by its edge is not whom it shows
_BLACK = 2  # a border left by turning a picture is this black; a dark studio hardly ever is
_BLACK_SIDE = 1280  # longest side of the copy in which such a border is looked for


@dataclass(frozen=True)
class AlignedFace:
    """One face of a picture, and its canonical crop."""

    box: Box  # left, top, right, bottom in source pixels; right and bottom exclusive; may leave the picture
    landmarks: np.ndarray  # (68, 2) float32, source pixels
    matrix: np.ndarray  # (2, 3) float64, source pixels -> crop pixels
    size: int  # S
    crop: np.ndarray  # (S, S, 3) uint8 RGB
    pose: Pose
    index: int  # of this face, from the left
    count: int  # of faces in the picture
    outside: float  # share of the crop that lies outside the picture or in its black border

    @property
    def crop_landmarks(self) -> np.ndarray:
        """(68, 2) float32, crop pixels."""
        return transform(self.landmarks, self.matrix).astype(np.float32)


# --- finding and choosing -------------------------------------------------------------------------------------------


def align(image: np.ndarray, size: int, data: Data) -> AlignedFace:
    """The face of a picture that `data.face` asks for, found by `data.detector`, as a crop of side `size` by `data.landmarks`.

    `only` demands exactly one face (bystanders do not count: less than half as wide as the largest, or cut off by the picture's edge),
    `largest` takes the widest, and a number is an index from the left. The first two leave out what is found with far less certainty
    than the best. Raises Rejected("no face" | "several faces" | "too small" | "too turned" | "cut off"), InputError for another value
    of `data.face`, `data.detector` or `data.landmarks`, NotReady where weights of the latter two are not on this machine.
    """
    found = load_detector(data.detector)(image)
    index = _choose(found, image.shape, data.face)
    if found[index].width < data.min_face:
        raise Rejected("too small", f"the face is {found[index].width} pixels wide, less than {data.min_face}")
    face = _aligned(image, found, index, size, data.landmarks)
    if abs(face.pose.yaw) > data.max_yaw:
        raise Rejected("too turned", f"the face is turned {abs(face.pose.yaw):.0f} degrees, more than {data.max_yaw:g}")
    if face.outside > data.max_outside:
        raise Rejected("cut off", f"{face.outside:.0%} of the crop lies outside the picture, more than {data.max_outside:.0%}")
    return face


def align_all(image: np.ndarray, size: int, data: Data | None = None) -> list[AlignedFace]:
    """Every face of a picture that `data.detector` finds, from left to right; left out is only what is no face to `data.landmarks`."""
    data, faces = data or Data(), list[AlignedFace]()
    found = load_detector(data.detector)(image)
    for index in range(len(found)):
        with suppress(Rejected):
            faces.append(_aligned(image, found, index, size, data.landmarks))
    return faces


def _choose(found: Sequence[Found], shape: tuple[int, ...], choice: str) -> int:
    if choice not in ("only", "largest") and not choice.isdecimal():
        raise InputError(f"data.face={choice!r} is not one of only, largest, or an index from the left (0, 1, ...)")
    if not found:
        raise Rejected("no face", "no face was found")
    if choice.isdecimal():
        if int(choice) >= len(found):
            raise Rejected("no face", f"there is no face {choice}: the picture has {len(found)}, counted from 0 at the left")
        return int(choice)
    best = max(face.score for face in found)
    widths = {i: face.width for i, face in enumerate(found) if face.score >= _WEAK * best}
    largest = max(widths, key=lambda i: widths[i])
    others = [i for i in widths if i != largest and 2 * widths[i] >= widths[largest] and found[i].visible(shape) >= _WHOLE]
    if choice == "only" and others:
        told = f"{1 + len(others)} faces of like size among {len(found)}"
        raise Rejected("several faces", f"{told}; choose one with --face largest, or --face 0 to {len(found) - 1} from the left")
    return largest


def _aligned(image: np.ndarray, found: Sequence[Found], index: int, size: int, source: str) -> AlignedFace:
    landmarks = load_landmarks(source)(image, found[index])
    matrix = canonical_matrix(landmarks, size)
    return AlignedFace(
        box=found[index].box,
        landmarks=landmarks,
        matrix=matrix,
        size=size,
        crop=warp_crop(image, matrix, size),
        pose=head_pose(landmarks),
        index=index,
        count=len(found),
        outside=_outside(image, matrix, size),
    )


def _outside(image: np.ndarray, matrix: np.ndarray, size: int) -> float:
    """The share of the crop outside the picture, its black border included.

    A border left by turning a picture is what lies outside the convex hull of all that is not black: darkness within that hull is
    the photograph's own.
    """
    import cv2

    height, width = image.shape[:2]
    if (image[:: max(1, height - 1), :: max(1, width - 1)].max(axis=2) > _BLACK).all():  # the hull of its corners is the picture
        quad = transform(np.array([(0, 0), (size - 1, 0), (0, size - 1), (size - 1, size - 1)]), invert_matrix(matrix))
        if (quad >= 0).all() and (quad <= (width - 1, height - 1)).all():
            return 0.0
        inside = np.ones((height, width), np.uint8)
    else:
        small = scaled(image, min(1.0, _BLACK_SIDE / max(height, width)))
        inside = _hull(cv2.inRange(small, (0,) * 3, (_BLACK,) * 3) == 0)
        sx, sy = width / small.shape[1], height / small.shape[0]
        matrix = compose(matrix, affine(sx, sy, (sx - 1) / 2, (sy - 1) / 2))
    return float(1 - cv2.warpAffine(inside, matrix, (size, size), flags=cv2.INTER_NEAREST, borderValue=0).mean())


def _hull(lit: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) uint8: 1 in the convex hull of all that is True."""
    import cv2

    rows = np.flatnonzero(lit.any(axis=1))
    first, last = lit[rows].argmax(axis=1), lit.shape[1] - 1 - lit[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([first, rows]), np.column_stack([last, rows])]).astype(np.int32)
    inside = np.zeros(lit.shape, np.uint8)
    if len(ends):
        cv2.fillConvexPoly(inside, cv2.convexHull(ends), 1)
    return inside
