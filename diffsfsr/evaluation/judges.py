"""Networks used only to score: who is in an output, with which expression and pose, apart from those that conditioned or trained it.

Every judge is (images (B, 3, S, S) RGB in [-1, 1], landmarks (B, 68, 2) crop pixels) -> (B, D). The identity judge also says whether it
is `independent` of the model it judges. Expression is judged twice: by the DLN, which conditions and trains the model (the paper's
Exp), and by blendshape coefficients, which know nothing of either. `Judges` is all of them on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from diffsfsr import tables, weights
from diffsfsr.encoders import IDENTITY, Encoder, load_encoder
from diffsfsr.errors import InputError, NotReady, did_you_mean

if TYPE_CHECKING:
    from diffsfsr.config import Preset
    from diffsfsr.face.parsing import Parser

# The order in which `any` looks for one. The first is the paper's kind of judge (sec. 4 uses CosFace): insightface's
# antelopev2, trained on Glint360K with a cosine margin. The second is Open Model Zoo's face-reidentification-retail-0095.
PREFERRED = ("glintr100", "reid0095")


class IdentityJudge(Protocol):
    name: str
    version: str  # sha256 of its weights and recipe
    independent: bool  # False: it conditioned or trained the model, so that its scores flatter it
    centred: bool  # its cosines mean something only after the mean embedding is subtracted (dlib)

    def __call__(self, images: Tensor, landmarks: Tensor) -> Tensor: ...


class EncoderJudge(nn.Module):
    """An encoder as a judge: the same network and the same warp, without gradients."""

    def __init__(self, encoder: Encoder, independent: bool = False) -> None:
        super().__init__()
        self.encoder, self.independent = encoder, independent
        self.name, self.version, self.centred = encoder.name, encoder.version, encoder.centred

    @torch.no_grad()
    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        return self.encoder(images, landmarks)


def pick_identity_judge(name: str = "any", known: Sequence[str] = ("dlib",)) -> EncoderJudge:
    """The identity judge of that name; `any`: the first on this machine that the model does not know, else the first of those it does.

    Args:
        known: the recognisers that condition or train the model; a judge among them is not independent.

    Raises InputError for an unknown name, NotReady where its weights are not on this machine.
    """
    if name == "any":
        name = _first(known)
    if name not in IDENTITY:
        raise InputError(f"unknown identity judge {name!r}{did_you_mean(name, IDENTITY)}; known: any, {', '.join(IDENTITY)}")
    return EncoderJudge(load_encoder(name), independent=name not in known)


def _first(known: Sequence[str]) -> str:
    others = [name for name in (*PREFERRED, *IDENTITY) if name not in known]
    here = (name for name in (*others, *known) if name in IDENTITY and all(map(weights.find, weights.files_of(name))))
    return next(here, "dlib")


def describe(judge: IdentityJudge) -> str:
    """One line for a report."""
    flattered = "NOT independent: it conditions or trains the model, which flatters identity"
    standing = "independent of the model" if judge.independent else flattered
    return f"{judge.name} ({standing}; weights {judge.version[:12]})"


# --- all of them --------------------------------------------------------------------------------------------------------

Judge = Callable[[Tensor, Tensor], Tensor]  # (images, landmarks) -> (B, D)


@dataclass(frozen=True, eq=False)
class Judges:
    """Who scores an evaluation. What is None is not on this machine: its figures are missing, and `absent` says why."""

    identity: IdentityJudge
    expression: Judge  # the DLN
    pose: Judge  # yaw, pitch, roll in degrees
    region: Parser  # where the face is that may change
    coefficients: Judge | None = None  # blendshapes, 52 of 0..1
    inception: Callable[[np.ndarray], np.ndarray] | None = None  # pictures (B, S, S, 3) uint8 -> (B, D): the features of FID
    absent: Mapping[str, str] = field(default_factory=dict)  # role -> why

    @property
    def named(self) -> dict[str, Any]:
        """Role -> judge, of those that look at a face and are here."""
        every = {role: getattr(self, role) for role in ("identity", "expression", "coefficients", "pose")}
        return {role: judge for role, judge in every.items() if judge is not None}

    def describe(self) -> dict[str, str]:
        """Role -> one line for a report, the absent ones with their reason."""
        others = {**self.named, "fid": self.inception}
        told = {role: _told(judge) for role, judge in others.items() if judge is not None and role != "identity"}
        return {"identity": describe(self.identity), **told, "region": self.region.name, **self.absent}

    @property
    def version(self) -> str:
        """Figures of one version may be compared."""
        return tables.fingerprint(self.describe())

    def see(self, role: str, crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """(B, D) float64 of one judge on crops (B, S, S, 3) uint8 with landmarks (B, 68, 2), on the judge's own device."""
        return embed(self.named[role], crops, landmarks)


def _told(judge: Any) -> str:
    return f"{getattr(judge, 'name', type(judge).__name__)} (weights {getattr(judge, 'version', 'unknown')[:12]})"


def embed(judge: Judge, crops: Sequence[np.ndarray] | np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(B, D) float64 of B crops with their landmarks (B, 68, 2), on the judge's own device."""
    from diffsfsr.face.images import to_tensor

    weight = next(judge.parameters(), None) if isinstance(judge, nn.Module) else None
    device = torch.device("cpu") if weight is None else weight.device
    points = torch.from_numpy(np.asarray(landmarks, dtype=np.float32))
    with torch.no_grad():
        return judge(to_tensor(np.asarray(crops)).to(device), points.to(device)).cpu().double().numpy()


def chosen(preset: Preset) -> dict[str, str]:
    """Role -> the judge that `pick_judges` would take here, "" for none; nothing is loaded."""
    e = preset.evaluation
    fsanet = all(map(weights.find, weights.files_of("fsanet")))
    blendshapes = all(map(weights.find, weights.files_of("blendshapes")))
    return {
        "identity": _first(preset.recognisers) if e.judge == "any" else e.judge,
        "pose": ("fsanet" if fsanet else "pnp") if e.pose == "any" else e.pose,
        "region": preset.mask,
        "coefficients": "blendshapes" if blendshapes else "",
        "fid": "inception" if weights.find("inception") else "",
    }


def pick_judges(preset: Preset, expression: Judge) -> Judges:
    """The judges that a preset's evaluation names, with what this machine has of those that no setting asks for.

    `expression` is the DLN. Raises InputError for an unknown name, NotReady where a judge asked for by name is not on this machine.
    """
    from diffsfsr.encoders.blendshapes import BlendshapeEncoder
    from diffsfsr.evaluation.fid import Inception
    from diffsfsr.face.parsing import parser
    from diffsfsr.face.pose import pose_estimator

    names, absent = chosen(preset), dict[str, str]()
    identity = pick_identity_judge(names["identity"], preset.recognisers)
    pose, coefficients = pose_estimator(names["pose"]), _if_here("coefficients", BlendshapeEncoder, absent)
    identity, expression, pose, coefficients = map(_placed, (identity, expression, pose, coefficients))
    return Judges(identity, expression, pose, parser(names["region"]), coefficients, _if_here("fid", Inception, absent), absent)


def _placed(judge: Any) -> Any:
    """The judge where it is fastest."""
    return judge.to("cuda") if isinstance(judge, nn.Module) and torch.cuda.is_available() else judge


def _if_here(role: str, make: Callable[[], Any], absent: dict[str, str]) -> Any:
    try:
        return make()
    except NotReady as missing:
        absent[role] = f"missing: {missing}"
        return None
