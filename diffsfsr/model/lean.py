"""An autoencoder that a CPU trains in minutes."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

_WIDTHS = (1, 2, 3)  # of the layers at 1/2, 1/4 and 1/8 of the side, times `width`
_ENCODER_BLOCKS, _DECODER_BLOCKS = (1, 1, 2), (1, 2, 2)


class LeanAutoencoder(ModelMixin, ConfigMixin):
    """Images (B,3,S,S) in [-1, 1] <-> latents (B,C,S/8,S/8), with the interface of diffusers' AutoencoderTiny.

    Convolutions and ReLU alone: no layer works at the picture's own side, whose pixels are dealt into channels, and nothing is
    normalised. On a CPU in bf16 it is the passes over memory between convolutions that cost, and these are few.

    Args:
        latent_channels: C.
        width: channels of the layers at half the side; the deeper ones have two and three times as many.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 8, width: int = 64) -> None:
        super().__init__()
        half, quarter, eighth = (width * w for w in _WIDTHS)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, half, 3, padding=1),
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
            *_finer(half, 3),
        )

    def encode(self, images: Tensor) -> AutoencoderTinyOutput:
        return AutoencoderTinyOutput(latents=self.encoder(images))

    def decode(self, latents: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(latents))

    def forward(self, images: Tensor) -> DecoderOutput:
        return self.decode(self.encode(images).latents)


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
