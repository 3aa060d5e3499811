"""Which preset an asset works by: the networks of a family fit together, and a change leaves alone what is not made from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from assets.resources import Settings
from assets.stores.workspace import Workspace, family
from diffsfsr import config, presets
from diffsfsr.config import Preset
from diffsfsr.errors import InputError

CHANGES = {
    "crop": "64", "autoencoder.width": "24", "dln.dim": "8", "objective.loss_decoder": "small", "unet.layers": "2", "training.steps": "7",
    "data.min_face": "30",
}  # fmt: skip


def changed(before: Preset, after: Preset) -> set[str]:
    def flat(data: dict[str, Any], path: str = "") -> dict[str, Any]:
        items = [flat(v, f"{path}{k}.") if isinstance(v, dict) else {path + k: v} for k, v in data.items()]
        return {k: v for item in items for k, v in item.items()}

    old, new = flat(config.to_dict(before)), flat(config.to_dict(after))
    return {key for key in new if new[key] != old[key]}


@pytest.mark.parametrize(
    ("trains", "row", "taken"),
    [
        ("diffusion", "lab", set(CHANGES)),
        ("autoencoder", "ae-lab", {"crop", "autoencoder.width", "data.min_face"}),
        ("dln", "dln-lab", {"crop", "dln.dim", "data.min_face"}),
    ],
)
def test_a_network_takes_the_changes_that_it_is_made_from(trains: str, row: str, taken: set[str]) -> None:
    resolved = Settings(preset="lab", changes=CHANGES).resolve(trains)
    assert resolved.name == row and changed(presets.preset(row), resolved) == taken


def test_the_decoder_is_made_from_the_autoencoder() -> None:
    resolved = Settings(preset="lab", changes={"autoencoder.width": "24", "training.steps": "7", "dln.dim": "8"}).resolve("decoder")
    assert resolved.trains == "decoder" and resolved.autoencoder.width == 24 and resolved.dln.dim == 16
    assert family(resolved) == "lab"


def test_the_named_network_takes_its_training_and_the_family_the_rest() -> None:
    settings = Settings(preset="ae-lab", changes={"training.steps": "7", "unet.layers": "2", "crop": "64"})
    assert changed(presets.preset("ae-lab"), settings.resolve("autoencoder")) == {"training.steps", "unet.layers", "crop"}
    assert changed(presets.preset("lab"), settings.resolve()) == {"unet.layers", "crop"}


def test_a_preset_may_use_anothers_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ablation trains a model of its own on the autoencoder, DLN and loss decoder of the preset that it is an ablation of."""
    ablation = dataclasses.replace(presets.preset("tiny"), name="tiny-other", experts="tiny")
    monkeypatch.setitem(presets.PRESETS, "tiny-other", ablation)
    settings, workspace = Settings(preset="tiny-other"), Workspace(tmp_path)
    assert [settings.resolve(kind).name for kind in ("diffusion", "autoencoder", "dln")] == ["tiny-other", "ae-tiny", "dln-tiny"]
    for kind in ("autoencoder", "dln", "decoder", "diffusion"):
        (tmp_path / kind).mkdir()
        workspace.set_network(kind, presets.preset("tiny"), tmp_path / kind, "v")
    for kind in ("autoencoder", "dln", "decoder"):
        assert workspace.network(kind, ablation) == (tmp_path / kind, "v")
    assert workspace.network("diffusion", ablation) is None
    workspace.set_network("diffusion", ablation, tmp_path / "dln", "mine")
    assert workspace.network("diffusion", ablation) == (tmp_path / "dln", "mine")
    assert workspace.network("diffusion", presets.preset("tiny")) == (tmp_path / "diffusion", "v")


def test_a_word_that_names_nothing_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="unknown dln.source='nonsense'"):
        Settings(preset="lab", changes={"dln.source": "nonsense"}).resolve()
