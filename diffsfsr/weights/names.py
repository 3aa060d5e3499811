"""Which words the settings of a preset may hold that name a network: refused here, before anything is prepared or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.weights.needs import MADE_OF
from diffsfsr.weights.zoo import ZOO

if TYPE_CHECKING:
    from diffsfsr.config import Preset

SMALL = "small"  # objective.loss_decoder: no published file, but a network that is trained here


def check_names(preset: Preset) -> None:
    """Raises InputError where a setting names a network that does not exist or is of another kind, with the nearest that would do."""
    identity, decoders = words("identity", "identity judge"), words("latent to image")
    row = preset.objective.loss_decoder
    _refuse("autoencoder.source", [preset.autoencoder.source], ("", *words("autoencoder")))
    _refuse("dln.source", [preset.dln.source], ("", *words("expression encoder")))
    _refuse("unet.source", [preset.unet.source], ("", *words("base network")))
    _refuse("conditioning.identity", preset.conditioning.identity, identity)
    _refuse("objective.identity", preset.objective.identity, identity)
    _refuse("objective.loss_decoder", [row], ("", SMALL, *decoders))
    _refuse("evaluation.judge", [preset.evaluation.judge], ("any", *identity))
    if row in decoders and not preset.autoencoder.source:
        raise InputError(
            f"preset {preset.name}: objective.loss_decoder={row} reads the latents of a published autoencoder, not of one that is "
            f"trained here (autoencoder.source is empty); use objective.loss_decoder={SMALL}"
        )


def words(*roles: str) -> tuple[str, ...]:
    """What settings call the files of the zoo that have one of these roles."""
    called = {files[-1]: word for word, files in MADE_OF.items()}
    return tuple(called.get(name, name) for name, file in ZOO.items() if file.role in roles)


def _refuse(setting: str, named: Sequence[str], known: tuple[str, ...]) -> None:
    for name in named:
        if name not in known:
            listed = ", ".join(word for word in known if word) or "none"
            empty = "; or empty: trained here" if setting.endswith("source") else ""
            raise InputError(f"unknown {setting}={name!r}{did_you_mean(name, known)}; known: {listed}{empty}")
