"""What the model being trained makes of a few people whom training does not know: pictures to look at, and numbers."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from diffsfsr.model.sampling import conditioned, make_scheduler, sample
from diffsfsr.precision import autocast
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Triplets
from diffsfsr.training.objectives import DiffusionObjective
from diffsfsr.training.objectives.diffusion import conditions_of

_DRAWS = 4  # of noise an item, for a loss that depends less on it


class Validation:
    """`training.validation_items` cross triplets of the test split, fixed by the seed alone: the same all through a run, resumed or not.

    It has a copy of the network, so that what is trained (divided among ranks, perhaps) is not touched; no random number of
    the training is drawn either.
    """

    def __init__(self, objective: DiffusionObjective) -> None:
        """To be made before the objective's network is trained or wrapped. Raises InputError where too few people are held out."""
        preset = objective.preset
        self.objective, self.preset, self.seed = objective, preset, preset.training.seed
        shards = list(objective.inputs.shards)
        faces = Triplets(shards, preset.autoencoder.channels, preset.latent, tuple(objective.identity), split="test")
        scene, identity, expression = faces.three_people(preset.training.validation_items, self.seed)
        apart = np.ones(len(scene), bool)
        self.cross, self.own = faces.take(scene, identity, expression, apart), faces.take(scene, scene, scene, ~apart)
        self.shown = [faces.latent[chosen].float() for chosen in (scene, identity, expression)]
        self.network = copy.deepcopy(objective.network).eval().requires_grad_(False)
        self.scheduler = make_scheduler(preset.schedule, preset.sampling.sampler)

    @torch.no_grad()
    def __call__(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """Numbers, and a sheet (rows: scene, identity, expression, output) as HWC uint8, for weights by parameter name.

        val_loss_dm: Eq. 3 on the same scenes as self triplets, at fixed noise. val_id, val_exp: Eq. 5 and 6 of the outputs, by
        the encoders that condition.
        """
        device = next(iter(weights.values())).device
        for name, p in self.network.named_parameters():
            p.copy_(weights[name])
        try:
            self._move_to(device)
            with autocast(self.preset.training.precision, device.type):
                loss, sources, output = self._loss(_to(self.own, device)), self._sources(device), self._output(device)
            numbers = {"val_loss_dm": loss, **self._distances(output, _to(self.cross, device))}
        finally:
            self.network.to("cpu")  # between two looks its memory is the training's
        return numbers, _sheet([*sources, output])

    def _move_to(self, device: torch.device) -> None:
        o = self.objective
        for network in (self.network, o.autoencoder, o.dln, *o.identity.values()):
            network.to(device)

    def _loss(self, batch: Batch) -> float:
        """The training's own loss, at timesteps and noise that never change."""
        generator = torch.Generator(batch["latent"].device).manual_seed(self.seed)
        drawn = [self.objective.losses(self.network, batch, generator)["loss_dm"] for _ in range(_DRAWS)]
        return torch.cat(drawn).mean().item()

    def _sources(self, device: torch.device) -> list[Tensor]:
        """Scene, identity and expression images, (n, 3, S, S) each: shards hold latents, no pixels."""
        return [self.objective.autoencoder.decode(latents.to(device)).float() for latents in self.shown]

    def _output(self, device: torch.device) -> Tensor:
        """What the preset's sampler makes of them, (n, 3, S, S) in [-1, 1]."""
        batch, told, s = _to(self.cross, device), self.preset.conditioning, self.preset.sampling
        model_fn = conditioned(self.network, **conditions_of(batch, told, self.objective.dln))
        keep = (batch["latent"], batch["mask"]) if told.background == "segmentation" else None
        seeds = range(len(batch["latent"]))
        shape, most = batch["latent"].shape[1:], s.guidance_max_t
        made = sample(model_fn, shape, self.scheduler, s.steps, seeds, s.guidance, device, keep=keep, eta=s.eta, guidance_max_t=most)
        return self.objective.autoencoder.decode(made).float().clamp(-1, 1)

    def _distances(self, output: Tensor, batch: Batch) -> dict[str, float]:
        names = self.preset.conditioning.identity
        made = {name: self.objective.identity[name](output, batch["landmarks"]) for name in names}
        given = {name: batch[f"id_{name}"] for name in names}
        there = batch["present"][:, : len(names)]
        present = dict(zip(names, there.T, strict=True))
        identity = losses.identity_loss(made, given, self.network.tokens.means(), present)
        expression = losses.expression_loss(self.objective.dln(output, batch["landmarks"]), batch["expression"])
        return {"val_id": identity[there.any(1)].mean().item(), "val_exp": expression.mean().item()}


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


def _sheet(rows: list[Tensor]) -> np.ndarray:
    """Rows of (n, 3, S, S) as one picture, of small cells where the faces are large."""
    from diffsfsr.face.images import contact_sheet, to_uint8

    return contact_sheet([list(to_uint8(row.clamp(-1, 1).cpu())) for row in rows], cell=min(256, rows[0].shape[-1]))
