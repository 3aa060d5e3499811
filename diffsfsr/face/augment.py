"""One face in several views, so that a model trained on press photographs works on selfies and scenes from elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from diffsfsr.face.landmarks import MIRRORED

KINDS = ("flip", "colour", "grey", "blur")  # config.Data.augment
_GAIN, _GAMMA, _SATURATION = 0.2, 0.25, 0.5  # of colour: each channel's gain, the exponent and the saturation about 1, at most
_GREY, _BLUR = 0.3, 0.4  # chance of each where it is asked for
_LUMA = np.array([0.299, 0.587, 0.114])
_SOFTEST = 1.6  # pixels, the widest blur's deviation: a face of a third of the crop's side, enlarged


class View(NamedTuple):
    """crop (S, S, 3) uint8, mask (S, S) of 0 and 1, landmarks (68, 2) in crop pixels."""

    crop: np.ndarray
    mask: np.ndarray
    landmarks: np.ndarray


def views(face: View, kinds: Collection[str], rng: np.random.Generator) -> list[View]:
    """The face itself; with "flip" its mirror image; with any other kind, one of the two in other colours, in grey or less sharp."""
    found = [face, *([mirrored(face)] if "flip" in kinds else [])]
    if set(kinds) - {"flip"}:
        chosen = found[rng.integers(len(found))]
        found.append(chosen._replace(crop=altered(chosen.crop, kinds, rng)))
    return found


def mirrored(face: View) -> View:
    """Pixel x becomes S - 1 - x. What was the left eye is the right one of the mirrored face, and its landmarks say so."""
    width = face.crop.shape[1]
    landmarks = face.landmarks[list(MIRRORED)] * [-1, 1] + [width - 1, 0]
    return View(face.crop[:, ::-1].copy(), face.mask[:, ::-1].copy(), landmarks.astype(face.landmarks.dtype))


def altered(crop: np.ndarray, kinds: Collection[str], rng: np.random.Generator) -> np.ndarray:
    """The same picture (S, S, 3) uint8 from another camera: white balance, exposure and saturation, grey, softness, as `kinds` says."""
    import cv2

    image: np.ndarray = crop.astype(np.float32) / 255
    if "colour" in kinds:
        grey = image.mean(axis=2, keepdims=True)
        image = grey + (image - grey) * rng.uniform(1 - _SATURATION, 1 + _SATURATION)
        image = np.clip(image * rng.uniform(1 - _GAIN, 1 + _GAIN, 3), 0, 1) ** rng.uniform(1 - _GAMMA, 1 + _GAMMA)
    if "grey" in kinds and rng.random() < _GREY:
        image = np.repeat((image @ _LUMA)[..., None], 3, axis=2)
    if "blur" in kinds and rng.random() < _BLUR:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, _SOFTEST))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
