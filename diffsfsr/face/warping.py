"""The canonical crop and its way back into the scene: similarities between source pixels and crop pixels.

A `matrix` is (2, 3) float64, source pixels -> crop pixels. Coordinates are (x, y) with the centre of the first pixel at (0, 0), in
the picture and in the crop alike.
"""

from __future__ import annotations

import numpy as np

from diffsfsr.face import detail

FEATHER = 0.05  # width of a paste's blend inside the mask, as a share of the crop's side
# A mask runs across the forehead: there a blend is as many times as wide at its top, down to this share of its height.
_SLOWER, _FOREHEAD = 3.0, 0.25

# --- the canonical crop ---------------------------------------------------------------------------------------------


def canonical_matrix(landmarks: np.ndarray, size: int) -> np.ndarray:
    """FFHQ's crop as a similarity: (68, 2) landmarks in source pixels -> (2, 3) float64, source pixels -> crop pixels.

    The oriented square of Karras et al. 2019 (dataset-tool `recreate_aligned_images`): its half side is the larger of 2 eye-to-eye
    and 1.8 eye-to-mouth distances, its centre a tenth of the way from the eyes to the mouth. Raises ValueError when the points coincide.
    """
    points = np.asarray(landmarks, np.float64)
    eye_left, eye_right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eyes, mouth = (eye_left + eye_right) / 2, (points[48] + points[54]) / 2
    eye_to_eye, eye_to_mouth = eye_right - eye_left, mouth - eyes
    x = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])  # to the right: the eye line and the upright, averaged
    length = np.hypot(*x)
    if not length > 0:
        raise ValueError("the eye and mouth landmarks coincide: they fix no crop")
    half = max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    centre = eyes + eye_to_mouth * 0.1
    scale = size / (2 * half)
    linear = scale / length * np.array([[x[0], x[1]], [-x[1], x[0]]])
    return np.column_stack([linear, (size - 1) / 2 - linear @ centre])


def invert_matrix(matrix: np.ndarray) -> np.ndarray:
    """The (2, 3) similarity that undoes `matrix`."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def warp_crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The (size, size, 3) uint8 crop of an HWC uint8 picture; antialiased where it shrinks, mirrored beyond the picture's edge."""
    return _warp(image, matrix, size, size, sharp=False)


def _warp(image: np.ndarray, matrix: np.ndarray, height: int, width: int, sharp: bool = True) -> np.ndarray:
    """Resample by a similarity, source -> target pixels: cubic, and averaged over each target pixel's footprint.

    Not `sharp`: what is averaged is read bilinearly, in a third of the time (crops of LFW: 50.5 against 53.8 dB of an ideal average).
    """
    import cv2

    footprint = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))  # source pixels to a target pixel
    top, left, region = _footprint_region(image, matrix, height, width, int(np.ceil(2 * footprint)) + 2)
    matrix = compose(matrix, affine(1.0, 1.0, left, top))
    if footprint > 4:  # first a cheap average, leaving at least two of its pixels to a target pixel
        region, matrix = _shrunk(region, matrix, 2 / footprint)
        footprint = 2.0
    n = max(1, int(np.ceil(footprint - 0.05)))
    matrix = compose(affine(n, n, (n - 1) / 2, (n - 1) / 2), matrix)
    kernel = cv2.INTER_CUBIC if sharp or n == 1 else cv2.INTER_LINEAR
    warped = cv2.warpAffine(region, matrix, (width * n, height * n), flags=kernel, borderMode=cv2.BORDER_REFLECT)
    return warped if n == 1 else cv2.resize(warped, (width, height), interpolation=cv2.INTER_AREA)


