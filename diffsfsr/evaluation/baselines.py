"""Methods that need no training: the floor, the ceiling, and what was done before there were networks, with one network among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr import tables, weights
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.evaluation.items import Faces, Item, Picture
from diffsfsr.evaluation.methods import Hybrid, Make, Method
from diffsfsr.face.images import to_bgr
from diffsfsr.face.parsing import parser, parser_version
from diffsfsr.face.warping import FEATHER, paste_back, transform

FLOOR, CEILING = "untouched", "real-photo"
_RECIPE = 2  # goes up with every change of what these make
_IN_PLACE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
STEADY = [*range(5), *range(12, 17), *range(27, 36), 36, 39, 42, 45]  # jaw by the ears, nose, eye corners: no expression moves them much


class Untouched:
    """The floor: the scene as it is. Its background and pose are perfect, its identity and expression nobody asked for."""

    name, version = FLOOR, str(_RECIPE)

    def __init__(self, faces: Faces) -> None:
        self.faces = faces

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        return [self.faces.crops[item.scene] for item in items]


class RealPhoto:
    """The ceiling of identity: another real photograph of the identity's person, where there is one; expression and pose are its own."""

    name = CEILING

    def __init__(self, faces: Faces) -> None:
        self.faces, self.of = faces, dict[str, list[int]]()
        self.version = tables.fingerprint(_RECIPE, sorted(zip(faces.ids, faces.people, strict=True)))  # it chooses among all of them
        for i in sorted(range(len(faces.ids)), key=lambda i: faces.ids[i]):
            self.of.setdefault(faces.person(i), []).append(i)

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        others = [[i for i in self.of[self.faces.person(item.identity)] if i not in (item.identity, item.scene)] for item in items]
        return [self.faces.crops[found[seed % len(found)]] if found else None for found, seed in zip(others, seeds, strict=True)]


class _Pasted(ABC):
    """A picture in the frame of the scene's crop, blended into the scene's facial region."""

    name = ""

    def __init__(self, faces: Faces, mask: str = "hull") -> None:
        """`mask` names a face parser: the region that may change is the one that our model may change."""
        self.faces, self.parser = faces, parser(mask)
        self.version = tables.fingerprint(self.name, _RECIPE, parser_version(mask))

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        scenes = [item.scene for item in items]
        crops = np.stack([self.faces.crops[i] for i in scenes])
        masks = self.parser.masks(crops, self.faces.landmarks[scenes])
        painted = [self.painted(item, crop) for item, crop in zip(items, crops, strict=True)]
        return [
            paste_back(crop, picture, _IN_PLACE, mask * known, FEATHER)
            for crop, (picture, known), mask in zip(crops, painted, masks, strict=True)
        ]

    @abstractmethod
    def painted(self, item: Item, scene: Picture) -> tuple[Picture, np.ndarray]:
        """The picture to take the face from, and where it shows one: (S, S, 3) uint8 and (S, S) of 0 and 1."""


