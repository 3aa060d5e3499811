"""Training on from a model that is there: what must fit, and the copy that a state folder keeps of it."""

from __future__ import annotations

import shutil
from dataclasses import fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from assets.stores.registry import Registry, content_hash
from assets.stores.workspace import Start, Workspace, family
from diffsfsr.config import Preset, Unet
from diffsfsr.errors import InputError
from diffsfsr.portrait import shipped
from diffsfsr.training.checkpoints import replace_folder

# What networks are made to and cannot change.
_SAME = (
    *("crop", "autoencoder.kind", "autoencoder.channels", "autoencoder.width", "dln.backbone", "dln.dim", "schedule"),
    *("conditioning.identity", "conditioning.token_width", "conditioning.background", "conditioning.mask_channel", "conditioning.pooled"),
    *(f"unet.{field.name}" for field in fields(Unet) if field.name != "source"),
)


def basis(name: str, registry: Registry) -> Path:
    """The folder of a model by the name of the shipped one, an alias or a number of the registry, or its path. Raises InputError or
    NotReady where there is none."""
    if name == shipped.NAME:
        return shipped.need()
    if name in ("champion", "challenger") or name.isdecimal():
        return registry.resolve(name).folder
    if not Path(name).is_dir():
        raise InputError(f"--from {name} is no model: {shipped.NAME}, champion, challenger, a version's number, or a folder of a saved one")
    return Path(name).resolve()


def check_fits(preset: Preset, model: Path) -> None:
    """Raises InputError, naming the setting and both values, where a preset describes other networks than the model's."""
    made = shipped.preset_of(model)
    for setting in _SAME:
        wanted, found = attrgetter(setting)(preset), attrgetter(setting)(made)
        if wanted != found:
            raise InputError(
                f"--from {model}: {setting} is {_shown(found)} in that model, {_shown(wanted)} in preset {preset.name}; it was made by "
                f"preset {made.name}"
            )


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def begin(workspace: Workspace, preset: Preset, model: Path, dataset: str = "") -> Start:
    """Keep a copy of the model, and make it the one that the preset trains on from, on one data set or on every one.

    A copy, named by its content: a package that is brought up to date changes no run that began before. The words in its folder (one that
    is shipped has some, of nobody) come along; those beside a registered model are of people here, and stay where `forget` finds them.
    """
    check_fits(preset, model)
    version = content_hash(model)
    folder = workspace.home / "models" / family(preset) / f"start-{version[:8]}"
    if not folder.is_dir():
        replace_folder(folder, partial(_copy, model))
    start = Start(folder, version, dataset)
    workspace.set_start(preset, start)
    return start


def _copy(model: Path, part: Path) -> None:
    shutil.copytree(model, part, dirs_exist_ok=True)
