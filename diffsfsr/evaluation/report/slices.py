"""Who and what an average hides: items sorted by pose, glasses, light, skin tone and whatever a data set says of its faces.

What no label says is read off the photograph by a rule, and such a rule is a proxy: it is named as one wherever its slices are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.items import Faces, Picture
from diffsfsr.face.glasses import wears_glasses

Rule = Callable[[Picture, np.ndarray], str]  # a crop (S, S, 3) uint8 and its landmarks (68, 2) -> what it shows

FEW = 10  # items: an interval over fewer says little
_LEFT, _RIGHT = slice(36, 42), slice(42, 48)  # eyes, as the picture shows them
_MOST_VALUES = 12  # of a label that is worth slicing by
_ONE_SIDED = 17.0  # CIE L* between the cheeks
_DIM = 62.0  # CIE L* that only a twentieth of the picture passes
_DARK, _LIGHT = -10.0, 45.0  # degrees of individual typology angle, for photographs rather than a spectrometer's light


@dataclass(frozen=True)
class Attribute:
    """What is said of the faces in one role: `of` has a value for each face id, "" where nothing is known."""

    name: str
    role: str  # scene | identity | expression
    how: str  # one line for a person
    proxy: bool
    of: Mapping[str, str] = field(repr=False)
    kinds: Sequence[str] = ()  # the values in their order; others follow

    @property
    def title(self) -> str:
        return f"{self.name} of the {self.role}{' (proxy)' if self.proxy else ''}"

    def sorted(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Value -> which of the items have it, (n,) bool; items of which nothing is known are in none."""
        values = np.array([self.of.get(row[self.role], "") for row in rows], dtype=object)
        place = {kind: i for i, kind in enumerate(self.kinds)}
        return {value: values == value for value in sorted(set(values) - {""}, key=lambda v: (place.get(v, len(place)), v))}


def attributes(faces: Faces, used: Iterable[int]) -> list[Attribute]:
    """What can be said of the faces `used` (indices). A label goes before the proxy of the same name."""
    places = sorted(set(used))
    labelled = _labels(faces, places)
    found = [Attribute(name, "identity", "label of the data set", False, of) for name, of in labelled.items()]
    for name, (role, how, rule, kinds) in RULES.items():
        if name not in labelled:
            values = {faces.ids[i]: rule(faces.crops[i], faces.landmarks[i]) for i in places}
            found.append(Attribute(name, role, how, name != "pose", values, kinds))
    if "skin tone" not in labelled:
        found.append(Attribute("skin tone", "identity", _SKIN, True, _skin_tones(faces, places), ("dark", "medium", "light")))
    return found


def _labels(faces: Faces, places: Sequence[int]) -> dict[str, dict[str, str]]:
    """Label -> face id -> value, for those that sort the faces into a few kinds. Emotions have a table of their own."""
    names = sorted({name for i in places for name in (faces.labels[i] if len(faces.labels) else ())} - {"emotion"})
    told = {name: {faces.ids[i]: faces.label(i, name) for i in places} for name in names}
    return {name: of for name, of in told.items() if 2 <= len(set(of.values()) - {""}) <= _MOST_VALUES}


