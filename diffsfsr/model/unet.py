"""The denoising UNet with its widened input, and the bundle that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffsfsr import config
from diffsfsr.errors import InputError
from diffsfsr.model.attention import DeviceAttention, Kept
from diffsfsr.model.autoencoder import condition_channels
from diffsfsr.model.conditioning import ConditionTokens
from diffsfsr.model.diffusion import NoiseSchedule, network_timestep, z0_from_output
from diffsfsr.model.published import Part, refuse_misfit

_POOLED = ("class_embed_type", "projection_class_embeddings_input_dim")
_ASKED_BY = {  # a UNet's config -> the setting of a preset that decides it
    "in_channels": "autoencoder.channels",
    "out_channels": "autoencoder.channels",
    "block_out_channels": "unet.channels",
    "down_block_types": "unet.attention",
    "up_block_types": "unet.attention",
    "layers_per_block": "unet.layers",
    "attention_head_dim": "unet.heads",
    "cross_attention_dim": "conditioning.token_width",
    "resnet_time_scale_shift": "unet.scale_shift",
}


def build_unet(preset: config.Preset, source: Path | Part | None = None, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The preset's UNet, its conv_in widened by the condition's channels, see `condition_channels`.

    New weights, or published ones. With the default settings it is Stable Diffusion 1.4's, 859,520,964 parameters before
    widening. Raises InputError when what is at `source` was made for other settings, before any weight is read.
    """
    settings = unet_settings(preset)
    if source is None:
        unet = UNet2DConditionModel(**settings).type(dtype)
    else:
        part = Part.of(source)
        check_unet(preset, part)
        pooled = {k: v for k, v in settings.items() if k in _POOLED}
        unet = part.load(UNet2DConditionModel, dtype, new="class_embedding." if pooled else "", **pooled)
    if preset.conditioning.pooled:
        unet.class_embedding.linear_1.reset_parameters()  # a base network has none, and loading leaves it unset
        nn.init.zeros_(unet.class_embedding.linear_2.weight)
        nn.init.zeros_(unet.class_embedding.linear_2.bias)
    return widen_conv_in(unet, condition_channels(preset))


def check_unet(preset: config.Preset, source: Part) -> None:
    """Compares a published UNet's config with the preset's settings. Raises InputError naming each that differs, with both values."""
    settings = unet_settings(preset)
    want = {key: (settings[key], name) for key, name in _ASKED_BY.items()}
    refuse_misfit(source, source.config(UNet2DConditionModel), UNet2DConditionModel, want)


def unet_settings(preset: config.Preset) -> dict[str, Any]:
    """UNet2DConditionModel's arguments before widening."""
    row = preset.unet
    levels = len(row.channels)
    attention = row.attention or tuple(level < 3 or level < levels - 1 for level in range(levels))
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention))
    pooled = dict(zip(_POOLED, ("projection", preset.conditioning.token_width), strict=True))
    return {
        "sample_size": preset.latent,
        "in_channels": preset.autoencoder.channels,
        "out_channels": preset.autoencoder.channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": row.channels,
        "layers_per_block": row.layers,
        "attention_head_dim": row.heads[0] if len(set(row.heads)) == 1 else row.heads,
        "cross_attention_dim": preset.conditioning.token_width,
        "resnet_time_scale_shift": "scale_shift" if row.scale_shift else "default",
        **(pooled if preset.conditioning.pooled else {}),
    }


def widen_conv_in(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """Section 3.1, background: conv_in takes `extra` channels more, whose weights start at zero, so step 0 equals the base network."""
    old = unet.conv_in
    new = nn.Conv2d(old.in_channels + extra, old.out_channels, old.kernel_size, old.stride, old.padding).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias = old.bias
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)
    return unet


