"""Selfie + scene + expression -> finished portrait: align, generate, paste back."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from safetensors import SafetensorError
from torch import Tensor

from diffsfsr.config import Preset
from diffsfsr.encoders import brows, glasses
from diffsfsr.encoders.compound import Average, CompoundIdentity, average, same_person
from diffsfsr.encoders.dln import Dln
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face import tone
from diffsfsr.face.alignment import AlignedFace, align, paste_back
from diffsfsr.face.glasses import wears_glasses
from diffsfsr.face.images import Rejected, to_tensor, to_uint8
from diffsfsr.face.masks import hull_mask
from diffsfsr.face.parsing import parser
from diffsfsr.face.warping import FEATHER
from diffsfsr.model.pipeline import DiffSFSRPipeline, inference_dtype
from diffsfsr.model.sampling import expression_strength, make_scheduler, timesteps
from diffsfsr.portrait.shipped import preset_of

TOGETHER = 8  # portraits in one call of the model


@dataclass(frozen=True)
class Portrait:
    """A finished picture and how it came about."""

    image: np.ndarray  # HWC uint8, the scene's size; outside the mask's feather the scene's own bytes
    crop: np.ndarray  # (S, S, 3) uint8, what the model made, before it is pasted
    scene_face: AlignedFace
    timings: dict[str, float]  # seconds
    outliers: dict[str, tuple[int, ...]] = field(default_factory=dict)  # encoder -> selfies, from 0, that it takes for somebody else


@dataclass(frozen=True)
class Sitting:
    """A portrait that wants only painting: one item of a batch."""

    scene: np.ndarray  # HWC uint8
    target: AlignedFace  # the scene's face
    mask: np.ndarray  # (S, S)
    identity: dict[str, Tensor]  # encoder -> (D,)
    expression: Tensor  # (16,), unit length: what is to be shown
    own: Tensor  # (16,): the scene's
    negative: Tensor | None  # (16,): what guidance leads away from, in place of no expression
    seed: int
    steps: int
    sampler: str
    outliers: dict[str, tuple[int, ...]]
    timings: dict[str, float]

    def finished(self, crop: np.ndarray, timings: dict[str, float]) -> Portrait:
        """The portrait of which the model made `crop` (S, S, 3), pasted into the scene."""
        clock = _Clock()
        with clock.time("paste"):
            image = paste_back(self.scene, crop, self.target.matrix, self.mask, FEATHER, self.seed)
        return Portrait(image, crop, self.target, self.timings | timings | clock.seconds, self.outliers)


class Studio:
    """A saved model, loaded: everything that makes portraits but the choice of an expression for a word."""

    def __init__(self, folder: Path, device: str | None = None, commercial_only: bool = False) -> None:
        """`folder` is a training run's `model`.

        An identity encoder whose weights are not on this machine, or that `commercial_only` (here or in the model's preset)
        refuses, is an absent slot: it is named on standard error and in `absent`, and its learned null token stands in.
        Raises NotReady where the model is not there, or no identity encoder can be used.
        """
        if not (folder / "preset.json").is_file():
            raise NotReady(f"no model in {folder}; run `diffsfsr run train` and `diffsfsr run promote`")
        self.preset: Preset = preset_of(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        logging.disable_progress_bar()  # of loading four small components
        try:
            self.pipeline = DiffSFSRPipeline.from_pretrained(folder, dtype=inference_dtype(self.device)).to(self.device)
            self.dln = Dln.load(folder / "dln").to(self.device)
            self.glasses = glasses.load(folder, self.pipeline.tokens.dims)
            self.brows = brows.load(folder, self.pipeline.tokens.dims)
        except (OSError, ValueError, SafetensorError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"{folder} is no whole model ({why}): put it there again, or name another") from error
        self.pipeline.set_progress_bar_config(disable=True)
        self.parser = parser(self.preset.mask)
        names, refuse = self.preset.conditioning.identity, commercial_only or self.preset.commercial_only
        self.identity = CompoundIdentity.at_hand(names, refuse).to(self.device)
        for name, why in self.absent.items():
            print(f"identity encoder {name} is absent ({why}); its null token stands in", file=sys.stderr, flush=True)

    @property
    def absent(self) -> dict[str, str]:
        """The identity encoders of the model that this studio goes without, and why."""
        return self.identity.absent

    def face(self, image: np.ndarray, what: str, choice: str = "only") -> AlignedFace:
        """The face of a picture. Raises InputError, naming `what` it is, where there is none that will do."""
        # A face at the edge is good enough to be in a portrait, if not to be learned from.
        data = dataclasses.replace(self.preset.data, face=choice, max_outside=1.0)
        try:
            return align(image, self.preset.crop, data)
        except Rejected as rejected:
            raise InputError(f"{what}: {rejected.reason} ({rejected.detail}); give another photograph") from rejected

    def embed_identity(self, faces: Sequence[AlignedFace]) -> dict[str, Tensor]:
        """Encoder -> (1, D): one person's compound identity from one or several aligned faces; absent encoders have no entry."""
        return {name: found.embedding[None] for name, found in self.average_identity(faces).items()}

    def average_identity(self, faces: Sequence[AlignedFace]) -> dict[str, Average]:
        """Encoder -> what it makes of one person's faces, which are named "0", "1", ...; it leaves out those of somebody else."""
        with torch.inference_mode():
            found = self.identity(*self._tensors(faces))
        means, names = self.pipeline.tokens.means(), [str(i) for i in range(len(faces))]
        return {name: average(embeddings, names, means[name], same_person(name)) for name, embeddings in found.items()}

    def embed_expression(self, face: AlignedFace) -> Tensor:
        """(1, 16), unit length: the face's own expression."""
        with torch.inference_mode():
            return self.dln(*self._tensors([face]))

    def _wears_glasses(self, face: AlignedFace) -> bool:
        """By what they do to an identity, where that is known; else by the picture."""
        if not self.glasses.keys() & self.identity.encoders.keys():
            return wears_glasses(face.crop, face.crop_landmarks)
        with torch.inference_mode():
            return bool(glasses.wearers(self.identity(*self._tensors([face])), self.glasses)[0])

    def _tensors(self, faces: Sequence[AlignedFace]) -> tuple[Tensor, Tensor]:
        crops, landmarks = _stacked(faces)
        return to_tensor(crops).to(self.device), torch.from_numpy(landmarks).to(self.device)

    def mask(self, target: AlignedFace, identity: Mapping[str, Tensor], expression: Tensor) -> np.ndarray:
        """The facial region (S, S), 0 and 1, of a scene's face for embeddings (D,). No exaggeration is to be told of: from a region that is
        far from the scene's face a network that saw none such paints no whole one."""
        return self.masks(*_stacked([target]), {name: part[None] for name, part in identity.items()}, expression[None])[0]

    @torch.inference_mode()
    def masks(self, crops: np.ndarray, landmarks: np.ndarray, identity: dict[str, Tensor], expression: Tensor) -> np.ndarray:
        """The facial regions (B, S, S), 0 and 1, of scenes' crops (B, S, S, 3) for who is to be shown there, embeddings of B rows. Where
        the preset's sampling asks for it, a landmark hull begins above that face's brows, and takes in what of the scene's glasses juts
        out beside it."""
        asked = self.preset.sampling
        lifted, framed = self.brows if asked.own_brows else None, self.glasses if asked.without_glasses else {}
        if not ((lifted or framed) and self.parser.name == "hull" and len(landmarks)):
            return self.parser.masks(crops, landmarks)
        scenes = to_tensor(crops).to(self.device), torch.from_numpy(np.float32(landmarks)).to(self.device)
        there = self.identity(*scenes)
        theirs: Sequence[np.ndarray | None] = [None] * len(landmarks)
        if lifted:
            apart = {name: part - there[name] for name, part in identity.items() if name in there}
            theirs = list(lifted.moved(landmarks, expression - self.dln(*scenes), apart))
        faces = zip(landmarks, theirs, glasses.wearers(there, framed), strict=True)
        return np.stack([hull_mask(points, crops.shape[1], own, bool(wears)) for points, own, wears in faces])

    def compose(self, selfies: Sequence[AlignedFace], scene: np.ndarray, expression: np.ndarray | None, **wishes: Any) -> Portrait:
        """Make one portrait; the arguments are those of `sit`."""
        return self.paint([self.sit(selfies, scene, expression, **wishes)])[0]

    def sit(
        self,
        selfies: Sequence[AlignedFace],
        scene: np.ndarray,
        expression: np.ndarray | None,
        *,
        negative: np.ndarray | None = None,
        task: str = "all",
        strength: float = 1.0,
        steps: int = 0,
        sampler: str = "",
        seed: int = 0,
        face: str = "only",
    ) -> Sitting:
        """All of one portrait but the painting.

        `selfies` show one person (none for task `expression`), `scene` is HWC uint8 RGB of any size, `expression` (16,) the
        word's embedding (None for task `identity`), `negative` (16,) the contrary feeling's, where it has one; it counts where
        sampling.negative wants it.
        The other arguments are those of portrait.order.Order. Raises InputError
        where no portrait can come of it: no face, or steps that the sampler cannot take.
        """
        clock = _Clock()
        steps, sampler = steps or self.preset.sampling.steps, sampler or self.preset.sampling.sampler
        timesteps(make_scheduler(self.preset.schedule, sampler), steps)
        with clock.time("align"):
            target = self.face(scene, "the scene", face)
            if self.parser.name != "segformer" and self._wears_glasses(target):
                print(_GLASSES, file=sys.stderr, flush=True)
        with clock.time("embed"):
            people = self.average_identity([target] if task == "expression" else list(selfies))
            identity = {name: found.embedding for name, found in people.items()}
            own = self.embed_expression(target)[0]
            wanted = own if task == "identity" or expression is None else torch.from_numpy(np.float32(expression)).to(self.device)
            shown = expression_strength(own, wanted, strength)
            led = self.preset.sampling.negative and task != "identity"
            away = self._away(own, negative, strength) if led else None
            mask = self.mask(target, identity, expression_strength(own, wanted, min(strength, 1.0)))
        outliers = {name: tuple(map(int, found.outliers)) for name, found in people.items() if found.outliers}
        for name in outliers:
            print(_told(name, people[name]), file=sys.stderr, flush=True)
        return Sitting(scene, target, mask, identity, shown, own, away, seed, steps, sampler, outliers, clock.seconds)

    def _away(self, own: Tensor, negative: np.ndarray | None, strength: float) -> Tensor | None:
        """The negative expression of a wish of that strength: at 0 the scene's own, so that nothing is added to it."""
        if negative is None:
            return None
        return expression_strength(own, torch.from_numpy(np.float32(negative)).to(self.device), min(strength, 1.0))

    def paint(self, sittings: Sequence[Sitting]) -> list[Portrait]:
        """A portrait for each sitting, in order. Those of equal steps and sampler, all with a negative expression or all
        without, are painted together, at most TOGETHER at once.

        Alone or with others, a sitting gives the same portrait but for rounding: a pixel may differ by 1 of 255.
        """
        made: dict[int, Portrait] = {}
        groups: dict[tuple[int, str, bool], list[int]] = {}
        for i, sitting in enumerate(sittings):
            groups.setdefault((sitting.steps, sitting.sampler, sitting.negative is None), []).append(i)
        for group in groups.values():
            for start in range(0, len(group), TOGETHER):
                chosen = group[start : start + TOGETHER]
                made |= zip(chosen, self._paint_together([sittings[i] for i in chosen]), strict=True)
        return [made[i] for i in range(len(sittings))]

    def _paint_together(self, sittings: Sequence[Sitting]) -> list[Portrait]:
        clock = _Clock()
        negative = [sitting.negative for sitting in sittings if sitting.negative is not None]  # of all, or of none
        with clock.time("generate"):
            crops = self.generate(
                to_tensor(np.stack([sitting.target.crop for sitting in sittings])),
                np.stack([sitting.mask for sitting in sittings]),
                np.stack([sitting.target.crop_landmarks for sitting in sittings]),
                {name: torch.stack([sitting.identity[name] for sitting in sittings]) for name in sittings[0].identity},
                torch.stack([sitting.expression for sitting in sittings]),
                [sitting.seed for sitting in sittings],
                sittings[0].steps,
                sittings[0].sampler,
                torch.stack(negative) if negative else None,
            )
        return [sitting.finished(crop, clock.seconds) for sitting, crop in zip(sittings, crops, strict=True)]

    def generate(
        self,
        scenes: Tensor,
        masks: np.ndarray,
        landmarks: np.ndarray,
        identity: dict[str, Tensor],
        expression: Tensor,
        seeds: Sequence[int],
        steps: int = 0,
        sampler: str = "",
        negative: Tensor | None = None,
    ) -> np.ndarray:
        """(B, S, S, 3) uint8 faces for scenes (B, 3, S, S), masks (B, S, S) of 0 and 1, the landmarks of the scenes' faces (B, 68, 2) in
        crop pixels and embeddings of B rows; not pasted back. The model is told the expression in the pose of the scene's head, and
        so is guidance what it leads away from, `negative` (B, 16); where the preset's sampling asks for it, it is told the identity without
        glasses, and the faces get the light of the scenes' own."""
        self.pipeline.set_sampler(sampler or self.preset.sampling.sampler)
        mask = torch.from_numpy(masks)[:, None].float()
        posed = torch.from_numpy(np.float32(landmarks))
        told = self.dln.posed(expression, posed)
        away = None if negative is None else self.dln.posed(negative, posed)
        who = glasses.taken_off(identity, self.glasses) if self.preset.sampling.without_glasses else dict(identity)
        made = self.pipeline(scenes, mask, who, told, away, steps=steps or None, seeds=list(seeds), output_type="np").images
        if not self.preset.sampling.scene_light:
            return made
        return np.stack([tone.matched(*crops) for crops in zip(made, to_uint8(scenes.cpu()), masks, strict=True)])


def _stacked(faces: Sequence[AlignedFace]) -> tuple[np.ndarray, np.ndarray]:
    """Crops (B, S, S, 3) uint8 and their landmarks (B, 68, 2) float32."""
    return np.stack([face.crop for face in faces]), np.stack([face.crop_landmarks for face in faces]).astype(np.float32)


_GLASSES = "the scene's face seems to wear glasses: what of them lies outside the facial region stays; a scene without may serve better"


def _told(encoder: str, found: Average) -> str:
    unlike = ", ".join(str(int(name) + 1) for name in found.outliers)
    left_out = "left out" if set(found.outliers).isdisjoint(found.kept) else "kept, since nobody can say which of them are wrong"
    return f"selfies that show somebody else, according to {encoder}: {unlike} (of {len(found.cosines)}); they are {left_out}"


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - started, 4)
