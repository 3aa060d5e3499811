"""The scene's sharpness and grain for a face that was painted smaller than it is pasted.

Both are taken from what was the scene's face, and both are luminance only, so that what is grey stays grey. Edges are lifted in each
octave, a level of the Laplacian pyramid (Burt and Adelson, 1983), towards the energy they had there, within the range of their
neighbours, so that no rim appears. Grain is white noise given the power spectrum of the grain that was there.
"""

from __future__ import annotations

import math

import numpy as np

_LIFT = 2.0  # at most: beyond it, what is lifted is the painter's mistakes
_NORMAL, _POWER = 0.3186, 0.1054  # lower quartile of |x|, x normal of deviation 1; lowest tenth of a periodogram of mean 1
_FEW, _MANY = 64, 100_000  # pixels: fewer say nothing of a scene, more say nothing more
_ACROSS, _TILE = 32, 512  # windows across a face, at most about; pixels after which grain repeats


def matched(painted: np.ndarray, scene: np.ndarray, weight: np.ndarray, scale: float, seed: int) -> np.ndarray:
    """A painted face, enlarged, with the detail that enlarging could not give it: (H, W, 3) float32, not clipped.

    `painted` (H, W, 3) and `scene` (H, W, 3), which still has its own face, are RGB in [0, 255]; `weight` (H, W) in [0, 1] is above a
    half where the two faces are compared. `scale`, at least 1, is the scene's pixels to a painted one: what is finer than a painted
    pixel shows is filled, and the octave above it, which enlarging and an autoencoder weaken. `seed` draws the grain.
    """
    import cv2

    before = cv2.cvtColor(painted.astype(np.float32), cv2.COLOR_RGB2GRAY)
    own = cv2.cvtColor(scene.astype(np.float32), cv2.COLOR_RGB2GRAY)
    face = _sharpened(before, own, weight, math.ceil(math.log2(scale)) + 1)
    inside, side = weight > 0.5, _window(scale)
    missing = grain_spectrum(_fine(own, scale), inside, side) - grain_spectrum(_fine(face, scale), inside, side)
    face += _grain(np.maximum(missing, 0), face.shape, np.random.default_rng(seed)) - before
    return painted.astype(np.float32) + face[..., None]


# --- edges ----------------------------------------------------------------------------------------------------------


def _sharpened(face: np.ndarray, own: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """The (H, W) face with the edges of its `count` finest octaves lifted towards those of the scene's own, from coarse to fine."""
    octaves, sharpened = _octaves(face, count)
    wanted, _ = _octaves(own, count)
    for octave, goal, inside in zip(reversed(octaves), reversed(wanted), reversed(_insides(weight, count)), strict=True):
        sharpened = _lifted(_doubled(sharpened, octave) + octave, edges_and_grain(goal[inside])[0], inside)
    return sharpened


def edges_and_grain(values: np.ndarray) -> tuple[float, float]:
    """What an octave's (P,) values hold, as two deviations: edges, which are few and strong, and grain, which is everywhere.

    Grain is the lower quartile of the absolute values, so that hair and features do not count; edges are the energy beyond it.
    """
    if values.size < _FEW:
        return 0.0, 0.0
    values = values[:: -(-values.size // _MANY)]
    grain = float(np.quantile(np.abs(values), 0.25)) / _NORMAL
    return math.sqrt(max(float(np.mean(np.square(values))) - grain**2, 0.0)), grain


def _lifted(face: np.ndarray, edges: float, inside: np.ndarray) -> np.ndarray:
    """The face with the edges of its finest octave lifted towards `edges`; no pixel leaves the range of its neighbours.

    Its own grain stands on both sides of the ratio: where there are no edges to speak of, nothing is lifted.
    """
    import cv2

    octave, near = _finest(face), np.ones((3, 3), np.uint8)
    own, grain = edges_and_grain(octave[inside])
    gain = float(np.clip(math.hypot(edges, grain) / max(math.hypot(own, grain), 1e-3), 1.0, _LIFT))
    return np.clip(face + (gain - 1) * octave, cv2.erode(face, near), cv2.dilate(face, near))


def _octaves(image: np.ndarray, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The `count` finest octaves of an (H, W) float32 picture, finest first, and what is left, at 2 to the minus `count` of its size."""
    import cv2

    octaves = []
    for _ in range(count):
        half = cv2.pyrDown(image)
        octaves.append(image - _doubled(half, image))
        image = half
    return octaves, image


def _insides(weight: np.ndarray, count: int) -> list[np.ndarray]:
    """Where each octave is inside the face, bool."""
    import cv2

    weights = [weight]
    for _ in range(count - 1):
        weights.append(cv2.pyrDown(weights[-1]))
    return [each > 0.5 for each in weights]


def _finest(image: np.ndarray) -> np.ndarray:
    return _octaves(image, 1)[0][0]


def _doubled(half: np.ndarray, like: np.ndarray) -> np.ndarray:
    import cv2

    doubled: np.ndarray = cv2.pyrUp(half, dstsize=(like.shape[1], like.shape[0]))
    return doubled


# --- grain ----------------------------------------------------------------------------------------------------------


def grain_spectrum(image: np.ndarray, inside: np.ndarray, side: int) -> np.ndarray:
    """(side, side // 2 + 1) power of the grain of an (H, W) picture at the frequencies of numpy's rfft2; white noise has its variance.

    Welch's method over the windows of `side` pixels that are wholly `inside` (H, W) bool, with the lowest tenth in place of the mean, so
    that windows with hair and features do not count. Zero where there is no such window.
    """
    step = max(side // 2, min(image.shape) // _ACROSS)
    windows = _windows(image, side, step)[_windows(inside, side, step).all(axis=(2, 3))]
    if not len(windows):
        return np.zeros((side, side // 2 + 1))
    taper = np.outer(*2 * [np.hanning(side + 2)[1:-1]])
    power = np.abs(np.fft.rfft2((windows - windows.mean(axis=(1, 2), keepdims=True)) * taper)) ** 2 / np.square(taper).sum()
    return np.quantile(power, 0.1, axis=0) / _POWER


def _window(scale: float) -> int:
    """The side in pixels of windows that hold the waves to be filled, and hardly more: a face has few that are skin alone."""
    return int(np.clip(2 ** math.ceil(math.log2(2 * scale)), 8, 32))


def _fine(image: np.ndarray, scale: float) -> np.ndarray:
    """What is finer than the painter's pixels show, and half of the octave above it: the picture less its mean by a triangle."""
    import cv2

    width = 2 * round(0.75 * scale) + 1
    return image - cv2.blur(cv2.blur(image, (width, width)), (width, width))


def _windows(image: np.ndarray, side: int, step: int) -> np.ndarray:
    """(rows, columns, side, side), a view; none of a picture that is smaller."""
    if min(image.shape) < side:
        return np.zeros((0, 0, side, side), image.dtype)
    return np.lib.stride_tricks.sliding_window_view(image, (side, side))[::step, ::step]


def _grain(spectrum: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 normal noise of a (side, ...) power spectrum: white noise through the filter of zero phase that has its root."""
    kernel, side = np.zeros((_TILE, _TILE)), len(spectrum)
    kernel[:side, :side] = np.fft.fftshift(np.fft.irfft2(np.sqrt(spectrum), (side, side)))
    white = rng.standard_normal((_TILE, _TILE))
    tile = np.fft.irfft2(np.fft.rfft2(white) * np.fft.rfft2(kernel), (_TILE, _TILE)).astype(np.float32)
    return np.tile(tile, (-(-shape[0] // _TILE), -(-shape[1] // _TILE)))[: shape[0], : shape[1]]
