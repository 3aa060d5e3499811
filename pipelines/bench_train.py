"""What `diffsfsr bench train` measures: a whole training step, beside the same step as one would first write it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsfsr.config import Preset, override
from diffsfsr.precision import autocast
from diffsfsr.training.cost import Estimate
from pipelines.benches import Pair, device, faces, here


def train(preset: Preset) -> Iterator[Pair]:
    """Eq. 7 of a batch of self triplets, backward and AdamW; DeepSpeed around it would cost both sides the same.

    The auxiliary losses are the paper's, from the first step: the improved midpoint, through the recognisers that condition. Ours reads
    latents and embeddings from a shard. The peer has the same network and draws; it encodes pictures and faces in the step, walks Eq. 2
    t - s times and leaves attention and memory format as diffusers has them.
    """
    preset = at_hand(preset)
    with tempfile.TemporaryDirectory() as folder:
        step, batch = Step(preset, Path(folder)), preset.training.batch
        peer = f"encoding in the step, Eq. 2 up to {(preset.objective.aux_max_t + 1) // 2} times"
        name = f"training step, {' + '.join(preset.conditioning.identity)}"
        with step.feed:
            yield Pair(name, batch, step.ours, peer, step.peer, step.difference, 2e-2, batch, batch, Estimate(preset).cost().flop)


def at_hand(preset: Preset) -> Preset:
    """The preset on new weights with the encoders whose files are here; on a CPU one process with the batch of all."""
    row = preset.training
    new: dict[str, Any] = {"autoencoder.source": "", "unet.source": "", "dln.source": "", "objective.loss_decoder": ""}
    new |= {"objective.p_self": 1.0, "objective.identity": [], "objective.lambda_perceptual": 0.0}
    new |= {"objective.midpoint": "improved", "objective.aux_from": 0.0}
    new["dln.backbone"] = preset.dln.backbone if here(preset.dln.backbone) else "dlib"
    new["conditioning.identity"] = [name for name in preset.conditioning.identity if here(name)] or ["dlib"]
    return override(preset, {**new, "training.batch": row.batch if device().type == "cuda" else row.batch * row.processes})


class Step:
    """The same step both ways, on one network and one optimiser, so that the memory of neither counts for the other."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        from diffsfsr.training.data import Position
        from diffsfsr.training.feed import Feed
        from diffsfsr.training.objectives import DiffusionObjective

        self.preset, self.folder = preset, folder
        self.at = Position(0, 0, 0, 1, 1, preset.training.seed)
        self.images, self.landmarks, self.masks = pictures(preset)
        self.objective = DiffusionObjective(preset, self._inputs())
        self.network = self.objective.network.to(device()).train()
        t = preset.training
        self.feed = Feed(self.objective.draw, itertools.repeat(self.at), t.ahead, device(), t.channels_last)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-8, fused=True)

    def _inputs(self) -> Any:
        """A shard of the pictures and untrained networks, written into the folder; they are encoded as the graph encodes them."""
        from diffsfsr import tables
        from diffsfsr.encoders.dln import BACKBONES, Dln
        from diffsfsr.model.autoencoder import LatentAutoencoder
        from diffsfsr.training.run import Inputs
        from diffsfsr.weights import resolve

        p = self.preset
        torch.manual_seed(0)
        autoencoder = LatentAutoencoder.from_config_row(p.autoencoder)
        autoencoder.calibrate([self.images])  # latents of no size would hardly count in any loss
        autoencoder.save_pretrained(self.folder / "autoencoder")
        Dln.from_identity(resolve(BACKBONES[p.dln.backbone].published), p.dln.dim, backbone=p.dln.backbone).save(self.folder / "dln")
        networks = {name: str(self.folder / name) for name in ("autoencoder", "dln")}
        encoded = Encoded.load(p, networks)(self.images, self.landmarks, self.masks)
        widths = {name: encoded[f"id_{name}"].shape[1] for name in p.conditioning.identity}
        arrays = {"latent": encoded["latent"].half(), "masked_latent": encoded["masked"].half(), "landmarks": self.landmarks}
        arrays |= {name: value for name, value in encoded.items() if name.startswith("id_") or name == "expression"}
        columns = {name: list(value.flatten(1).cpu().numpy()) for name, value in arrays.items()}
        columns["mask"] = [m.byte().numpy().tobytes() for m in encoded["mask"].cpu()]
        names = [f"bench/{i}/0" for i in range(len(self.images))]
        rows = [
            {"face_id": n, "person": n, "emotion": "", "split": "train", **{k: v[i] for k, v in columns.items()}}
            for i, n in enumerate(names)
        ]
        schema = tables.training_schema(p.autoencoder.channels, p.latent, widths, p.dln.dim)
        tables.write(self.folder / "shard.parquet", tables.from_rows(rows, schema), "bench")
        return Inputs((str(self.folder / "shard.parquet"),), "bench", autoencoder=networks["autoencoder"], dln=networks["dln"])

    def ours(self) -> Tensor:
        """(B,) losses of a step as the trainer takes it."""
        from diffsfsr.model.attention import DeviceAttention

        self.network.unet.set_attn_processor(DeviceAttention())
        if self.preset.training.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._step(self.feed.next())

    def peer(self) -> Tensor:
        """(B,) losses of the step as first written."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.network.unet.set_attn_processor(AttnProcessor2_0())
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        rows = torch.from_numpy(self.at.items(len(self.images), len(self.images)))
        o = self.objective
        with self._autocast(), torch.no_grad():
            batch = Encoded(o.autoencoder, o.identity, o.dln)(*(x[rows].to(device()) for x in (self.images, self.landmarks, self.masks)))
        with patch.dict("diffsfsr.model.diffusion.MIDPOINTS", {self.preset.objective.midpoint: folded_midpoint}):
            return self._step(batch)

    def _autocast(self) -> Any:
        return autocast(self.preset.training.precision, device().type)

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.objective.losses(self.network, batch, self.at.generator(device()))["loss"]
        loss.float().mean().backward()
        self.optimiser.step()
        return loss.detach().float()

    def difference(self) -> float:
        """How far both sides' losses lie apart, relative to their size, in float32 and with no noise in the midpoint.

        A shard holds latents in half precision, and that is what is left.
        """
        kept = self.objective.preset, self.preset
        self.preset = self.objective.preset = override(self.preset, {"training.precision": "fp32", "objective.midpoint_noise": False})
        try:
            ours, peer = self.ours(), self.peer()
        finally:
            self.objective.preset, self.preset = kept
        return float(((ours - peer).abs() / peer.abs()).max())


class Encoded:
    """Pictures (B,3,S,S) in [-1, 1], landmarks (B,68,2) and masks (B,1,S,S) -> a training batch of self triplets."""

    def __init__(self, autoencoder: Any, identity: dict[str, Any], dln: Any) -> None:
        self.autoencoder, self.identity, self.dln = autoencoder, identity, dln

    @classmethod
    def load(cls, preset: Preset, networks: dict[str, str]) -> Encoded:
        from diffsfsr.encoders import load_encoder
        from diffsfsr.encoders.dln import Dln
        from diffsfsr.model.autoencoder import LatentAutoencoder

        identity = {name: load_encoder(name) for name in preset.conditioning.identity}
        return cls(LatentAutoencoder.from_pretrained(networks["autoencoder"]).eval(), identity, Dln.load(Path(networks["dln"])))

    @torch.no_grad()
    def __call__(self, images: Tensor, landmarks: Tensor, masks: Tensor) -> dict[str, Tensor]:
        from diffsfsr.face.masks import latent_mask
        from diffsfsr.model.autoencoder import condition_image

        count, where = len(images), images.device
        return {
            "latent": self.autoencoder.encode(images).float(),
            "masked": self.autoencoder.encode(condition_image(images, masks)).float(),
            "mask": latent_mask(masks),
            "landmarks": landmarks,
            "expression": self.dln(images, landmarks).float(),
            "present": torch.ones((count, len(self.identity)), dtype=torch.bool, device=where),
            "cross": torch.zeros(count, device=where),
            **{f"id_{name}": encoder(images, landmarks).float() for name, encoder in self.identity.items()},
        }


def pictures(preset: Preset) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of real faces: images (B,3,S,S) in [-1, 1], landmarks (B,68,2) in their pixels, masks (B,1,S,S)."""
    from diffsfsr.face.masks import hull_mask

    _, crops, points = faces()
    again, size = -(-preset.training.batch // len(crops)), preset.crop
    images = F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True)
    landmarks = (points.float() + 0.5) * (size / crops.shape[-1]) - 0.5
    masks = torch.from_numpy(np.stack([hull_mask(p.numpy(), size) for p in landmarks])).float()[:, None]
    return tuple(x.repeat(again, *[1] * (x.ndim - 1))[: preset.training.batch] for x in (images, landmarks, masks))  # type: ignore[return-value]


def folded_midpoint(predict_z0: Any, z_t: Tensor, t: Tensor, schedule: Any, generator: torch.Generator, noise: bool = True) -> Tensor:
    """Section 3.3 as it is written: Eq. 2 applied t - s times with one z0_hat, a draw of noise each time."""
    from diffsfsr.model.diffusion import gaussian, posterior

    s, now, z = t // 2, t, z_t
    z0_hat = predict_z0(z_t, t)
    while bool((now > s).any()):
        moves = (now > s).view(-1, 1, 1, 1)
        mean, variance = posterior(z0_hat, z, now.clamp(min=1), schedule)
        z = torch.where(moves, mean + variance.sqrt() * gaussian(z, generator) if noise else mean, z)
        now = torch.where(now > s, now - 1, now)
    return torch.where((s == 0).view(-1, 1, 1, 1), z0_hat, predict_z0(z, s.clamp(min=1)))