def grey_patch(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The (size, size) uint8 mean of the channels of an HWC uint8 picture under a similarity, bilinear; black beyond the picture."""
    import cv2

    region, matrix = _near(image, matrix, size)
    return cv2.warpAffine(cv2.transform(region, np.full((1, 3), 1 / 3)), matrix, (size, size), flags=cv2.INTER_LINEAR)


def colour_patch(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The (size, size, 3) uint8 part of an HWC uint8 picture under a similarity, bilinear; black beyond the picture."""
    import cv2

    region, matrix = _near(image, matrix, size)
    return cv2.warpAffine(region, matrix, (size, size), flags=cv2.INTER_LINEAR)


def _near(image: np.ndarray, matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What a patch needs of a picture, averaged down where the patch is smaller, and the matrix that maps it there."""
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    top, left, region = _footprint_region(image, matrix, size, size, int(np.ceil(shrink)) + 1)
    matrix = compose(matrix, affine(1.0, 1.0, left, top))
    return _shrunk(region, matrix, 1 / shrink) if shrink > 1 else (region, matrix)


def _shrunk(image: np.ndarray, matrix: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture averaged down, and the matrix that maps it to where `matrix` maps the picture."""
    small = scaled(image, scale)
    sx, sy = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
    return small, compose(matrix, affine(sx, sy, (sx - 1) / 2, (sy - 1) / 2))


def _footprint_region(image: np.ndarray, matrix: np.ndarray, height: int, width: int, margin: int) -> tuple[int, int, np.ndarray]:
    """The part of the picture that a (height, width) target covers, at least one pixel: top, left, view."""
    corners = transform(np.array([(0, 0), (width, 0), (0, height), (width, height)]) - 0.5, invert_matrix(matrix))
    limits = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - margin, 0, limits - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + margin + 1, low + 1, limits)
    return int(low[1]), int(low[0]), image[low[1] : high[1], low[0] : high[0]]


# --- back into the scene --------------------------------------------------------------------------------------------


def feathered_mask(shape: tuple[int, ...], matrix: np.ndarray, mask: np.ndarray, feather: float) -> np.ndarray:
    """A crop's (S, S) 0/1 mask in the pixels of a scene of `shape` (H, W, ...): (H, W) float32 in [0, 1].

    It rises from 0 to 1 inside the mask, over `feather` of the crop's side and more slowly towards the mask's top, and is exactly 0 outside
    the mask and the crop. There the edge runs across skin, bare or under a fringe, that a painted forehead has to become: elsewhere it
    follows the face's own outline. Raises ValueError unless 0 <= feather <= 0.5.
    """
    whole = np.zeros(shape[:2], np.float32)
    top, left, alpha = _feathered_region(whole, matrix, mask, feather)
    whole[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    return whole


def _feathered_region(scene: np.ndarray, matrix: np.ndarray, mask: np.ndarray, feather: float) -> tuple[int, int, np.ndarray]:
    import cv2

    if not 0 <= feather <= 0.5:
        raise ValueError(f"feather={feather} is a share of the crop's side, between 0 and 0.5")
    size = mask.shape[0]
    depth = cv2.distanceTransform(np.pad((mask > 0).astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # A pixel with a neighbour outside stays at 0, so that interpolation cannot carry the mask over its own edge.
    ramp = np.clip((depth - np.float32(1.4143)) / np.maximum(feather * size * _slowness(mask), 1e-6), 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    top, left, region = _footprint_region(scene, matrix, size, size, 1)
    back = compose(affine(1.0, 1.0, -left, -top), invert_matrix(matrix))
    alpha = cv2.warpAffine(ramp, back, (region.shape[1], region.shape[0]), flags=cv2.INTER_LINEAR, borderValue=0)
    x, y, width, height = cv2.boundingRect((alpha > 0).view(np.uint8))  # about half of the crop's square
    return top + y, left + x, alpha[y : y + max(height, 1), x : x + max(width, 1)]


def _slowness(mask: np.ndarray) -> np.ndarray:
    """(S, 1) float32: how many times as wide a mask's feather is in each row of it, falling from its top to its brows."""
    rows = np.flatnonzero(mask.any(axis=1))
    first, height = (rows[0], len(rows)) if len(rows) else (0, 1)
    up = np.clip(1 - (np.arange(len(mask)) - first) / (_FOREHEAD * height), 0, 1)
    return (1 + (_SLOWER - 1) * up[:, None]).astype(np.float32)


def paste_back(
    scene: np.ndarray, crop: np.ndarray, matrix: np.ndarray, mask: np.ndarray, feather: float, seed: int | None = None
) -> np.ndarray:
    """The scene, HWC uint8, with the masked part of a generated (S, S, 3) uint8 crop in place of its face.

    Blended by `feathered_mask`; wherever that is 0 the result is byte for byte the scene. A crop that has to be enlarged is given the
    scene's own sharpness and grain (`detail.matched`) where there is a `seed` to draw the grain from. The arguments are left as they are.
    """
    require_picture(scene)
    if crop.shape[:2] != mask.shape or crop.dtype != np.uint8:
        raise ValueError(f"a {crop.dtype} crop of {crop.shape} does not fit a mask of {mask.shape}")
    top, left, alpha = _feathered_region(scene, matrix, mask, feather)
    height, width = alpha.shape
    back = compose(affine(1.0, 1.0, -left, -top), invert_matrix(matrix))
    painted = _warp(crop, back, height, width).astype(np.float32)
    result = scene.copy()
    region = result[top : top + height, left : left + width]
    scale = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    if seed is not None and scale > 1:
        painted = detail.matched(painted, region, alpha, scale, seed).clip(0, 255)
    blend = region + alpha[..., None] * (painted - region)
    region[:] = np.rint(blend).astype(np.uint8)  # exact where alpha is 0
    return result


# --- coordinates ----------------------------------------------------------------------------------------------------


def affine(sx: float, sy: float, tx: float, ty: float) -> np.ndarray:
    """The (2, 3) matrix that scales, then shifts."""
    return np.array([[sx, 0.0, tx], [0.0, sy, ty]])


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The (2, 3) matrix of `outer` after `inner`."""
    return outer @ np.vstack([inner, (0.0, 0.0, 1.0)])


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(P, 2) points through a (2, 3) matrix, float64."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    """The picture scaled, averaged where it shrinks; itself at scale 1."""
    import cv2

    if scale == 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def require_picture(image: np.ndarray) -> None:
    """Raise ValueError unless HWC uint8 RGB."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected an HWC uint8 RGB picture, not {image.dtype} {image.shape}")
