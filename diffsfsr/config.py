"""Every setting, once, as frozen dataclasses; `presets` has the table of named rows.

A preset is plain data: `override(p, {"training.steps": "100"})` changes one, and `to_dict` / `from_dict` round-trip it strictly:
an unknown key is an error that names the nearest known one. Bad combinations are refused when a row is built, before anything
is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from diffsfsr.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Data:
    """Which photographs become faces, and how they are dealt into shards and splits."""

    detector: Literal["dlib", "yunet", "insightface"] = "dlib"  # what finds faces; the others need weights
    landmarks: Literal["dlib", "facemesh"] = "dlib"  # whose 68 points align them; dlib's file excludes commercial use
    face: str = "only"  # which face of a picture: only | largest | its index from the left
    min_face: int = 40  # width of the face box in source pixels, below which a picture is rejected
    max_yaw: float = 60.0  # degrees away from the camera, beyond which a picture is rejected
    max_outside: float = 0.1  # share of the crop that may lie outside the picture or in its black border
    max_pixels: int = 100_000_000  # a larger picture is not decoded
    shard: int = 500  # pictures in a shard
    test_fraction: float = 0.1  # share of people held out


@dataclass(frozen=True)
class Autoencoder:
    """Pixels <-> latents, eight pixels to a latent position."""

    kind: Literal["kl", "tiny"] = "tiny"  # diffusers' AutoencoderKL or AutoencoderTiny
    channels: int = 8  # C
    width: int = 64
    source: str = ""  # a name in the weights zoo; empty: trained here


@dataclass(frozen=True)
class Dln:
    """The expression encoder: deviation of a trained network from its frozen twin (Zhang et al., CVPR 2021)."""

    backbone: Literal["dlib", "facenet"] = "dlib"  # the identity network that both twins start from
    triplets: tuple[Literal["labels", "blendshapes", "annotations"], ...] = ("labels",)  # who says which two look alike; each an annotator
    dim: int = 16
    margin_one_class: float = 0.1
    margin: float = 0.2
    source: str = ""


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told besides the scene."""

    identity: tuple[str, ...] = ("dlib",)  # compound identity, in token order
    token_width: int = 768  # W
    slot_dropout: float = 0.1  # chance that an identity token is replaced by its null token
    drop_all: float = 0.0  # chance that all tokens are; more than 0 allows guidance
    background: Literal["image", "segmentation"] = "image"  # segmentation: only where the face is; the scene comes in while sampling
    mask_channel: bool = False  # the face mask as one more input channel
    pooled: bool = False  # the mean token is added to the time embedding too


@dataclass(frozen=True)
class Unet:
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)  # diffusers calls it attention_head_dim and counts heads
    source: str = ""


@dataclass(frozen=True)
class Schedule:
    steps: int = 1000  # T
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class Objective:
    """Eq. 7 and how its terms are estimated."""

    lambda_id: float = 0.003
    lambda_exp: float = 0.01
    midpoint: Literal["improved", "original", "one-step"] = "improved"
    midpoint_noise: bool = True
    aux_fraction: float = 1.0  # share of the batch that carries L_id and L_exp
    aux_max_t: int = 1000  # largest timestep that carries them
    loss_decoder: str = ""  # what they look through: empty: the autoencoder; small: one trained here; or a decoder of the zoo
    min_snr: float = 0.0  # gamma, at which a timestep's weight is clipped (Hang et al. 2023); 0: off
    p_self: float = 0.5  # chance of a self triplet


@dataclass(frozen=True)
class Training:
    steps: int = 200_000
    batch: int = 8  # per process and micro batch
    accumulation: int = 1
    lr: float = 1e-5
    warmup: int = 0
    decay_from: int = 100_000  # the step at which the rate begins its linear fall to zero
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema: float = 0.0  # 0: off
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"  # to the host's memory: the optimiser's state, or the parameters too
    gradient_checkpointing: bool = False  # forget activations and compute them again: less memory, a third more time
    channels_last: bool = True
    compile: bool = False  # torch.compile of the UNet
    processes: int = 1  # on each machine
    ahead: int = 2  # batches drawn before they are needed
    validate_every: int = 0  # steps between validation pictures; 0: none
    validation_items: int = 8
    checkpoint_every: int = 5000
    log_every: int = 50
    keep_checkpoints: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    sampler: Literal["pndm", "ddim", "dpm-solver++", "unipc"] = "pndm"
    steps: int = 50
    guidance: float = 1.0


