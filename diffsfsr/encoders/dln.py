"""DLN, the expression encoder: how a trained network deviates from its frozen identity twin (Zhang et al., CVPR 2021).

The identity twin sees who; what the trained one adds to it is the expression. Trained on triplets of which two faces look
more alike in expression than the third.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr.encoders.dlib_net import DlibResNet, dlib_chips
from diffsfsr.encoders.facenet import InceptionResnetV1, facenet_chips
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.pose_drift import POSE_TERMS, pose_terms
from diffsfsr.errors import InputError, did_you_mean

_FORMAT, _WITHOUT_DRIFT = 3, 2
_WEIGHTS, _SETTINGS = "dln.safetensors", "dln.json"
_FROZEN = "frozen."  # what the names of the frozen twin's tensors begin with
_LARGEST_SETTINGS = 100_000  # bytes


@dataclass(frozen=True)
class Backbone:
    """An identity network that both twins start from.

    `net` maps chips (B, 3, h, w) in 0..255 to (B, dim). `gain` brings its outputs to about 1 in size: at the tenth or twentieth
    that they are, a sigmoid is a straight line.
    """

    name: str
    dim: int
    gain: float
    chips: Callable[[Tensor, Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] and landmarks (B, 68, 2) in their pixels -> chips
    net: Callable[[], nn.Module]  # with weights of no meaning
    read: Callable[[Path], nn.Module]  # with those of its published file
    published: str  # that file's name in the weights zoo
    recipe: str  # how its chips are cut, for the version


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("dlib", 128, 10.0, dlib_chips, DlibResNet, DlibResNet.from_dat, "dlib-face", "dlib chip 150, padding 0.25"),
        Backbone("facenet", 512, 22.0, facenet_chips, InceptionResnetV1, InceptionResnetV1.from_file, "facenet", "facenet chip 160"),
    )
}


class Dln(nn.Module):
    """Encoder "dln": images and landmarks -> expression embedding (B, dim) of unit length.

    deviation = sigmoid(gain * trained(chip)) - sigmoid(gain * frozen(chip)); embedding = W1 x + W2 x^2 + W3 x^3 of it, less most
    of what the head's pose adds to that (`pose_drift`): a face that looks up is embedded nearer to where it is when it looks ahead.
    """

    name = "dln"
    centred = False
    drift: Tensor  # (4, dim), of `pose_drift`; all zero where none was told

    def __init__(self, net: nn.Module, dim: int = 16, seed: int = 0, perturbation: float = 0.1, backbone: str = "dlib") -> None:
        """Twins from one identity network, in training form: the trained twin and the projection require gradients.

        Equal twins would deviate by exactly zero, a point with no direction to normalise and no gradient of any distance.
        So each weight of the trained twin starts off by a seeded relative `perturbation`: the first embeddings are a fixed
        random function of the face, and small enough that the twin still recognises it.

        Both twins are in eval mode, in training too: FaceNet's batch normalisation keeps the statistics it was published with.
        A batch of a few dozen faces, many of them of one person, has none of its own, and the twins must not differ by that.
        """
        super().__init__()
        if dim < 1:
            raise InputError(f"dln.dim={dim} is not positive")
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.backbone = dim, _backbone(backbone)
        self.frozen = freeze(copy.deepcopy(net))
        self.trained = copy.deepcopy(net).eval().requires_grad_(True)
        self.projection = Polynomial(self.backbone.dim, dim, generator)
        self.register_buffer("drift", torch.zeros(POSE_TERMS, dim))
        with torch.no_grad():
            for p in self.trained.parameters() if perturbation else ():
                p.mul_(1 + perturbation * torch.randn(p.shape, generator=generator).to(p))

    @classmethod
    def from_identity(cls, net: Path | nn.Module, dim: int = 16, seed: int = 0, backbone: str = "dlib") -> Dln:
        """An untrained DLN on a network, or on the published file of one (InputError as the backbone's `read` raises it)."""
        return cls(net if isinstance(net, nn.Module) else _backbone(backbone).read(net), dim, seed, backbone=backbone)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, dim), unit length. Not differentiable in the
        landmarks."""
        return self.less_drift(self.embed(self.backbone.chips(images, landmarks)), landmarks)

    def less_drift(self, embedding: Tensor, landmarks: Tensor) -> Tensor:
        """What `embed` gave, (B, dim), without what the pose of the heads with these landmarks adds to it."""
        if not self.drift.any():
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            return F.normalize(embedding - pose_terms(landmarks).to(embedding) @ self.drift, dim=1)

    def posed(self, embedding: Tensor, landmarks: Tensor) -> Tensor:
        """The inverse of `less_drift`: what `embed` would give, (B, dim), for faces of these expressions on heads with these landmarks."""
        if not self.drift.any():
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            drift = pose_terms(landmarks).to(embedding) @ self.drift
            along = (embedding * drift).sum(1, keepdim=True)
            left = 1 - drift.square().sum(1, keepdim=True) + along.square()  # of the unit length that both together have
            return F.normalize((left.clamp(min=0).sqrt() - along) * embedding + drift, dim=1)

    def alone(self) -> Dln:
        """The same weights in a network of its own, which no engine has its hooks in and that has no drift yet; frozen."""
        dln = Dln(self.backbone.net(), self.dim, perturbation=0.0, backbone=self.backbone.name)
        dln.load_state_dict({name: value.detach() for name, value in self.state_dict().items()})
        dln.drift.zero_()
        return freeze(dln.to(self.drift.device))

    def embed(self, chips: Tensor) -> Tensor:
        """The same from the backbone's chips in 0..255, its drift with the head's pose left in. What follows the twins is float32: their
        difference is small."""
        gain = self.backbone.gain
        trained, frozen = self.trained(chips), self.frozen(chips)
        with torch.autocast(chips.device.type, enabled=False):
            deviation = torch.sigmoid(gain * trained.float()) - torch.sigmoid(gain * frozen.float())
            return F.normalize(self.projection(deviation), dim=1)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser may touch: the trained twin and the projection."""
        yield from self.trained.parameters()
        yield from self.projection.parameters()

    @property
    def version(self) -> str:
        """sha256 of the present weights; it changes with every training step. One without a drift has the version that it had before
        there were any."""
        recipe = f"dln {self.dim} gain {self.backbone.gain}, {self.backbone.recipe}"
        return weights_version(self, recipe, () if self.drift.any() else ("drift",))

    def halved(self) -> Dln:
        """The same with every trained weight rounded to what float16 holds; still float32. Another encoder, of a version of its own."""
        rounded = copy.deepcopy(self)
        for part in (rounded.trained, rounded.projection):
            part.half().float()
        rounded.drift.copy_(rounded.drift.half())
        return rounded

    def save(self, folder: Path, half: bool = False) -> None:
        """Write dln.safetensors and dln.json. Each is whole or absent, and the second, written last, names the first's version.

        With `half` it is `halved()` that is written: in float16, and without the frozen twin, which is somebody else's published
        file and is read from there again. That takes a quarter of the bytes.
        """
        from safetensors.torch import save

        folder, written = Path(folder), self.halved() if half else self
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in written.state_dict().items()}
        if half:
            own = {name: value for name, value in tensors.items() if not name.startswith(_FROZEN)}
            tensors = {name: value.half() if value.is_floating_point() else value for name, value in own.items()}
        settings = {"format": _FORMAT, "kind": "dln", "backbone": self.backbone.name, "dim": self.dim, "version": written.version}
        _write(folder / _WEIGHTS, save(tensors))
        _write(folder / _SETTINGS, json.dumps(settings, indent=1).encode())

    @classmethod
    def load(cls, folder: Path, trainable: bool = False) -> Dln:
        """What `save` wrote, in float32 and frozen unless `trainable`. Raises InputError, naming the file, for anything else; NotReady
        where the frozen twin was left out and its published file is not on this machine."""
        folder = Path(folder)
        settings = _read_settings(folder / _SETTINGS)
        backbone = settings["backbone"]
        dln = cls(BACKBONES[backbone].net(), settings["dim"], perturbation=0.0, backbone=backbone)
        _load_strictly(dln, folder / _WEIGHTS, absent=("drift",) if settings["format"] == _WITHOUT_DRIFT else ())
        if dln.version != settings["version"]:
            raise InputError(f"{folder / _WEIGHTS} is not the one that {_SETTINGS} beside it names: save again")
        return dln if trainable else freeze(dln)