class AlphaPaste(_Pasted):
    """The identity image laid over the scene by the similarity that brings its landmarks nearest to the scene's, and blended in."""

    name = "alpha-paste"

    def painted(self, item: Item, scene: Picture) -> tuple[Picture, np.ndarray]:
        import cv2
        import torch

        from diffsfsr.encoders.warp import similarity
        from diffsfsr.face.masks import hull_mask

        size, points = len(scene), self.faces.landmarks
        matrix = similarity(torch.from_numpy(points[item.identity]), torch.from_numpy(points[item.scene])).double().numpy()
        source = self.faces.crops[item.identity]
        laid = cv2.warpAffine(source, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        region = cv2.warpAffine(hull_mask(points[item.identity], size), matrix, (size, size), flags=cv2.INTER_NEAREST)
        return laid, region


class LandmarkWarp(_Pasted):
    """Reenactment by landmarks: the scene's own face, bent piecewise affinely until its landmarks lie as the expression image's do.

    The expression image's landmarks are first brought over the scene's by the affinity that fits what no expression moves, which takes
    away most of how else the two heads look and are shaped; then brows, lids, mouth and chin follow. What the scene does not show, such
    as teeth, no warp can show either.
    """

    name = "landmark-warp"

    def painted(self, item: Item, scene: Picture) -> tuple[Picture, np.ndarray]:
        own, other = self.faces.landmarks[item.scene], self.faces.landmarks[item.expression]
        wanted = transform(other, affinity(other[STEADY], own[STEADY]))
        wanted[STEADY] = own[STEADY]
        return bent(scene, own, wanted), np.ones(scene.shape[:2], np.uint8)


def affinity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3): the affine map that brings (P, 2) points nearest to others in least squares; P is at least 3."""
    known = np.column_stack([source, np.ones(len(source))]).astype(np.float64)
    return np.linalg.lstsq(known, np.asarray(target, np.float64), rcond=None)[0].T


def bent(picture: Picture, source: np.ndarray, target: np.ndarray) -> Picture:
    """The picture with its (P, 2) source points at the target points, affine in each triangle between them; its edge stays."""
    import cv2
    from scipy.interpolate import LinearNDInterpolator

    side = np.linspace(0, len(picture) - 1, 5)
    edge = np.array([(x, y) for x in side for y in side if {x, y} & {side[0], side[-1]}])
    whence = LinearNDInterpolator(np.vstack([target, edge]), np.vstack([source, edge]))
    y, x = np.mgrid[: len(picture), : len(picture)]
    field = np.nan_to_num(whence(x, y), nan=-1.0).astype(np.float32)
    return cv2.remap(picture, field[..., 0], field[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


class InSwapper:
    """insightface's inswapper, through insightface's own code from embedding to paste. It swaps; the scene keeps its expression."""

    name = "inswapper"

    def __init__(self, faces: Faces, swapper: Path | None = None, recogniser: Path | None = None) -> None:
        """Raises NotReady where a file of the zoo (inswapper, w600k_r50) is not on this machine."""
        from insightface.model_zoo import get_model

        files = swapper or weights.resolve("inswapper"), recogniser or weights.resolve("w600k_r50")
        self.faces, self.version = faces, tables.fingerprint(self.name, *map(weights.file_sha256, files))
        self.swapper, self.recogniser = (get_model(str(file), providers=["CPUExecutionProvider"]) for file in files)

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        return [self._swapped(item) for item in items]

    def _swapped(self, item: Item) -> Picture:
        source, scene = self._face(item.identity), to_bgr(self.faces.crops[item.scene])
        self.recogniser.get(to_bgr(self.faces.crops[item.identity]), source)  # sets its embedding
        return to_bgr(self.swapper.get(scene, self._face(item.scene), source, paste_back=True))

    def _face(self, i: int) -> Any:
        """A face of insightface's kind: eye centres, nose tip and mouth corners."""
        from insightface.app.common import Face

        points = self.faces.landmarks[i].astype(np.float32)
        eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
        return Face(kps=np.stack([*eyes, points[30], points[48], points[54]]))


# Each over faces, by name; `mask` names the face parser of what may change.
BASELINES: dict[str, Callable[[Faces, str], Method]] = {
    Untouched.name: lambda faces, mask: Untouched(faces),
    RealPhoto.name: lambda faces, mask: RealPhoto(faces),
    AlphaPaste.name: AlphaPaste,
    LandmarkWarp.name: LandmarkWarp,
    InSwapper.name: lambda faces, mask: InSwapper(faces),
}


def maker(name: str, mask: str = "hull") -> Make:
    """What makes the method of that name over faces; `swap+reenact` is the hybrid of two. Raises InputError for an unknown name."""
    first, _, second = name.partition("+")
    if second:
        return partial(Hybrid, first=maker(first, mask), second=maker(second, mask))
    if name not in BASELINES:
        raise InputError(
            f"unknown method {name!r}{did_you_mean(name, BASELINES)}; these run here: {', '.join(BASELINES)}, and two of them as "
            "swap+reenact; for another program's outputs name their folder with --outputs"
        )
    return lambda faces: BASELINES[name](faces, mask)