class DiffSFSR(nn.Module):
    """UNet and condition tokens as one trainable module; its parameters are exactly what training changes."""

    def __init__(self, unet: UNet2DConditionModel, tokens: ConditionTokens, schedule: NoiseSchedule, prediction: str) -> None:
        super().__init__()
        self.unet, self.tokens, self.schedule, self.prediction = unet, tokens, schedule, prediction
        self.unet.set_attn_processor(DeviceAttention())
        self.pooled = unet.config.class_embed_type is not None

    @classmethod
    def from_preset(
        cls,
        preset: config.Preset,
        identity_dims: dict[str, int],
        expression_dim: int | None = None,
        unet_folder: Path | Part | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> DiffSFSR:
        """A new model for that preset, its UNet with new weights or those of `unet_folder` (a folder saved by diffusers, or a Part).

        identity_dims: encoder name -> D, which must name the preset's encoders in its order.
        """
        if tuple(identity_dims) != preset.conditioning.identity:
            raise InputError(f"preset {preset.name} conditions on {list(preset.conditioning.identity)}, not on {list(identity_dims)}")
        tokens = ConditionTokens(dict(identity_dims), expression_dim or preset.dln.dim, preset.conditioning.token_width).type(dtype)
        unet = build_unet(preset, unet_folder, dtype)
        return cls(unet, tokens, NoiseSchedule.from_config(preset.schedule), preset.schedule.prediction)

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        condition: Tensor,
        identity: dict[str, Tensor | None],
        expression: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """The network's output (eps or v), of z_t's shape and dtype.

        Args:
            z_t: (B,C,h,w) noisy latents.
            t: (B,) long, the paper's 1..T.
            condition: (B,k,h,w) from `condition_latents`, k as `condition_channels` counts.
            identity, expression, present: as `ConditionTokens.forward` takes them.
        """
        return self.denoise(z_t, t, condition, self.tokens(identity, expression, self._batch_present(present, len(z_t))))

    def denoise(self, z_t: Tensor, t: Tensor, condition: Tensor, tokens: Tensor, kept: Kept | None = None) -> Tensor:
        """`forward` from tokens (B,N,W) that are at hand, and, if so, from what `attention.keep` made of them."""
        dtype = self.unet.conv_in.weight.dtype
        x = torch.cat([z_t, condition], dim=1).to(dtype)
        extra: dict[str, Any] = {"class_labels": tokens.mean(1).to(dtype)} if self.pooled else {}
        if kept is not None:
            extra["cross_attention_kwargs"] = {"kept": kept}
        return self.unet(x, network_timestep(t), encoder_hidden_states=tokens.to(dtype), **extra).sample.to(z_t.dtype)

    def _batch_present(self, present: Tensor | None, batch: int) -> Tensor:
        # Spelled out, because with no embedding at all the tokens could not know the batch.
        return torch.ones(batch, len(self.tokens.slots), dtype=torch.bool) if present is None else present

    def predict_z0(self, z_t: Tensor, t: Tensor, *conditions: Any, **named: Any) -> Tensor:
        """The estimate of z_0 (B,C,h,w) behind `forward(z_t, t, ...)`; bound to its conditions, it is what the midpoints take."""
        return self.z0_from_output(self(z_t, t, *conditions, **named), z_t, t)

    def z0_from_output(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The same from an output already at hand, as when the forward pass ran through a wrapper of this module."""
        return z0_from_output(self.prediction, output, z_t, t, self.schedule)

    @classmethod
    def from_folder(cls, folder: Path) -> DiffSFSR:
        """The model inside a saved DiffSFSRPipeline, without its other components. Raises InputError when it is not there."""
        folder = Path(folder)
        try:
            row = config.Schedule(**json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["schedule"])
            unet = UNet2DConditionModel.from_pretrained(folder / "unet")
            tokens = ConditionTokens.from_pretrained(folder / "tokens")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"no saved pipeline in {folder}: {str(error).splitlines()[0]}") from error
        for part in (unet, tokens):
            part.register_to_config(_name_or_path="")  # else a model trained on from here would be saved with this machine's path
        return cls(unet, tokens, NoiseSchedule.from_config(row), row.prediction)