def _backbone(name: str) -> Backbone:
    if name not in BACKBONES:
        raise InputError(f"unknown dln.backbone {name!r}{did_you_mean(name, BACKBONES)}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


class Polynomial(nn.Module):
    """x (B, D) -> W1 x + W2 x^2 + W3 x^3 (B, dim), powers by element."""

    def __init__(self, inputs: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        scale = inputs**-0.5
        self.w1 = nn.Parameter(scale * torch.randn(dim, inputs, generator=generator))
        self.w2 = nn.Parameter(scale * torch.randn(dim, inputs, generator=generator))
        self.w3 = nn.Parameter(scale * torch.randn(dim, inputs, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w1.T + x.square() @ self.w2.T + x.pow(3) @ self.w3.T


class CrowdLayer(nn.Module):
    """One matrix for each annotator, the identity at the start: what that annotator sees in the common embedding."""

    def __init__(self, annotators: int, dim: int = 16) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.eye(dim).repeat(annotators, 1, 1))

    def forward(self, embedding: Tensor, annotator: Tensor) -> Tensor:
        """embedding (B, dim), annotator (B,) int64 -> (B, dim), made unit length again so that margins keep their meaning."""
        return F.normalize((self.matrices[annotator] * embedding[:, None]).sum(2), dim=1)


class AnnotatedDln(nn.Module):
    """What is trained: a DLN and, on top of it, the crowd layer. An embedding is used, and a DLN saved, without that layer."""

    def __init__(self, dln: Dln, annotators: int) -> None:
        super().__init__()
        self.dln, self.crowd = dln, CrowdLayer(annotators, dln.dim)

    def forward(self, images: Tensor, landmarks: Tensor, triplets: Tensor, annotator: Tensor) -> Tensor:
        """Triplets among a few faces, each as its annotator sees it; the twins see a face once, however many triplets it is in.

        images (F, 3, H, W) in [-1, 1], landmarks (F, 68, 2), triplets (B, 3) int64 places among these faces and annotator (B,)
        int64 -> (3, B, dim): anchors, positives, negatives.
        """
        embedding = self.dln(images, landmarks)
        return torch.stack([self.crowd(embedding[column], annotator) for column in triplets.T])


# --- triplets ---------------------------------------------------------------------------------------------------------


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float | Tensor) -> Tensor:
    """Both sides of a triplet (Vemulapalli and Agarwala, CVPR 2019, Eq. 1), one value per item.

    With d the squared distance: [d(a,p) - d(a,n) + margin]+ + [d(a,p) - d(p,n) + margin]+. The pair (a, p) is the one that
    looks alike; swapping its two changes nothing.

    Args:
        anchor, positive, negative: (B, D), unit length.
        margin: one, or (B,): 0.1 where all three show one class of expression, 0.2 elsewhere.
    """
    near, far_a, far_p = _distances(anchor, positive, negative)
    return F.relu(near - far_a + margin) + F.relu(near - far_p + margin)


def triplet_correct(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B,) bool: d(a,p) < d(a,n) and d(a,p) < d(p,n)."""
    near, far_a, far_p = _distances(anchor, positive, negative)
    return (near < far_a) & (near < far_p)


def _distances(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (a - p).square().sum(1), (a - n).square().sum(1), (p - n).square().sum(1)


# --- files ------------------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(beside, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            settings = json.loads(f.read(_LARGEST_SETTINGS))
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read as a DLN's settings ({e}): name a folder written by Dln.save") from e
    kinds = {"format": int, "kind": str, "backbone": str, "dim": int, "version": str}
    if not isinstance(settings, dict) or {key: type(value) for key, value in settings.items()} != kinds:
        raise InputError(f"{path} is not a DLN's settings: it must have {', '.join(kinds)}")
    if settings["kind"] != "dln" or settings["format"] not in (_WITHOUT_DRIFT, _FORMAT) or not 1 <= settings["dim"] <= 1024:
        found = f"kind {settings['kind']!r}, format {settings['format']}, dim {settings['dim']}"
        raise InputError(f"{path} is of {found}: not a DLN of format {_FORMAT}")
    if settings["backbone"] not in BACKBONES:
        raise InputError(f"{path} is of backbone {settings['backbone']!r}; known: {', '.join(BACKBONES)}")
    return settings


def _load_strictly(dln: Dln, path: Path, absent: Sequence[str] = ()) -> None:
    """Names and shapes are compared from the file's header, before any tensor is read. `absent`: tensors that the file has not."""
    from safetensors import SafetensorError, safe_open

    from diffsfsr.weights import resolve

    want = {name: list(value.shape) for name, value in dln.state_dict().items() if name not in absent}
    try:
        with safe_open(path, "pt") as f:
            found = {name: f.get_slice(name).get_shape() for name in f.keys()}
            alone = not any(name.startswith(_FROZEN) for name in found)  # as a halved one is
            want = {name: shape for name, shape in want.items() if not (alone and name.startswith(_FROZEN))}
            wrong = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
            if wrong:
                pair = f"{wrong[0]} is {found.get(wrong[0], 'absent')} where {want.get(wrong[0], 'nothing')} belongs"
                raise InputError(f"{path} does not fit: {pair}")
            dln.load_state_dict({name: f.get_tensor(name) for name in found}, strict=not alone and not absent)
        if alone:
            dln.frozen.load_state_dict(dln.backbone.read(resolve(dln.backbone.published)).state_dict())
    except (OSError, SafetensorError) as e:
        raise InputError(f"{path} cannot be read as a DLN's weights ({e}): name a folder written by Dln.save") from e
    if not all(value.isfinite().all() for value in dln.state_dict().values()):
        raise InputError(f"{path} holds values that are not finite: train again")
