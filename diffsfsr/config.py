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
from diffsfsr.rules import refuse_bad_combinations


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
    augment: tuple[Literal["flip", "colour", "grey", "blur"], ...] = ()  # how training shards vary a face; see diffsfsr.face.augment


@dataclass(frozen=True)
class Autoencoder:
    """Pixels <-> latents, eight pixels to a latent position."""

    kind: Literal["kl", "tiny", "lean"] = "lean"  # diffusers' AutoencoderKL or AutoencoderTiny, or one for a CPU
    channels: int = 8  # C
    width: int = 64
    source: str = ""  # a name in the weights zoo; empty: trained here


@dataclass(frozen=True)
class Dln:
    """The expression encoder: deviation of a trained network from its frozen twin (Zhang et al., CVPR 2021)."""

    backbone: Literal["dlib", "facenet"] = "dlib"  # the identity network that both twins start from
    triplets: tuple[Literal["labels", "landmarks", "blendshapes", "annotations"], ...] = ("labels",)  # who says which two look alike
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
    attention: tuple[bool, ...] = ()  # at which levels, the finest first; empty: at all but the coarsest of four, as SD has it
    scale_shift: bool = False  # time and pooled tokens scale the features of a block too (FiLM), not only add to them
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
    lambda_perceptual: float = 0.0  # of what dlib's network sees in a self triplet's face, which has an answer; not in the paper
    identity: tuple[str, ...] = ()  # recognisers that L_id looks through besides those that condition; needed for training alone
    midpoint: Literal["improved", "original", "one-step"] = "improved"
    midpoint_noise: bool = True
    aux_fraction: float = 1.0  # share of the batch that carries L_id and L_exp
    aux_max_t: int = 1000  # largest timestep that carries them
    aux_from: float = 0.0  # share of the steps before they begin, and with them the cross triplets, whose faces they alone teach
    loss_decoder: str = ""  # what they look through: empty: the autoencoder; small: one trained here; or a decoder of the zoo
    feature_weight: float = 1.0  # how many times as much L_DM counts at the eyes and the mouth, a few positions that a stranger looks at
    min_snr: float = 0.0  # gamma, at which a timestep's weight is clipped (Hang et al. 2023); 0: off
    p_self: float = 0.5  # chance of a self triplet
    other_photo: float = 0.0  # chance that a self triplet takes who it shows from another photograph of that person
    by_label: float = 0.0  # chance that a cross triplet's expression is drawn by its label first, as often a rare one as a common one

    @property
    def sees_faces(self) -> bool:
        """Whether a loss looks at decoded estimates."""
        return self.aux_fraction > 0 and max(self.lambda_id, self.lambda_exp, self.lambda_perceptual) > 0


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
    learned: float = 1.0  # on from a model: how far from its weights to those at the end the saved ones lie (Wortsman et al. 2022)
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
    guidance_max_t: int = 1000  # largest timestep at which it counts; above, a step costs half
    negative: bool = False  # guidance leads a feeling that shows little away from the contrary one, in place of from no expression
    eta: float = 0.0  # DDIM's share of fresh noise in each step, below 1: it mends what earlier steps got wrong
    # Of portraits, not of the bare pipeline, and not in the paper:
    without_glasses: bool = False  # who wears some is shown without, and a scene's are painted over: a small model paints ghosts of them
    own_brows: bool = False  # a facial region by landmarks begins above the brows of who is shown (diffsfsr.encoders.brows)
    scene_light: bool = False  # the painted face is given the light of the scene's own (diffsfsr.face.tone)


@dataclass(frozen=True)
class Evaluation:
    items: int = 1000
    batch: int = 16
    judge: str = "glintr100"  # "any": the first identity judge found, named in the report
    pose: Literal["any", "pnp", "fsanet", "hopenet"] = "hopenet"  # "any": FSA-Net where it is here, else the landmarks' (PnP)
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """One named, frozen configuration. `trains` says which of its networks `training` is for ("finish": the decoder of a trained model),
    `experts` whose autoencoder and DLN a diffusion model uses where they are not its own."""

    name: str
    trains: Literal["diffusion", "finish", "autoencoder", "dln", "decoder"] = "diffusion"
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
        refuse_bad_combinations(self)

    @property
    def portrays(self) -> bool:
        """Whether what it trains is a whole model, which makes portraits."""
        return self.trains in ("diffusion", "finish")

    @property
    def latent(self) -> int:
        """h, the side of a latent in positions."""
        return self.crop // 8

    @property
    def recognisers(self) -> tuple[str, ...]:
        """Those that condition, in token order, then those that L_id alone looks through."""
        return (*self.conditioning.identity, *self.objective.identity)


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