@dataclass(frozen=True)
class Evaluation:
    items: int = 1000
    batch: int = 16
    judge: str = "glintr100"  # "any": the first identity judge found, named in the report
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """One named, frozen configuration. `trains` says which of its networks `training` is for, `experts` whose autoencoder and DLN
    a diffusion model uses where they are not its own."""

    name: str
    trains: Literal["diffusion", "autoencoder", "dln", "decoder"] = "diffusion"
    experts: str = ""  # another preset's name
    crop: int = 512  # S
    mask: Literal["hull", "face_unet", "segformer"] = "hull"
    commercial_only: bool = False  # refuse weights whose terms exclude commercial use
    data: Data = field(default_factory=Data)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    dln: Dln = field(default_factory=Dln)
    conditioning: Conditioning = field(default_factory=Conditioning)
    unet: Unet = field(default_factory=Unet)
    schedule: Schedule = field(default_factory=Schedule)
    objective: Objective = field(default_factory=Objective)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        _refuse_bad_combinations(self)

    @property
    def latent(self) -> int:
        """h, the side of a latent in positions."""
        return self.crop // 8


_GROUPS = 32
_POSITIVE = (
    *("crop", "data.max_pixels", "data.shard", "autoencoder.channels", "autoencoder.width", "dln.dim", "conditioning.token_width"),
    *("unet.layers", "objective.aux_max_t", "training.steps", "training.batch", "training.accumulation", "training.processes"),
    *("training.checkpoint_every", "training.log_every", "training.keep_checkpoints", "training.validation_items"),
    *("sampling.steps", "evaluation.items", "evaluation.batch"),
)
_NOT_NEGATIVE = (
    *("data.min_face", "data.max_yaw", "data.max_outside", "dln.margin", "dln.margin_one_class", "objective.lambda_id"),
    *("objective.lambda_exp", "objective.min_snr", "training.warmup", "training.decay_from", "training.weight_decay"),
    *("training.grad_clip", "training.ahead", "training.validate_every", "sampling.guidance", "evaluation.seed"),
)


