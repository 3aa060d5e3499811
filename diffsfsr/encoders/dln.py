"""DLN, the expression encoder: how a trained network deviates from its frozen identity twin (Zhang et al., CVPR 2021).

The identity twin sees who; what the trained one adds to it is the expression. Trained on triplets of which two faces look
more alike in expression than the third.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr.encoders.dlib_net import DlibResNet, dlib_chips
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.errors import InputError

_FORMAT = 1
_WEIGHTS, _SETTINGS = "dln.safetensors", "dln.json"
_LARGEST_SETTINGS = 100_000  # bytes


class Dln(nn.Module):
    """Encoder "dln": images and landmarks -> expression embedding (B, dim) of unit length.

    deviation = sigmoid(gain * trained(chip)) - sigmoid(gain * frozen(chip)); embedding = W1 x + W2 x^2 + W3 x^3 of it.
    dlib's features are about 0.1 in size, where a bare sigmoid is a straight line: `gain` brings them to about 1.
    """

    name = "dln"

    def __init__(self, net: DlibResNet, dim: int = 16, seed: int = 0, gain: float = 10.0, perturbation: float = 0.1) -> None:
        """Twins from one identity network, in training form: the trained twin and the projection require gradients.

        Equal twins would deviate by exactly zero, a point with no direction to normalise and no gradient of any distance.
        So each weight of the trained twin starts off by a seeded relative `perturbation`: the first embeddings are a fixed
        random function of the face, and small enough that the twin still recognises it.
        """
        super().__init__()
        if dim < 1:
            raise InputError(f"dln.dim={dim} is not positive")
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.gain = dim, gain
        self.frozen = freeze(copy.deepcopy(net))
        self.trained = copy.deepcopy(net).requires_grad_(True)
        self.projection = Polynomial(net.head.out_features, dim, generator)
        with torch.no_grad():
            for p in self.trained.parameters() if perturbation else ():
                p.mul_(1 + perturbation * torch.randn(p.shape, generator=generator).to(p))

    @classmethod
    def from_identity(cls, net: Path | DlibResNet, dim: int = 16, seed: int = 0) -> Dln:
        """An untrained DLN on a network, or on the .dat file of one (InputError as `read_dat` raises it)."""
        return cls(net if isinstance(net, DlibResNet) else DlibResNet.from_dat(net), dim, seed)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, dim), unit length."""
        return self.embed(dlib_chips(images, landmarks))

    def embed(self, chips: Tensor) -> Tensor:
        """The same from chips (B, 3, 150, 150) in 0..255, which a training loop may keep."""
        deviation = torch.sigmoid(self.gain * self.trained(chips)) - torch.sigmoid(self.gain * self.frozen(chips))
        return F.normalize(self.projection(deviation), dim=1)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser may touch: the trained twin and the projection."""
        yield from self.trained.parameters()
        yield from self.projection.parameters()

    @property
    def version(self) -> str:
        """sha256 of the present weights; it changes with every training step."""
        return weights_version(self, f"dln {self.dim} gain {self.gain}, dlib chip 150, padding 0.25")

    def save(self, folder: Path) -> None:
        """Write dln.safetensors and dln.json. Each is whole or absent, and the second, written last, names the first's version."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        settings = {"format": _FORMAT, "kind": "dln", "dim": self.dim, "gain": self.gain, "version": self.version}
        _write(folder / _WEIGHTS, save(tensors))
        _write(folder / _SETTINGS, json.dumps(settings, indent=1).encode())

    @classmethod
    def load(cls, folder: Path, trainable: bool = False) -> Dln:
        """What `save` wrote, frozen unless `trainable`. Raises InputError, naming the file, for anything else."""
        folder = Path(folder)
        settings = _read_settings(folder / _SETTINGS)
        dln = cls(DlibResNet(), settings["dim"], gain=settings["gain"], perturbation=0.0)
        _load_strictly(dln, folder / _WEIGHTS)
        if dln.version != settings["version"]:
            raise InputError(f"{folder / _WEIGHTS} is not the one that {_SETTINGS} beside it names: save again")
        return dln if trainable else freeze(dln)


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
    """One matrix for each annotator, the identity at the start: what that person sees in the common embedding.

    For training only: an embedding is used without it.
    """

    def __init__(self, annotators: int, dim: int = 16) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.eye(dim).repeat(annotators, 1, 1))

    def forward(self, embedding: Tensor, annotator: Tensor) -> Tensor:
        """embedding (B, dim), annotator (B,) int64 -> (B, dim), made unit length again so that margins keep their meaning."""
        return F.normalize(torch.einsum("bij,bj->bi", self.matrices[annotator], embedding), dim=1)


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
    kinds = {"format": int, "kind": str, "dim": int, "gain": float, "version": str}
    if not isinstance(settings, dict) or {key: type(value) for key, value in settings.items()} != kinds:
        raise InputError(f"{path} is not a DLN's settings: it must have {', '.join(kinds)}")
    if (settings["kind"], settings["format"]) != ("dln", _FORMAT) or not 1 <= settings["dim"] <= 1024:
        found = f"kind {settings['kind']!r}, format {settings['format']}, dim {settings['dim']}"
        raise InputError(f"{path} is of {found}: not a DLN of format {_FORMAT}")
    return settings


def _load_strictly(dln: Dln, path: Path) -> None:
    """Names and shapes are compared from the file's header, before any tensor is read."""
    from safetensors import SafetensorError, safe_open

    want = {name: list(value.shape) for name, value in dln.state_dict().items()}
    try:
        with safe_open(path, "pt") as f:
            found = {name: f.get_slice(name).get_shape() for name in f.keys()}
            wrong = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
            if wrong:
                pair = f"{wrong[0]} is {found.get(wrong[0], 'absent')} where {want.get(wrong[0], 'nothing')} belongs"
                raise InputError(f"{path} does not fit: {pair}")
            dln.load_state_dict({name: f.get_tensor(name) for name in found})
    except (OSError, SafetensorError) as e:
        raise InputError(f"{path} cannot be read as a DLN's weights ({e}): name a folder written by Dln.save") from e
    if not all(value.isfinite().all() for value in dln.state_dict().values()):
        raise InputError(f"{path} holds values that are not finite: train again")
