"""The last touch on a trained model: its decoder learns to finish what its UNet makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Crops, Position, read_shards
from diffsfsr.training.discriminator import PatchDiscriminator, fooled, hinge
from diffsfsr.training.objectives.diffusion import DiffusionObjective, conditions_of, partway
from diffsfsr.training.run import Inputs

_MADE = 0.75  # share of a batch's latents that the UNet makes; the rest are photographs' own, which are to stay what they are
_LEVELS = (0.6, 0.45, 0.3, 0.15, 0.0)  # the walk on which it makes them, as shares of the schedule: from .6 a face is found anew
_BACKGROUND = 0.2  # what a pixel outside the face counts, beside one inside
_EDGES, _LOOKS, _FOOLED = 0.5, 0.1, 0.005  # what the other losses count, beside the absolute error


class FinishObjective:
    """A decoder that paints photographs from latents as the trained UNet makes them: too smooth, for what it cannot know it averages.

    Where both are of one photograph the painted face shall be like it, and, pasted into it, be taken for one by a discriminator that
    learns beside it (the decoder of Esser et al. 2021, on latents of the model in place of the encoder's). Encoder, UNet and
    DLN stay as they are, and with them every latent.
    """

    def __init__(self, preset: Preset, inputs: Inputs) -> None:
        from diffsfsr.encoders.dlib_net import DlibEncoder
        from diffsfsr.encoders.frozen import freeze

        self.preset = preset
        self.model = DiffusionObjective(preset, inputs)
        self.data, self.unet = self.model.data, freeze(self.model.network)
        self.crops = Crops(list(inputs.crops), preset.crop)
        self.rows = _rows(list(inputs.shards), self.crops.face_ids)
        self.looks = freeze(DlibEncoder())
        self.network = Finisher(self.model.autoencoder, PatchDiscriminator())
        self.start = {name: p.detach().clone() for name, p in self.network.decoder.named_parameters()}

    def draw(self, at: Position) -> Batch:
        faces = at.items(self.preset.training.batch, len(self.crops))
        rows = self.rows[faces]
        batch = self.data.take(rows, rows, rows, np.zeros(len(rows), bool)) | self.crops.batch(faces)
        return batch | {"made": torch.from_numpy(at.rng().random(len(rows)) < _MADE)}

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """'mae' and 'edges' of the painted picture, weighed by where the face is, 'loss_perceptual' as dlib's network sees it,
        'loss_fooled' of the decoder and 'loss_discriminator', each (B,); 'loss' is their weighted sum. The last two pull one way in one
        network's weights and the other way in the other's: neither sees the other's gradient."""
        images, landmarks = batch["images"], batch["landmarks"]
        self.looks.to(images.device)
        face = F.interpolate(batch["mask"], images.shape[-2:], mode="bilinear")
        latents, made = batch["latent"].clone(), batch["made"]
        if made.any():
            latents[made] = self._made({name: value[made] for name, value in batch.items()}, generator)
        painted, taken_for, seen = network(latents, images, face)
        painted = painted.float()
        rebuilt = losses.reconstruction_losses(painted, images, _BACKGROUND + face)
        found = {"mae": rebuilt["mae"], "edges": rebuilt["edges"]}
        found["loss_perceptual"] = losses.perceptual_loss(self._look(painted, landmarks), self._look(images, landmarks))
        found["loss_fooled"], found["loss_discriminator"] = fooled(taken_for), hinge(*seen)
        scales = {"mae": 1.0, "edges": _EDGES, "loss_perceptual": _LOOKS, "loss_fooled": _FOOLED, "loss_discriminator": 1.0}
        return {"loss": torch.stack([scales[name] * value for name, value in found.items()]).sum(0), **found}

    @torch.no_grad()
    def _made(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Each photograph's latents (B,C,h,w), noised and found again by the UNet, which is told all that it can be told of it."""
        from diffsfsr.model.diffusion import add_noise, gaussian, posterior_jump, z0_from_output

        z_0 = batch["latent"]
        given = conditions_of(batch, self.preset.conditioning, self.model.dln.to(z_0.device))
        unet, schedule = self.unet.to(z_0.device), self.unet.schedule
        steps = [torch.full((len(z_0),), round(level * schedule.steps), device=z_0.device) for level in _LEVELS]
        z = add_noise(z_0, gaussian(z_0, generator), steps[0], schedule)
        for t, s in zip(steps, steps[1:], strict=False):
            estimate = z0_from_output(self.preset.schedule.prediction, unet(z, t, **given).float(), z, t, schedule)
            mean, variance = posterior_jump(estimate, z, t, s, schedule)
            z = mean + variance.sqrt() * gaussian(z, generator)
        return z

    def _look(self, images: Tensor, landmarks: Tensor) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            return list(self.looks.look(images, landmarks)[1:])

    def save(self, folder: Path) -> None:
        """The model with another decoder, training.learned of the way from what it was to what it became; all else, the preset that its
        UNet was trained by included, is as it was."""
        from diffsfsr.portrait.shipped import preset_of

        partway(self.network.decoder, self.start, self.preset.training.learned)
        self.model.preset = preset_of(Path(self.model.inputs.start_from))
        self.model.save(folder)


class Finisher(nn.Module):
    """An autoencoder whose decoder is trained, and the discriminator that trains it."""

    def __init__(self, autoencoder: Any, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.autoencoder, self.discriminator = autoencoder, discriminator
        self.decoder.requires_grad_(True)

    @property
    def decoder(self) -> nn.Module:
        """The part of the autoencoder that is trained."""
        return self.autoencoder.net.decoder

    def forward(self, latents: Tensor, images: Tensor, face: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Any, Any]]:
        """The painted picture (B,3,S,S); what its face, pasted into `images` where `face` (B,1,S,S) is 1, is taken for; and what the
        discriminator, from which the decoder learns nothing, makes of photographs and of that."""
        painted = self.autoencoder.decode(latents)
        pasted = images + face * (painted - images)
        self.discriminator.requires_grad_(False)
        taken_for = self.discriminator(pasted)
        self.discriminator.requires_grad_(True)
        return painted, taken_for, (self.discriminator(images), self.discriminator(pasted.detach()))


def _rows(shards: list[str], faces: list[str]) -> np.ndarray:
    """For each face the place of its first row among the shards' training rows: further ones are views of it in other colours."""
    first: dict[str, int] = {}
    for row, face in enumerate(read_shards(shards, "train", ["face_id"])["face_id"].to_pylist()):
        first.setdefault(face, row)
    if lacking := set(faces) - set(first):
        raise NotReady(f"{len(lacking)} face(s), first {min(lacking)}, came after the training shards were encoded; run the training anew")
    return np.array([first[face] for face in faces])
