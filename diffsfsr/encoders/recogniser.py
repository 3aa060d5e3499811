"""Recognition networks in ONNX files as encoders: aligned by one warp, run in torch, with gradients to the picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.frozen import freeze
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.encoders.warp import TEMPLATES, template_matrix, warp
from diffsfsr.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """What a network expects, (x - shift) / scale of x in 0..255 on a chip under a template, and what it gives."""

    template: str  # of warp.TEMPLATES, which also fixes the chip's size
    dim: int  # D
    shift: float = 0.0
    scale: float = 1.0
    bgr: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the chip."""
        return TEMPLATES[self.template].size

    def __str__(self) -> str:
        values = "0..255" if (self.shift, self.scale) == (0, 1) else f"(x - {self.shift:g}) / {self.scale:g}"
        return f"{self.size[0]} x {self.size[1]} {'BGR' if self.bgr else 'RGB'}, {values}, aligned to {TEMPLATES[self.template]}"

    def chips(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) RGB in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 3, *size), as the network wants it."""
        matrix = template_matrix(landmarks.float(), TEMPLATES[self.template])
        chips = (warp((images.float() + 1) * 127.5, matrix, self.size) - self.shift) / self.scale
        return chips.flip(1) if self.bgr else chips


_INSIGHTFACE = Recipe("A112", 512, 127.5, 127.5)  # all of its ResNets, and those trained after its recipe

RECIPES: dict[str, Recipe] = {
    "w600k_r50": _INSIGHTFACE,
    "auraface": _INSIGHTFACE,
    "glintr100": _INSIGHTFACE,
    "mobilefacenet_arcface": Recipe("A96", 128, 127.5, 128.0),
    "mobileface_v2": Recipe("A112", 256),
    "reid0095": Recipe("R", 256, bgr=True),
}


class OnnxRecogniser(nn.Module):
    """An identity encoder from an ONNX file. Frozen; differentiable in the images; embeddings are not normalised."""

    centred = False

    def __init__(self, name: str) -> None:
        """Raises InputError for a name without a recipe or a file of another network, NotReady when it is not on this machine."""
        super().__init__()
        if name not in RECIPES:
            raise InputError(f"unknown recogniser {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}")
        path = weights.resolve(name)
        self.name, self.recipe = name, RECIPES[name]
        self.dim = self.recipe.dim
        self.net = _load(name, path, self.recipe)
        self.version = hashlib.sha256(f"{weights.file_sha256(path)} {self.recipe}".encode()).hexdigest()
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, D) float32."""
        chips = self.recipe.chips(images, landmarks)
        return self.net(chips.contiguous(memory_format=torch.channels_last))  # up to three times as fast on a CPU


def _load(name: str, path: Path, recipe: Recipe) -> OnnxNet:
    """The network, once it has turned two chips of noise into two embeddings."""
    noise = torch.rand(2, 3, *recipe.size, generator=torch.Generator().manual_seed(0))
    return OnnxNet.tried(name, path, (255 * noise - recipe.shift) / recipe.scale, gives=[(2, recipe.dim)])