def _at(p: Preset, dotted: str) -> Any:
    value: Any = p
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _refuse_bad_combinations(p: Preset) -> None:
    down = 8 * 2 ** (len(p.unet.channels) - 1)
    rules = [
        (p.crop % down != 0, f"crop={p.crop} is not a multiple of {down}, which unet.channels={list(p.unet.channels)} needs"),
        (
            len(p.unet.heads) != len(p.unet.channels),
            f"unet.heads={list(p.unet.heads)} and unet.channels={list(p.unet.channels)} differ in length",
        ),
        (
            p.objective.midpoint == "original" and p.schedule.zero_terminal_snr and p.objective.aux_max_t >= p.schedule.steps,
            f"objective.midpoint=original divides by the signal level, which schedule.zero_terminal_snr=true makes zero at "
            f"step {p.schedule.steps}; set objective.aux_max_t={p.objective.aux_max_t} below it",
        ),
        (
            p.schedule.zero_terminal_snr and p.schedule.prediction == "epsilon",
            "schedule.zero_terminal_snr=true leaves schedule.prediction=epsilon without a signal at the last step; use v_prediction",
        ),
        (
            p.sampling.guidance != 1.0 and p.conditioning.drop_all == 0.0,
            f"sampling.guidance={p.sampling.guidance} needs a model trained to do without its tokens, not with "
            f"conditioning.drop_all={p.conditioning.drop_all}",
        ),
        (
            p.sampling.sampler == "pndm" and p.schedule.zero_terminal_snr and p.sampling.steps >= p.schedule.steps,
            f"sampling.sampler=pndm with schedule.zero_terminal_snr=true needs sampling.steps={p.sampling.steps} below {p.schedule.steps}",
        ),
        (
            p.training.offload == "all" and p.training.zero_stage != 3,
            f"training.offload=all moves parameters, which training.zero_stage={p.training.zero_stage} does not divide; use stage 3",
        ),
        (
            p.training.offload == "optimizer" and p.training.zero_stage == 0,
            "training.offload=optimizer needs an optimiser that ZeRO divides, not training.zero_stage=0",
        ),
        (
            p.training.precision == "fp16" and p.training.zero_stage == 0,
            "training.precision=fp16 scales its losses in ZeRO's optimiser, which training.zero_stage=0 has not; use stage 1",
        ),
        (
            p.conditioning.background == "segmentation" and p.conditioning.mask_channel,
            "conditioning.background=segmentation is the mask alone; set conditioning.mask_channel=false",
        ),
        (
            p.trains != "diffusion" and p.training.validate_every > 0,
            f"training.validate_every={p.training.validate_every} with trains={p.trains}: only a diffusion model has pictures to show",
        ),
        (
            p.trains != "diffusion" and p.training.gradient_checkpointing,
            f"training.gradient_checkpointing=true with trains={p.trains} would do nothing: only a diffusion model's step is large",
        ),
        (
            not 0 < p.schedule.beta_start <= p.schedule.beta_end < 1,
            f"schedule.beta_start={p.schedule.beta_start} and schedule.beta_end={p.schedule.beta_end} are not 0 < start <= end < 1",
        ),
        (p.schedule.steps < 2, f"schedule.steps={p.schedule.steps} is no walk: use 2 or more"),
        (
            p.sampling.steps > p.schedule.steps,
            f"sampling.steps={p.sampling.steps} is more than the {p.schedule.steps} of schedule.steps",
        ),
        (
            p.sampling.sampler == "pndm" and p.sampling.steps < 2,
            f"sampling.sampler=pndm with sampling.steps={p.sampling.steps} would start at clean data; use 2 or more",
        ),
        (
            any(c % _GROUPS for c in p.unet.channels),
            f"unet.channels={list(p.unet.channels)} are not multiples of {_GROUPS}, the groups of a UNet's normalisation",
        ),
        (
            any(c % max(h, 1) for c, h in zip(p.unet.channels, p.unet.heads, strict=False)),
            f"unet.heads={list(p.unet.heads)} do not divide unet.channels={list(p.unet.channels)}",
        ),
        (
            p.data.face not in ("only", "largest") and not p.data.face.isdecimal(),
            f"data.face={p.data.face} is not only, largest or an index from the left",
        ),
        *[(_at(p, name) < 0, f"{name}={_at(p, name)} is negative") for name in _NOT_NEGATIVE],
        (not 0 <= p.objective.p_self <= 1, f"objective.p_self={p.objective.p_self} is not between 0 and 1"),
        (
            p.trains == "diffusion" and _no_carrier(p),
            f"objective.aux_fraction={p.objective.aux_fraction} of training.batch={p.training.batch} is not one item, so that "
            "objective.lambda_id and lambda_exp would do nothing",
        ),
        (not 0 <= p.objective.aux_fraction <= 1, f"objective.aux_fraction={p.objective.aux_fraction} is not between 0 and 1"),
        (not 0 <= p.conditioning.slot_dropout < 1, f"conditioning.slot_dropout={p.conditioning.slot_dropout} is not in [0, 1)"),
        (not 0 <= p.conditioning.drop_all < 1, f"conditioning.drop_all={p.conditioning.drop_all} is not in [0, 1)"),
        (
            len(set(p.conditioning.identity)) < len(p.conditioning.identity),
            f"conditioning.identity={list(p.conditioning.identity)} names one twice",
        ),
        (not p.dln.triplets, "dln.triplets is empty: name who says which two of three faces look alike"),
        (len(set(p.dln.triplets)) < len(p.dln.triplets), f"dln.triplets={list(p.dln.triplets)} names one twice"),
        (not 0 <= p.data.test_fraction < 1, f"data.test_fraction={p.data.test_fraction} is not in [0, 1)"),
        *[(_at(p, name) < 1, f"{name}={_at(p, name)} is not positive") for name in _POSITIVE],
        (
            p.training.zero_stage == 3 and p.trains == "autoencoder",
            "training.zero_stage=3 with trains=autoencoder leaves no process with the whole network, which calibrating its latents "
            "needs; use a stage up to 2",
        ),
        *[
            (min(values, default=0) < 1, f"{name}={list(values)} are not all positive")
            for name, values in (("unet.heads", p.unet.heads), ("unet.channels", p.unet.channels))
        ],
        (p.crop > 4096, f"crop={p.crop} is more than 4096 pixels"),
        (not 0 <= p.training.seed < 2**63, f"training.seed={p.training.seed} is not between 0 and 2^63 - 1"),
        (p.training.lr <= 0, f"training.lr={p.training.lr} is not positive"),
        (not 0 <= p.training.ema < 1, f"training.ema={p.training.ema} is not in [0, 1)"),
        (not p.conditioning.identity, "conditioning.identity is empty: name at least one identity encoder"),
    ]
    for broken, why in rules:
        if broken:
            raise InputError(f"preset {p.name}: {why}")


