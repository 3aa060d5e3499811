"""The diffusion model: Eq. 7, and how its terms are estimated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffsfsr.config import Conditioning, Preset
from diffsfsr.encoders import brows, glasses
from diffsfsr.encoders.brows import Brows
from diffsfsr.encoders.glasses import Glasses
from diffsfsr.errors import InputError
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Position, Triplets, column, faces_with_glasses, read_shards
from diffsfsr.training.run import Inputs

if TYPE_CHECKING:
    from diffsfsr.encoders.dlib_net import DlibEncoder
    from diffsfsr.encoders.dln import Dln

Seen = TypeVar("Seen", Tensor, tuple[Tensor, ...])


class DiffusionObjective:
    """Eq. 7: L_DM on the latents, L_id and L_exp on the decoded midpoint estimate."""

    def __init__(self, preset: Preset, inputs: Inputs) -> None:
        from diffsfsr.encoders import load_encoder
        from diffsfsr.encoders.dln import Dln
        from diffsfsr.encoders.frozen import freeze
        from diffsfsr.model.autoencoder import LatentAutoencoder
        from diffsfsr.model.decoder import load_loss_decoder
        from diffsfsr.model.unet import DiffSFSR
        from diffsfsr.weights import SMALL, resolve

        self.preset, self.inputs = preset, inputs
        self.autoencoder = freeze(LatentAutoencoder.from_pretrained(inputs.network("autoencoder", preset)))
        self.dln = freeze(Dln.load(inputs.network("dln", preset)))
        name = preset.objective.loss_decoder
        self.decoder = load_loss_decoder(name, self.autoencoder, inputs.network("decoder", preset) if name == SMALL else None)
        if preset.training.channels_last:
            self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a twelfth of a step on a CPU
        self.data = Triplets(list(inputs.shards), preset.autoencoder.channels, preset.latent, preset.recognisers)
        self.identity = {name: load_encoder(name) for name in preset.recognisers}
        self.looks = cast("DlibEncoder", self.identity["dlib"]) if preset.objective.lambda_perceptual else None
        dims = {name: self.identity[name].dim for name in preset.conditioning.identity}
        published = resolve(preset.unet.source).parent if preset.unet.source else None
        new = inputs.start_from == ""
        self.network = DiffSFSR.from_preset(preset, dims, unet_folder=published) if new else DiffSFSR.from_folder(Path(inputs.start_from))
        if new:
            self.means = self.data.means()
            self.network.tokens.set_means({name: self.means[name] for name in dims})
        else:  # a few photographs of one person have that person for a mean, which would take who it is away; L_id goes without the others
            self.means = {name: mean for name, mean in self.network.tokens.means().items() if name in dims}
        self.glasses, self.brows = ({}, None) if new else self._brought()
        if preset.training.gradient_checkpointing:
            self.network.unet.enable_gradient_checkpointing()

    def draw(self, at: Position) -> Batch:
        o, batch = self.preset.objective, self.preset.training.batch
        if at.step < o.aux_from * self.preset.training.steps:
            return self.data.draw(at, batch, 1.0, o.other_photo) | {"dm_alone": torch.ones(batch)}
        return self.data.draw(at, batch, o.p_self, o.other_photo, o.by_label)

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """'loss_dm' (B,), and 'loss_id', 'loss_exp' of the items that carry them; 'loss' (B,) is Eq. 7 with the means of those.
        Where objective.lambda_perceptual asks for it, 'loss_perceptual' of the self triplets among them is added to it.

        A batch with 'dm_alone' in it, as all are before objective.aux_from, has but the first.
        A face is asked to show what the network was told: an item whose slot is absent or dropped does not carry that loss.
        """
        from diffsfsr.model.diffusion import add_noise, training_target

        self._move_to(batch["latent"].device)
        o, schedule, z_0 = self.preset.objective, self.network.schedule, batch["latent"]
        t = torch.randint(1, self.preset.schedule.steps + 1, (len(z_0),), generator=generator, device=z_0.device)
        eps = torch.randn(z_0.shape, generator=generator, device=z_0.device)
        z_t = add_noise(z_0, eps, t, schedule)
        inputs = self._conditions(batch, generator)
        output = network(z_t, t, **inputs).float()
        target = training_target(self.preset.schedule.prediction, z_0, eps, t, schedule)
        loss = loss_dm = losses.diffusion_loss(output, target, self._weights(batch))
        if o.min_snr:
            loss = loss_dm * losses.min_snr_weight(self.preset.schedule.prediction, t, schedule, o.min_snr)
        if "dm_alone" in batch or not o.sees_faces:
            return {"loss": loss, "loss_dm": loss_dm}
        carriers = self._carriers(t)
        face = self._midpoint(network, output, z_t, t, inputs, carriers, generator)
        told = inputs["present"][carriers] & (t[carriers] <= o.aux_max_t)[:, None]
        terms = self._face_losses(face, {k: v[carriers] for k, v in batch.items()}, told)
        answered = (t[carriers] <= o.aux_max_t) & (batch["cross"][carriers] == 0)
        counted = {"loss_id": told[:, :-1].any(1), "loss_exp": told[:, -1], "loss_perceptual": answered}
        scales = {"loss_id": o.lambda_id, "loss_exp": o.lambda_exp, "loss_perceptual": o.lambda_perceptual}
        for name, values in terms.items():
            loss = loss + scales[name] * _mean(values, counted[name])
        return {"loss": loss, "loss_dm": loss_dm, **{name: values[counted[name]] for name, values in terms.items()}}

    def _move_to(self, device: torch.device) -> None:
        if self.autoencoder.latent_scale.device != device:
            for frozen in (self.autoencoder, self.decoder, self.dln, *self.identity.values()):
                frozen.to(device)

    def _conditions(self, batch: Batch, generator: torch.Generator) -> dict[str, Any]:
        """The network's conditions, with slots dropped at random: one at a time, and all of them for guidance."""
        c, told = self.preset.conditioning, conditions_of(batch, self.preset.conditioning, self.dln)
        present = told["present"]
        chance = torch.rand((len(present), present.shape[1] + 1), generator=generator, device=present.device)
        present[:, :-1] &= chance[:, :-2] >= c.slot_dropout
        present &= (chance[:, -1] >= c.drop_all)[:, None]
        return told

    def _weights(self, batch: Batch) -> Tensor:
        """Where L_DM counts, (B, 1, h, w): everywhere on a self triplet, outside the face on a cross triplet; at eyes and mouth more."""
        p, answered = self.preset, 1 - batch["cross"][:, None, None, None] * batch["mask"]
        if p.objective.feature_weight == 1:
            return answered
        return answered * (1 + (p.objective.feature_weight - 1) * losses.facial_features(batch["landmarks"], p.crop, p.latent))

    def _carriers(self, t: Tensor) -> Tensor:
        """The first items whose t allows L_id and L_exp, at most their share of the batch. Where there is none, one that then does
        not count: ZeRO-3 gathers weights in every call of the network, so that all ranks must make as many.
        """
        o = self.preset.objective
        found = torch.nonzero(t <= o.aux_max_t).flatten()[: round(o.aux_fraction * len(t))]
        return found if len(found) else t.argmin()[None]

    def _midpoint(
        self,
        network: Callable[..., Any],
        output: Tensor,
        z_t: Tensor,
        t: Tensor,
        inputs: dict[str, Any],
        items: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The decoded midpoint estimate (n, 3, S, S). Its first prediction is the one L_DM has already paid for."""
        from diffsfsr.model.diffusion import MIDPOINTS, z0_from_output

        kind, schedule = self.preset.schedule.prediction, self.network.schedule
        chosen = {k: {n: e[items] for n, e in v.items()} if isinstance(v, dict) else v[items] for k, v in inputs.items()}
        paid = [output[items]]

        def predict_z0(z: Tensor, at: Tensor) -> Tensor:
            return z0_from_output(kind, paid.pop() if paid else network(z, at, **chosen).float(), z, at, schedule)

        o = self.preset.objective
        z_0 = MIDPOINTS[o.midpoint](predict_z0, z_t[items], t[items].clamp(max=o.aux_max_t), schedule, generator, o.midpoint_noise)
        return self._through(self.decoder.decode, z_0)

    def _face_losses(self, face: Tensor, batch: Batch, told: Tensor) -> dict[str, Tensor]:
        """L_id, L_exp and, where it counts, the perceptual loss, (n,) each, in float32: the experts' differences are too fine for half
        precision. told: (n, K+1) bool."""
        asked, landmarks, looks = self._asked(batch, told), batch["landmarks"], self.looks
        wanted = self._answer(looks, batch) if looks else []
        with torch.autocast(face.device.type, enabled=False):
            face, found, made = face.float(), {}, {}
            if looks:
                made[looks.name], *seen = self._through(looks.look, face, landmarks)
                found["loss_perceptual"] = losses.perceptual_loss(seen, wanted)
            made |= {name: self._through(encoder, face, landmarks) for name, encoder in self.identity.items() if name not in made}
            given = {name: batch[f"id_{name}"] for name in made}
            present = {name: asked[:, k] for k, name in enumerate(self.identity)}
            found["loss_id"] = losses.identity_loss(made, given, self.means, present)
            found["loss_exp"] = losses.expression_loss(self._through(self.dln, face, landmarks), batch["expression"])
        return found

    @torch.no_grad()
    def _answer(self, looks: DlibEncoder, batch: Batch) -> list[Tensor]:
        """The layers' activations where a self triplet's estimate is perfect."""
        real = self.decoder.decode(batch["latent"])
        with torch.autocast(real.device.type, enabled=False):
            return list(looks.look(real.float(), batch["landmarks"])[1:])

    def _asked(self, batch: Batch, told: Tensor) -> Tensor:
        """(n, R) bool: which recognisers judge an item. One that conditions does where its slot was told, any other where any was."""
        known = len(self.preset.conditioning.identity)
        return torch.cat([told[:, :-1], told[:, :-1].any(1, keepdim=True) & batch["present"][:, known:]], 1)

    def _through(self, frozen: Callable[..., Seen], *inputs: Tensor) -> Seen:
        """frozen(*inputs). With training.gradient_checkpointing only the inputs are kept, and the way back computes it again."""
        if not self.preset.training.gradient_checkpointing:
            return frozen(*inputs)
        return checkpoint(frozen, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing in it is random

    def _brought(self) -> tuple[dict[str, Glasses], Brows | None]:
        """What the model that this one is trained on from knows of glasses and brows, asked before and not after the training."""
        folder, dims = Path(self.inputs.start_from), self.network.tokens.dims
        try:
            return glasses.load(folder, dims), brows.load(folder, dims)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no whole model ({error}): put it there again, or name another") from error

    def _faces(self) -> pa.Table:
        """The training faces as they are, without their other views."""
        columns = ["face_id", "person", "landmarks", "expression", *(f"id_{name}" for name in self.preset.recognisers)]
        rows = read_shards(list(self.inputs.shards), "train", columns)
        return rows.take(np.unique(rows["face_id"].to_pylist(), return_index=True)[1])

    def _glasses(self, faces: pa.Table) -> dict[str, Glasses]:
        """What glasses do to the embeddings that condition, of those encoders and faces that tell it."""
        seem, found = faces_with_glasses(list(self.inputs.crops)), {}
        faces = faces.filter(pa.array([face_id in seem for face_id in faces["face_id"].to_pylist()], pa.bool_()))
        people, vectors = faces["person"].to_pylist(), {}
        for name, encoder in self.identity.items():
            vectors[name] = column(faces, f"id_{name}", (encoder.dim,))
            vectors[name][faces[f"id_{name}"].is_null().to_numpy()] = np.nan
        wears = glasses.worn(vectors, np.array([seem[face_id] for face_id in faces["face_id"].to_pylist()], bool), people)
        for name in self.preset.conditioning.identity:
            if told := glasses.told(vectors[name], wears, people):
                found[name] = told
        return found

    def _brows(self, faces: pa.Table) -> Brows | None:
        """What the embeddings that condition say of where brows are, where the faces tell it."""
        dims = {f"id_{name}": self.identity[name].dim for name in self.preset.conditioning.identity}
        for name in dims:
            faces = faces.filter(faces[name].is_valid())
        identity = {name.removeprefix("id_"): column(faces, name, (dim,)) for name, dim in dims.items()}
        return brows.told(column(faces, "landmarks", (68, 2)), column(faces, "expression", (self.dln.dim,)), identity)

    def save(self, folder: Path) -> None:
        """A saved DiffSFSRPipeline with the DLN that speaks its expression language, what glasses do to an identity, where embeddings
        say that brows are, the preset it was trained by, and the words that the model it was trained on from brings."""
        from diffsfsr import config, tables
        from diffsfsr.model.pipeline import DiffSFSRPipeline
        from diffsfsr.model.unet import DiffSFSR
        from diffsfsr.portrait.words import WORD_TABLE

        began, learned = self.inputs.start_from, self.preset.training.learned
        if began and learned < 1:
            partway(self.network, DiffSFSR.from_folder(Path(began)).state_dict(), learned)
        self.autoencoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as safetensors wants it
        DiffSFSRPipeline.from_model(self.network, self.autoencoder, self.preset).save_pretrained(folder)
        self.dln.save(folder / "dln")
        if not (self.glasses and self.brows):
            faces = self._faces()
            self.glasses, self.brows = self.glasses or self._glasses(faces), self.brows or self._brows(faces)
        glasses.save(self.glasses, folder)
        brows.save(self.brows, folder)
        tables.write_json(folder / "preset.json", config.to_dict(self.preset))
        words = Path(self.inputs.start_from, WORD_TABLE)
        if self.inputs.start_from and words.is_file():  # they are as this DLN sees them
            shutil.copyfile(words, folder / WORD_TABLE)


@torch.no_grad()
def partway(network: nn.Module, began: Mapping[str, Tensor], learned: float) -> None:
    """Takes a network's weights back to the share `learned`, 0 to 1, of their way from those that it began with, by name."""
    for name, parameter in network.named_parameters():
        parameter.lerp_(began[name].to(parameter), 1 - learned)


def conditions_of(batch: Batch, told: Conditioning, dln: Dln) -> dict[str, Any]:
    """What the UNet is given of a batch, every slot that it has: `condition` (B, k, h, w) as `condition_latents`, of what the shards
    hold; `identity` by encoder; `expression` in the pose of the scene's head; `present` (B, K+1) bool, of its own."""
    shown = {"image": ["masked"], "segmentation": ["mask"]}[told.background] + ["mask"] * told.mask_channel
    there = batch["present"][:, : len(told.identity)]
    return {
        "condition": torch.cat([batch[name] for name in shown], 1),
        "identity": {name: batch[f"id_{name}"] for name in told.identity},
        "expression": dln.posed(batch["expression"], batch["landmarks"]),
        "present": torch.cat([there, torch.ones_like(there[:, :1])], 1),
    }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of those that count, 0 (with a graph) where none does."""
    return (values * counted).sum() / counted.sum().clamp(min=1)
