"""What tells painted faces from photographs while a decoder is being finished; no model keeps it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

_LEAK = 0.2
_QUICKER = 5.0  # than the decoder, which has learned already, its weights change
_FINE = 4.0  # how much louder than the picture its finest detail is shown: there lies what a blurred face lacks


class PatchDiscriminator(nn.Module):
    """Pictures (B,3,S,S) in [-1, 1] -> what each patch of them is taken for, above 0 a photograph, at two sizes of a patch:
    (B,1,S/8,S/8) and (B,1,S/16,S/16). S is a multiple of 16.

    The discriminator of Isola et al. (2017), shown the picture and, beside it, the difference to its own blur.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.small = nn.Sequential(*_half(6, width, norm=False), *_half(width, 2 * width), *_half(2 * width, 4 * width))
        self.large = nn.Sequential(*_half(4 * width, 4 * width), nn.Conv2d(4 * width, 4 * width, 3, 1, 1), nn.LeakyReLU(_LEAK))
        self.of_small, self.of_large = nn.Conv2d(4 * width, 1, 3, 1, 1), nn.Conv2d(4 * width, 1, 3, 1, 1)
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d):
                register_parametrization(layer, "weight", _Quicker())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        small = self.small(torch.cat([images, _FINE * (images - blurred)], 1))
        return self.of_small(small), self.of_large(self.large(small))


class _Quicker(nn.Module):
    """A weight kept at a fraction of its value, so that a step of Adam moves it as many times as far (Karras et al. 2018)."""

    def forward(self, kept: Tensor) -> Tensor:
        return kept * _QUICKER

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / _QUICKER


def _half(channels: int, out: int, norm: bool = True) -> list[nn.Module]:
    """Half the side."""
    return [nn.Conv2d(channels, out, 4, 2, 1), *([nn.GroupNorm(8, out)] if norm else []), nn.LeakyReLU(_LEAK)]


def hinge(real: tuple[Tensor, ...], painted: tuple[Tensor, ...]) -> Tensor:
    """The discriminator's loss (Lim and Ye 2017): of photographs it shall say more than 1, of the others less than -1. (B,), at least 0."""
    terms = [F.relu(1 - r).flatten(1).mean(1) + F.relu(1 + p).flatten(1).mean(1) for r, p in zip(real, painted, strict=True)]
    return torch.stack(terms).sum(0)


def fooled(painted: tuple[Tensor, ...]) -> Tensor:
    """The painter's loss: less, the more what it painted is taken for a photograph. (B,)."""
    return -torch.stack([p.flatten(1).mean(1) for p in painted]).sum(0)