def _no_carrier(p: Preset) -> bool:
    o = p.objective
    return o.aux_fraction > 0 and (o.lambda_id > 0 or o.lambda_exp > 0) and round(o.aux_fraction * p.training.batch) == 0


# --- strict conversion ----------------------------------------------------------------------------------------------


def to_dict(p: Preset) -> dict[str, Any]:
    """The preset as plain JSON data; `from_dict` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(p)))


def from_dict(data: dict[str, Any]) -> Preset:
    """A preset from `to_dict`'s form. Raises InputError for an unknown key or a value of the wrong type."""
    return _build(Preset, data, "")


def override(p: Preset, changes: dict[str, Any]) -> Preset:
    """A copy with dotted settings changed, `{"training.steps": "100"}`; strings are read as JSON where they can be."""
    data = to_dict(p)
    for dotted, value in changes.items():
        if dotted in ("name", "trains", "experts"):
            raise InputError(f"setting {dotted} belongs to the preset: choose another with --preset")
        node, path = data, dotted.split(".")
        for i, key in enumerate(path):
            if not isinstance(node, dict) or key not in node:
                known = node if isinstance(node, dict) else {}
                where = f" under {'.'.join(path[:i])}" if i else ""
                raise InputError(f"unknown setting {dotted!r}{did_you_mean(key, known)}; known{where}: {', '.join(known) or 'none'}")
            if i == len(path) - 1:
                node[key] = _read(value)
            else:
                node = node[key]
    return from_dict(data)


def read_changes(texts: Iterable[str]) -> dict[str, str]:
    """What `override` takes, from words like "training.steps=100". Raises InputError for one of another form."""
    pairs = [(text, *text.partition("=")) for text in texts]
    for text, key, equals, _ in pairs:
        if not equals or not key:
            raise InputError(f"--set {text!r} is not KEY=VALUE, as in --set training.steps=100")
    return {key: value for _, key, _, value in pairs}


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _build(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"setting {path or 'preset'} must be a table of settings, not {data!r}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise InputError(f"unknown setting {path + key!r}{did_you_mean(key, hints)}")
    return cls(**{key: _convert(hints[key], value, path + key) for key, value in data.items()})


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path + ".")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if not any(value == known and type(value) is type(known) for known in args):
            raise InputError(f"setting {path}={value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"setting {path}={value!r} must be a list")
        return tuple(_convert(args[0], v, path) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"setting {path}={value} is not a finite number")
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(kind, types.UnionType) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"setting {path}={value!r} must be of type {getattr(kind, '__name__', kind)}")
    return value
