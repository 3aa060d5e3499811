"""The words that settings may hold: those of the zoo and the encoders, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from diffsfsr import config, presets
from diffsfsr.encoders import IDENTITY
from diffsfsr.errors import InputError
from diffsfsr.weights import ZOO, check_names
from diffsfsr.weights.names import words


def test_every_preset_passes() -> None:
    for row in presets.PRESETS.values():
        check_names(row)


def test_the_identity_words_are_the_encoders_own() -> None:
    """The zoo's roles against the list by which encoders are loaded."""
    assert sorted(words("identity", "identity judge")) == sorted(IDENTITY)
    assert words("latent to image") == ("vaelight_decoder",) and words("base network") == ("sd-1.4-unet",)


@pytest.mark.parametrize(
    ("preset", "setting", "value", "said"),
    [
        ("lab", "dln.source", "nonsense", r"unknown dln.source='nonsense'; known: none; or empty: trained here"),
        ("lab", "autoencoder.source", "sd-1.4-va", r"unknown autoencoder.source='sd-1.4-va' \(did you mean sd-1.4-vae\?\)"),
        ("lab", "autoencoder.source", "sd-1.4-unet", "known: sd-1.4-vae; or empty"),  # a file of another kind
        ("paper", "unet.source", "sd-1.4-unet-config", r"did you mean sd-1.4-unet\?"),
        ("lab", "conditioning.identity", ["dlib", "blendshapes"], "unknown conditioning.identity='blendshapes'"),
        ("lab", "conditioning.identity", ["dlib-face"], "unknown conditioning.identity='dlib-face'"),  # the file, not the encoder
        ("lab", "evaluation.judge", "glintr10", r"did you mean glintr100\?\); known: any, dlib"),
        ("lab", "evaluation.judge", "", "unknown evaluation.judge=''"),
        ("lab", "objective.loss_decoder", "smal", r"did you mean small\?\); known: small, vaelight_decoder$"),
        ("lab", "objective.loss_decoder", "vaelight_encoder", "unknown objective.loss_decoder='vaelight_encoder'"),
        ("lab", "objective.loss_decoder", "vaelight_decoder", "autoencoder.source is empty.; use objective.loss_decoder=small"),
    ],
)
def test_other_words_are_refused(preset: str, setting: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_names(config.override(presets.preset(preset), {setting: value}))


def test_the_words_that_exist_pass() -> None:
    lab, paper = presets.preset("lab"), presets.preset("paper")
    for row, changes in (
        (lab, {"evaluation.judge": "dlib", "objective.loss_decoder": "small", "conditioning.identity": ["facenet", "w600k_r50"]}),
        (paper, {"objective.loss_decoder": "vaelight_decoder", "evaluation.judge": "any"}),
        (paper, {"unet.source": ""}),
    ):
        check_names(config.override(row, changes))
    assert ZOO["vaelight_decoder"].role == "latent to image"
