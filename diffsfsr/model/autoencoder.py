"""Pixels <-> scaled latents, and the picture that the UNet is shown of the scene."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from math import gcd
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffsfsr import config
from diffsfsr.errors import InputError
from diffsfsr.face.masks import latent_mask
from diffsfsr.model.lean import LeanAutoencoder
from diffsfsr.model.published import Part, refuse_misfit

FACTOR = 8  # pixels to a latent position
MASK_FILL = 0.0  # mid grey, what stands in place of the face in every condition image
_KINDS = {"kl": AutoencoderKL, "tiny": AutoencoderTiny, "lean": LeanAutoencoder}
_SD_WIDTH = 128


class LatentAutoencoder(ModelMixin, ConfigMixin):
    """Images (B,3,S,S) in [-1, 1] <-> latents (B,C,S/8,S/8) with mean 0 and standard deviation 1 per channel.

    Wraps diffusers' AutoencoderKL (kind "kl"; width 128 is Stable Diffusion's) or AutoencoderTiny ("tiny"), or a LeanAutoencoder
    ("lean").
    scaled = (raw - latent_shift) * latent_scale; both are buffers, so they are saved with the weights.

    Args:
        kind, channels, width: the network, C latent channels.
        inner: the wrapped network's own full config, in place of the default for kind, channels and width.
    """

    @register_to_config
    def __init__(
        self,
        kind: Literal["kl", "tiny", "lean"] = "lean",
        channels: int = 8,
        width: int = 64,
        inner: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise InputError(f"unknown autoencoder.kind {kind!r}; known: {', '.join(_KINDS)}")
        self.net = _KINDS[kind](**(inner or _inner_config(kind, channels, width)))
        factor = getattr(self.net.config, "scaling_factor", None) or 1.0
        shift = getattr(self.net.config, "shift_factor", None) or 0.0
        self.register_buffer("latent_shift", torch.full((channels,), float(shift)))
        self.register_buffer("latent_scale", torch.full((channels,), float(factor)))

    @classmethod
    def from_config_row(cls, row: config.Autoencoder, folder: Path | Part | None = None) -> LatentAutoencoder:
        """A new network for that row, or the published one in `folder` (diffusers' layout). A row with a source is SD's in size."""
        if folder is not None:
            return cls.from_diffusers(folder, row)
        return cls(kind=row.kind, channels=row.channels, width=_SD_WIDTH if row.kind == "kl" and row.source else row.width)

    @classmethod
    def from_diffusers(
        cls, folder: Path | Part, row: config.Autoencoder | None = None, dtype: torch.dtype = torch.float32
    ) -> LatentAutoencoder:
        """Wraps an autoencoder of one of these classes as diffusers saves it: a folder, or a Part of one or of a name on the hub.

        Raises InputError when there is neither, or it is not one that `row` describes, before any weight is read.
        """
        part = Part.of(folder)
        kind = check_autoencoder(part, row)
        net = part.load(_KINDS[kind], dtype)
        own = {k: net.config[k] for k in inspect.signature(type(net).__init__).parameters if k in net.config}
        wrapped = cls(kind=kind, channels=net.config.latent_channels, inner=own)
        wrapped.net = net
        return wrapped.type(dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B,3,S,S) RGB in [-1, 1], S a multiple of 8 -> scaled latents (B,C,S/8,S/8); of a KL posterior, its mode."""
        shift, scale = self._affine(images)
        return (self._encode_raw(images) - shift) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B,C,h,w) -> images (B,3,8h,8w) RGB, about [-1, 1]: not clamped, so that gradients pass."""
        shift, scale = self._affine(latents)
        return self.net.decode(latents / scale + shift).sample

    def forward(self, images: Tensor) -> Tensor:
        """decode(encode(images)): what training the autoencoder compares with the images."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Sets shift and scale so that these images' latents have mean 0 and deviation 1 per channel. Batches of (B,3,S,S)."""
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for batch in images:
            raw = self._encode_raw(batch.to(self.latent_scale)).double().transpose(0, 1).flatten(1)
            count, total, square = count + raw.shape[1], total + raw.sum(1), square + raw.square().sum(1)
        if count < 2:
            raise InputError("the autoencoder was given no images to calibrate its latents on")
        mean = total / count
        self.latent_shift.copy_(mean)
        self.latent_scale.copy_((square / count - mean.square()).clamp(min=1e-12).rsqrt())

    def _encode_raw(self, images: Tensor) -> Tensor:
        out = self.net.encode(images)
        return out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.latent_shift.view(1, -1, 1, 1).to(like), self.latent_scale.view(1, -1, 1, 1).to(like)


def check_autoencoder(part: Part, row: config.Autoencoder | None = None) -> str:
    """The kind of a published autoencoder by its config alone. Raises InputError when there is none, or not one of `row`'s shape."""
    have = part.config(*_KINDS.values())
    kind = next(k for k, c in _KINDS.items() if c.__name__ == have["_class_name"])
    if row is None:
        return kind
    if kind != row.kind:
        raise InputError(f"{part} holds a {have['_class_name']}; autoencoder.kind={row.kind} needs {_KINDS[row.kind].__name__}")
    refuse_misfit(part, have, _KINDS[kind], {"latent_channels": (row.channels, "autoencoder.channels")})
    return kind


def _inner_config(kind: str, channels: int, width: int) -> dict[str, Any]:
    if kind == "lean":
        return {"latent_channels": channels, "block_out_channels": (3, width, 2 * width, 3 * width)}
    if kind == "tiny":
        return {
            "encoder_block_out_channels": (width,) * 4,
            "decoder_block_out_channels": (width,) * 4,
            "latent_channels": channels,
        }
    return {  # Stable Diffusion 1.4's vae/config.json at width 128
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "layers_per_block": 2,
        "norm_num_groups": gcd(width, 32),
        "latent_channels": channels,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def condition_image(scene: Tensor, mask: Tensor) -> Tensor:
    """Eq. 4's masked I_bkg: scene (B,3,S,S) in [-1, 1] with one fixed value where mask (B,1,S,S) is 1.

    The paper writes M for the facial region and multiplies by it; what it describes is the scene without the face.
    """
    return scene * (1 - mask) + MASK_FILL * mask


def condition_channels(preset: config.Preset) -> int:
    """How many channels `condition_latents` gives, by which conv_in is wider than a base network's."""
    c = preset.conditioning
    return 1 if c.background == "segmentation" else preset.autoencoder.channels + c.mask_channel


def condition_latents(vae: LatentAutoencoder, scene: Tensor, mask: Tensor, mask_channel: bool, background: str = "image") -> Tensor:
    """Section 3.1: what is concatenated to z_t, (B,k,h,w) in the dtype of `scene`.

    background "image" is the encoded condition image (C channels), and with `mask_channel` the mask as one channel more;
    "segmentation", section 4.3's model without the background condition, is the mask alone. A latent position that touches the
    face counts as face.
    """
    shown = [] if background == "segmentation" else [vae.encode(condition_image(scene, mask))]
    if mask_channel or background == "segmentation":
        shown.append(latent_mask(mask.to(scene), FACTOR))
    return torch.cat(shown, dim=1)
