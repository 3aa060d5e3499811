"""The networks of a training step with weights of no meaning, each with a forward pass of it on so many items: for `cost` to measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffsfsr.config import Preset

_CHIPS = {"dlib": (150, 150), "facenet": (160, 160)}  # height and width
Built = tuple[Any, Callable[[int], Tensor]]  # a module, and a forward pass of it on so many items


def network(p: Preset, again: bool) -> Built:
    from diffusers.models.attention_processor import AttnProcessor2_0

    from diffsfsr.model.autoencoder import condition_channels
    from diffsfsr.model.conditioning import ConditionTokens
    from diffsfsr.model.diffusion import NoiseSchedule
    from diffsfsr.model.unet import DiffSFSR, build_unet

    dims = {name: _dim(name) for name in p.conditioning.identity}
    with torch.device("meta"):
        unet, tokens = build_unet(p), ConditionTokens(dims, p.dln.dim, p.conditioning.token_width)
    network = DiffSFSR(unet, tokens, NoiseSchedule.from_config(p.schedule), p.schedule.prediction).train()
    unet.set_attn_processor(AttnProcessor2_0())
    if again:
        unet.enable_gradient_checkpointing()

    def call(batch: int) -> Tensor:
        latent = torch.empty(batch, p.autoencoder.channels, p.latent, p.latent)
        condition = torch.empty(batch, condition_channels(p), p.latent, p.latent)
        identity = {name: torch.empty(batch, dim) for name, dim in dims.items()}
        return network(latent, torch.ones(batch, dtype=torch.long), condition, identity, torch.empty(batch, p.dln.dim))

    return network, call


def decoder(p: Preset, name: str) -> Built:
    """What the losses look through: the autoencoder's own decoder, the small one, or a published one."""
    from diffsfsr.encoders.frozen import freeze
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.decoder import SMALL, LossDecoder, PublishedDecoder

    with torch.device("meta"):
        autoencoder = LatentAutoencoder.from_config_row(p.autoencoder)
        small = LossDecoder(p.autoencoder.channels) if name == SMALL else None
    net: Any = small or (PublishedDecoder(name, autoencoder) if name else autoencoder)
    return freeze(net), lambda batch: net.decode(_pictures(batch, p.autoencoder.channels, p.latent, p.latent))


def expert(p: Preset, name: str) -> Built:
    """An encoder behind its warp, which costs next to nothing. Raises NotReady for an ONNX file that is not on this machine."""
    from diffsfsr.encoders.dln import BACKBONES, Dln
    from diffsfsr.encoders.frozen import freeze
    from diffsfsr.encoders.recogniser import RECIPES, OnnxRecogniser

    if name in RECIPES:
        encoder = OnnxRecogniser(name)
        return encoder.net, lambda batch: encoder.net(_pictures(batch, 3, *encoder.recipe.size))
    backbone = BACKBONES[p.dln.backbone if name == "dln" else name]
    net = freeze(Dln(backbone.net(), p.dln.dim, backbone=backbone.name) if name == "dln" else backbone.net())
    run: Any = net.embed if name == "dln" else net
    return net, lambda batch: run(_pictures(batch, 3, *_CHIPS[backbone.name]))


def _pictures(*shape: int) -> Tensor:
    return torch.empty(shape, requires_grad=True)


def _dim(name: str) -> int:
    from diffsfsr.encoders.dln import BACKBONES
    from diffsfsr.encoders.recogniser import RECIPES

    return (RECIPES if name in RECIPES else BACKBONES)[name].dim


def count(net: nn.Module) -> int:
    """Weights: of an ONNX network, its floating-point constants."""
    return sum(p.numel() for p in net.parameters()) or sum(b.numel() for b in net.buffers() if b.is_floating_point())
