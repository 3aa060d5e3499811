"""Attention as the device likes it; and the keys and values of a context that stays the same from step to step, computed once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

Kept = dict[Attention, tuple[Tensor, Tensor]]  # cross-attention -> its keys and values, each (B, heads, N, width of a head)


def keep(unet: UNet2DConditionModel, context: Tensor) -> Kept:
    """What each cross-attention of the network makes of a context (B, N, W), in the network's dtype.

    It is an argument of the forward pass, `cross_attention_kwargs={"kept": ...}`, and no state of the network: calls in several
    threads do not mix, and nothing is left behind. It is stale once the network's weights have changed.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention]
    return {layer: (_heads(layer, layer.to_k(context)), _heads(layer, layer.to_v(context))) for layer in layers}


class DeviceAttention:
    """Scaled dot-product attention: torch's fused one, but on a CPU with gradients the plain product, whose backward pass is the
    faster one there in bf16 at our sizes (its forward pass is not)."""

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        kept: Kept | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, L, W) -> the same shape; `kept` takes the place of the context in the layers that it names."""
        if kept is not None and attn in kept:
            query, (key, value) = _heads(attn, attn.to_q(hidden_states)), kept[attn]
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
            return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        plain = hidden_states.device.type == "cpu" and torch.is_grad_enabled()
        return (self.plain if plain else self.fused)(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(B, L, heads x d) -> (B, heads, L, d)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
