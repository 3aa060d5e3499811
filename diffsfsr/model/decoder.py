"""What the identity and expression losses may look through in place of the autoencoder's own decoder, half of their cost in the paper.

Each has the autoencoder's `decode`: scaled latents (B,C,h,w) -> images (B,3,8h,8w) RGB, about [-1, 1], differentiable.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from diffsfsr.model.autoencoder import LatentAutoencoder
from diffsfsr.weights import SMALL, resolve

_BLOCKS = (3, 2, 1, 0)  # at 1/8, 1/4, 1/2 and the whole of the side: nearly all of the work at the small ones
_WIDTHS = (4, 4, 2, 1)  # of its layers there, times `width`


class LossDecoder(ModelMixin, ConfigMixin):
    """The small one, trained here: AutoencoderTiny's blocks, few and ever narrower towards the picture.

    As there, a soft clamp to 3 standard deviations comes first.

    Args:
        channels: C, the latents' channels.
        width: channels of the layers at the picture's own side; those before are wider by _WIDTHS.
    """

    @register_to_config
    def __init__(self, channels: int = 8, width: int = 16) -> None:
        super().__init__()
        sides = [width * w for w in _WIDTHS]
        layers: list[nn.Module] = [nn.Conv2d(channels, sides[0], 3, padding=1), nn.ReLU()]
        for blocks, here, finer in zip(_BLOCKS, sides, [*sides[1:], 0], strict=True):
            layers += [AutoencoderTinyBlock(here, here, "relu") for _ in range(blocks)]
            if finer:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(here, finer, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(sides[-1], 3, 3, padding=1))

    def decode(self, latents: Tensor) -> Tensor:
        return self.layers(torch.tanh(latents / 3) * 3)

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)


class PublishedDecoder(nn.Module):
    """An ONNX decoder of the zoo, which takes the autoencoder's latents before they were scaled."""

    def __init__(self, name: str, autoencoder: LatentAutoencoder) -> None:
        """Raises InputError for an unknown name or a broken file, NotReady where it is not on this machine."""
        from diffsfsr.encoders.onnx_net import OnnxNet

        super().__init__()
        self.net = OnnxNet.load(resolve(name))
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", autoencoder.latent_shift.view(1, -1, 1, 1).clone())
        self.register_buffer("scale", autoencoder.latent_scale.view(1, -1, 1, 1).clone())

    def decode(self, latents: Tensor) -> Tensor:
        return self.net(latents / self.scale.to(latents) + self.shift.to(latents))


def load_loss_decoder(
    name: str, autoencoder: LatentAutoencoder, folder: Path | None = None
) -> LatentAutoencoder | LossDecoder | PublishedDecoder:
    """The frozen decoder that `objective.loss_decoder` names; `folder` holds the small one. Raises as PublishedDecoder does."""
    from diffsfsr.encoders.frozen import freeze

    if not name:
        return autoencoder
    return freeze(LossDecoder.from_pretrained(folder) if name == SMALL else PublishedDecoder(name, autoencoder))
