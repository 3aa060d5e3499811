"""What every frozen expert has: no gradient of its own, and a version that is the hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """The same module in eval mode, none of its parameters requiring a gradient; gradients still flow to its input."""
    return module.eval().requires_grad_(False)


def weights_version(module: nn.Module, recipe: str, without: Collection[str] = ()) -> str:
    """sha256 over `recipe` (what is done beside the weights) and every tensor's name, shape and float32 values; `without` those named."""
    digest = hashlib.sha256(recipe.encode())
    for name, value in sorted((name, value) for name, value in module.state_dict().items() if name not in without):
        digest.update(f"|{name}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