def gap(values: np.ndarray, inside: np.ndarray, n: int = 1000, seed: int = 0) -> metrics.Interval:
    """The mean of (n,) values inside a slice less the mean outside, each side resampled by itself; NaN values take no part."""
    sides = [values[inside & ~np.isnan(values)], values[~inside & ~np.isnan(values)]]
    if not min(map(len, sides)):
        return metrics.Interval(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    here, there = (np.array([side[rng.integers(len(side), size=len(side))].mean() for _ in range(n)]) for side in sides)
    low, high = np.quantile(here - there, [0.025, 0.975])
    return metrics.Interval(float(sides[0].mean() - sides[1].mean()), float(low), float(high), len(sides[0]))


# --- rules --------------------------------------------------------------------------------------------------------------

_TURNED = ("turned by less than 10 degrees", "by 10 to 25 degrees", "by more than 25 degrees")
_GLASSES = ("glasses", "no glasses seen")
_LIT = ("even", "from one side", "dim")


def turned(crop: Picture, landmarks: np.ndarray) -> str:
    """How far the head is turned to a side, by its landmarks."""
    from diffsfsr.face.pose import head_pose

    yaw = abs(head_pose(landmarks).yaw)
    return _TURNED[0] if yaw < 10 else _TURNED[1] if yaw < 25 else _TURNED[2]


def glasses(crop: Picture, landmarks: np.ndarray) -> str:
    return _GLASSES[0] if wears_glasses(crop, landmarks) else _GLASSES[1]


def lit(crop: Picture, landmarks: np.ndarray) -> str:
    """Whether the cheeks are lit alike, and the picture at all."""
    left, right = (np.median(_lab(cheek)[:, 0]) for cheek in _cheeks(crop, landmarks))
    if np.percentile(_lab(crop)[:, 0], 95) < _DIM:
        return _LIT[2]
    return _LIT[1] if abs(left - right) > _ONE_SIDED else _LIT[0]


def skin_angle(crop: Picture, landmarks: np.ndarray) -> float:
    """Individual typology angle in degrees (Chardon et al. 1991), arctan((L* - 50) / b*); lighter skin is higher.

    Of the lightest among the cheeks and the forehead: shadow lowers the angle as dark skin does, and falls on one of them more.
    """
    patches = [np.median(_lab(patch), axis=0) for patch in (*_cheeks(crop, landmarks), _forehead(crop, landmarks))]
    lightness, _, yellow = max(patches, key=lambda lab: float(lab[0]))
    return float(np.degrees(np.arctan2(lightness - 50.0, max(yellow, 1e-6))))


# How often a rule is right was counted by eye on 30 faces of LFW for each of its answers; some thresholds were set on people among them.
RULES: dict[str, tuple[str, str, Rule, Sequence[str]]] = {
    "pose": ("scene", "yaw of the landmarks' head pose", turned, _TURNED),
    "glasses": (
        *("scene", "a thin level line between the eyes; of 30 faces so called 24 wear glasses, of 30 others 3 do as well"),
        *(glasses, _GLASSES),
    ),
    "light": (
        *("scene", "lightness of the two cheeks and of the whole picture; of 30 called lit from one side 20 are, of 30 called dim 25"),
        *(lit, _LIT),
    ),
}
_SKIN = (
    "typology angle of the lightest of cheeks and forehead, the median over a person's photographs; it follows the photograph's light as "
    "much as the skin: of 30 faces called dark 15 are, of 30 called light 29"
)


def _skin_tones(faces: Faces, places: Sequence[int]) -> dict[str, str]:
    """Face id -> dark, medium or light: of the person, since a person's photographs differ in light but not in skin."""
    angles: dict[str, list[float]] = {}
    for i in places:
        angles.setdefault(faces.person(i), []).append(skin_angle(faces.crops[i], faces.landmarks[i]))
    kind = {person: _tone(float(np.median(of))) for person, of in angles.items()}
    return {faces.ids[i]: kind[faces.person(i)] for i in places}


def _tone(angle: float) -> str:
    return "dark" if angle < _DARK else "light" if angle > _LIGHT else "medium"


def _cheeks(crop: Picture, landmarks: np.ndarray) -> list[np.ndarray]:
    """Two small squares, each halfway from an eye to its corner of the mouth."""
    return [_square(crop, landmarks, (landmarks[eye].mean(axis=0) + landmarks[mouth]) / 2) for eye, mouth in ((_LEFT, 48), (_RIGHT, 54))]


def _forehead(crop: Picture, landmarks: np.ndarray) -> np.ndarray:
    """A small square above the brows."""
    eyes, mouth = landmarks[36:48].mean(axis=0), landmarks[48:60].mean(axis=0)
    return _square(crop, landmarks, eyes + 0.55 * (eyes - mouth))


def _square(crop: Picture, landmarks: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """About a centre, a quarter as wide as the eyes are apart, and inside the crop."""
    apart = float(np.linalg.norm(landmarks[_LEFT].mean(axis=0) - landmarks[_RIGHT].mean(axis=0)))
    reach = min(max(2, round(0.14 * apart)), len(crop) // 4)
    x, y = np.clip(np.rint(centre).astype(int), reach, len(crop) - reach - 1)
    return crop[y - reach : y + reach + 1, x - reach : x + reach + 1]


def _lab(pixels: Picture) -> np.ndarray:
    """(n, 3) CIE L*a*b* of uint8 RGB pixels."""
    import cv2

    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
