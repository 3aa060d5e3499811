"""An autoencoder that a CPU trains in minutes."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

_ENCODER_BLOCKS, _DECODER_BLOCKS = (1, 1, 2), (1, 2, 2)


class LeanAutoencoder(ModelMixin, ConfigMixin):
    """Images (B,3,S,S) in [-1, 1] <-> latents (B,C,S/8,S/8), with the interface of diffusers' AutoencoderTiny.

    Convolutions and ReLU alone: no layer works at the picture's own side, whose pixels are dealt into channels, and nothing is
    normalised. On a CPU in bf16 it is the passes over memory between convolutions that cost, and these are few.

    Args:
        latent_channels: C.
        block_out_channels: of the picture, and of the layers at a half, a quarter and an eighth of its side.
        scaling_factor: what diffusers' own pipelines multiply latents by.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        block_out_channels: tuple[int, int, int, int] = (3, 64, 128, 192),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        picture, half, quarter, eighth = block_out_channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * picture, half, 3, padding=1),
            *_blocks(half, _ENCODER_BLOCKS[0]),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            *_blocks(quarter, _ENCODER_BLOCKS[1]),
            nn.Conv2d(quarter, eighth, 3, stride=2, padding=1),
            *_blocks(eighth, _ENCODER_BLOCKS[2]),
            nn.Conv2d(eighth, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *_blocks(eighth, _DECODER_BLOCKS[2]),
            *_finer(eighth, quarter),
            *_blocks(quarter, _DECODER_BLOCKS[1]),
            *_finer(quarter, half),
            *_blocks(half, _DECODER_BLOCKS[0]),
            *_finer(half, picture),
        )

    def encode(self, images: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        latents = self.encoder(images)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, latents: Tensor, generator: torch.Generator | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`generator` is not used: diffusers' own pipelines hand one to every autoencoder."""
        images = self.decoder(latents)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, images: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(self.encoder(images)))


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [*(_Residual(channels) for _ in range(count)), nn.ReLU()]


def _finer(channels: int, out: int) -> list[nn.Module]:
    """Twice the side."""
    return [nn.Conv2d(channels, 4 * out, 3, padding=1), nn.PixelShuffle(2)]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.out.weight.data.mul_(0.3)  # near the identity at first, so that deep ones start as shallow ones do

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.into(x).relu())
