"""What each network is trained to do: one class and one file a network, all with the same four members (loop.Objective)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffsfsr.config import Preset
from diffsfsr.training.objectives.autoencoder import AutoencoderObjective
from diffsfsr.training.objectives.decoder import DecoderObjective
from diffsfsr.training.objectives.diffusion import DiffusionObjective
from diffsfsr.training.objectives.expression import ExpressionObjective
from diffsfsr.training.objectives.finish import FinishObjective
from diffsfsr.training.run import Inputs

__all__ = ["OBJECTIVES", "AutoencoderObjective", "DecoderObjective", "DiffusionObjective", "ExpressionObjective", "FinishObjective"]

OBJECTIVES: dict[str, Callable[[Preset, Inputs], Any]] = {
    "autoencoder": AutoencoderObjective,
    "dln": ExpressionObjective,
    "decoder": DecoderObjective,
    "diffusion": DiffusionObjective,
    "finish": FinishObjective,
}
