"""The autoencoder: aligned faces to latents and back."""

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


class AutoencoderObjective:
    """Reconstruct aligned faces, whole and with the facial region filled, so that condition images encode well too."""

    def __init__(self, preset: Preset, inputs: Inputs) -> None:
        from diffsfsr.model.autoencoder import LatentAutoencoder

        self.preset = preset
        self.crops = Crops(list(inputs.shards), preset.crop)
        self.network = LatentAutoencoder.from_config_row(preset.autoencoder)

    def draw(self, at: Position) -> Batch:
        from diffsfsr.face.masks import hull_mask
        from diffsfsr.model.autoencoder import condition_image

        batch = self.crops.batch(at.items(self.preset.training.batch, len(self.crops)))
        images, rng = batch["images"], at.rng()
        for i in np.flatnonzero(rng.random(len(images)) < 0.3):
            mask = torch.from_numpy(hull_mask(batch["landmarks"][i].numpy(), self.preset.crop)).float()
            images[i] = condition_image(images[i : i + 1], mask[None, None])[0]
        for i in np.flatnonzero(rng.random(len(images)) < 0.5):
            images[i] = images[i].flip(-1)
        return {"images": images}

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """As `losses.reconstruction_losses`, of the images themselves."""
        return losses.reconstruction_losses(network(batch["images"]), batch["images"])

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        items = np.linspace(0, len(self.crops) - 1, min(len(self.crops), 512)).astype(int)
        device = next(self.network.parameters()).device
        self.network.calibrate(self.crops.batch(part)["images"].to(device) for part in np.array_split(items, max(len(items) // 32, 1)))
        self.network.save_pretrained(folder)
