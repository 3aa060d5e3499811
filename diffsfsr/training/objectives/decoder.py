"""The small decoder that the identity and expression losses may look through: what the autoencoder's own decoder makes of latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr.config import Preset
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Crops, Position
from diffsfsr.training.run import Inputs

MOST_NOISE = 0.5  # in standard deviations of a latent: a midpoint estimate is not clean


class DecoderObjective:
    """Show what the frozen autoencoder shows of the latents of aligned faces, clean to noisy."""

    def __init__(self, preset: Preset, inputs: Inputs) -> None:
        from diffsfsr.encoders.frozen import freeze
        from diffsfsr.model.autoencoder import LatentAutoencoder
        from diffsfsr.model.decoder import LossDecoder

        self.preset = preset
        self.crops = Crops(list(inputs.shards), preset.crop)
        self.autoencoder = freeze(LatentAutoencoder.from_pretrained(inputs.network("autoencoder", preset)))
        self.network = LossDecoder(preset.autoencoder.channels)

    def draw(self, at: Position) -> Batch:
        images = self.crops.batch(at.items(self.preset.training.batch, len(self.crops)))["images"]
        for i in np.flatnonzero(at.rng().random(len(images)) < 0.5):
            images[i] = images[i].flip(-1)
        return {"images": images}

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """As `losses.reconstruction_losses`, of the autoencoder's own pictures: its gradient is what the decoder is to stand for."""
        latents, shown = self._pairs(batch["images"], generator)
        return losses.reconstruction_losses(network(latents), shown)

    @torch.no_grad()
    def _pairs(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (B,C,h,w), each with its own share of noise, and the autoencoder's pictures of them (B,3,S,S)."""
        z_0 = self.autoencoder.to(images.device).encode(images).float()
        level = MOST_NOISE * torch.rand((len(z_0), 1, 1, 1), generator=generator, device=z_0.device)
        latents = z_0 + level * torch.randn(z_0.shape, generator=generator, device=z_0.device)
        return latents, self.autoencoder.decode(latents).float()

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder)
