"""Frozen experts behind one signature: (images, landmarks) -> (B, D)."""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from diffsfsr.config import did_you_mean
from diffsfsr.errors import InputError

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Encoder(Protocol):
    """What every encoder offers. In fact an nn.Module, which a Protocol cannot say."""

    name: str
    dim: int  # D

    @property
    def version(self) -> str:
        """sha256 of the weights and of the recipe that leads to them: embeddings of one version may be compared."""
        ...

    def __call__(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, S, S) in [-1, 1], landmarks (B, 68, 2) in pixels of the crop -> (B, D), float32."""
        ...


ENCODERS = ("dlib",)


def load_encoder(name: str) -> Encoder:
    """The identity encoder of that name, frozen: eval(), no parameter requires a gradient. InputError for an unknown name."""
    if name == "dlib":
        from diffsfsr.encoders.dlib_net import DlibEncoder

        return freeze(DlibEncoder())
    raise InputError(f"unknown encoder {name!r}{did_you_mean(name, ENCODERS)}; known: {', '.join(ENCODERS)}")


def freeze(module: M) -> M:
    """The same module in eval mode, none of its parameters requiring a gradient; gradients still flow to its input."""
    return module.eval().requires_grad_(False)


def weights_version(module: nn.Module, recipe: str) -> str:
    """sha256 over `recipe` (what is done beside the weights) and every tensor's name, shape and float32 values."""
    digest = hashlib.sha256(recipe.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"|{name}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
