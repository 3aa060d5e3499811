"""The light and the colour of the scene's own face, for the one that was painted in its place.

A model guesses from a neck and a forehead how a face is lit, and errs in patches. The scene's face had the right light. Both faces' skin
is smoothed until no feature is left, and by what they then differ the painted one is moved: shadows and casts become the
scene's, features stay what they are. (Statistics of colour handed from picture to picture, after Reinhard et al. 2001, place by place.)
"""

from __future__ import annotations

import numpy as np

_SMOOTH = 1 / 8  # of the side, the deviation of the blur
_SKIN = np.array([25.0, 10.0, 10.0], np.float32)  # Lab: how far from the face's median colour skin lies; beyond are lips, teeth, lenses
_FEW = 0.02  # weight of the whole face's mean beside what skin is near: in a lens there is none
_BLACK = 25.0  # L, below which less and less of the light arrives: an open mouth is dark


def matched(painted: np.ndarray, scene: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A painted crop (S, S, 3) uint8 with the light of the scene's crop, which still has its own face, where `mask` (S, S) is 1; elsewhere,
    and where the mask is empty, as it is."""
    import cv2

    if not mask.any():
        return painted
    inside = (mask > 0).astype(np.float32)
    own, wanted = (cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for crop in (painted, scene))
    lit = own + (_skin_light(wanted, inside) - _skin_light(own, inside)) * np.clip(own[..., :1] / _BLACK, 0, 1)
    lit = np.rint(cv2.cvtColor(lit, cv2.COLOR_LAB2RGB) * 255).clip(0, 255).astype(np.uint8)
    return np.where(inside[..., None] > 0, lit, painted)


def _skin_light(lab: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(S, S, 3) float32 Lab: the smoothed colour of a face's skin, of which what is no skin has no part."""
    import cv2

    away = (lab - np.median(lab[inside > 0], axis=0)) / _SKIN
    weight = inside * np.exp(-0.5 * np.square(away).sum(axis=-1))
    mean = (lab * weight[..., None]).sum((0, 1)) / weight.sum()
    near = cv2.GaussianBlur(weight, (0, 0), _SMOOTH * len(lab))[..., None]
    return (cv2.GaussianBlur(lab * weight[..., None], (0, 0), _SMOOTH * len(lab)) + _FEW * mean) / (near + _FEW)
