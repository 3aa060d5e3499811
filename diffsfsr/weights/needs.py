"""Which weights a preset needs, and whether their terms suit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.weights.places import find
from diffsfsr.weights.zoo import GROUPS, ZOO

if TYPE_CHECKING:
    from diffsfsr.config import Data, Preset

# What a name that a setting may hold is made of, where it is not simply the file of that name.
MADE_OF = {
    "dlib": ("dlib-face",),
    "blendshapes": ("facemesh", "blendshapes"),
    "segformer": ("segformer-face-parsing",),
    "insightface": ("scrfd-10g",),
    "fsanet": ("fsanet-1x1", "fsanet-var"),
}


def used_by(preset: Preset, judged: bool = True) -> tuple[str, ...]:
    """Zoo names of the files that a preset needs, each with what must lie beside it. `judged` adds what only scores its portraits.

    A network that the preset trains is no file of the zoo, but what it is trained from is named. A judge that may be any needs nothing.
    """
    return tuple(name for name, setting in _needed(_asked(preset)).items() if judged or not setting.startswith("evaluation."))


def used_to_prepare(preset: Preset) -> tuple[str, ...]:
    """Zoo names of the files without which a preset's photographs cannot be prepared."""
    return tuple(_needed(_asked_to_prepare(preset)))


def absent_teachers(preset: Preset) -> tuple[str, ...]:
    """Those recognisers in objective.identity that this machine has not."""
    return tuple(name for name in preset.objective.identity if not all(map(find, files_of(name))))


def without_absent_teachers(preset: Preset) -> Preset:
    """The preset without them: training goes on with the others."""
    absent = absent_teachers(preset)
    here = tuple(name for name in preset.objective.identity if name not in absent)
    return replace(preset, objective=replace(preset.objective, identity=here)) if absent else preset


def used_to_align(data: Data) -> tuple[str, ...]:
    """Zoo names of the files by which faces are found and aligned."""
    return tuple(_needed(_asked_to_align(data)))


def files_of(name: str) -> tuple[str, ...]:
    """Zoo names of what stands behind the name of an encoder, detector or parser; empty for what needs no published file."""
    names = MADE_OF.get(name, (name,))
    return tuple(dict.fromkeys(part for n in names if n in ZOO for part in (*ZOO[n].beside, n)))


def restricted(names: tuple[str, ...]) -> list[str]:
    """Those whose terms exclude commercial use, or that state none."""
    return [name for name in names if not ZOO[name].commercial]


def refuse_non_commercial(preset: Preset) -> None:
    """Raises InputError where preset.commercial_only is set and one of its weights excludes commercial use, naming all of them.

    dlib's landmark file is one, by which presets align faces unless data.landmarks=facemesh.
    """
    if not preset.commercial_only:
        return
    needed = _needed(_asked(preset))
    against = [f"{setting} needs {name} ({ZOO[name].licence})" for name, setting in needed.items() if not ZOO[name].commercial]
    if against:
        raise InputError(
            f"preset {preset.name}: commercial_only=true, but {'; '.join(against)}: choose others, or set commercial_only=false"
        )


def expand(name: str) -> tuple[str, ...]:
    """Zoo names that a file's, a group's or a preset's name stands for. Raises InputError naming the nearest known word."""
    from diffsfsr import presets

    if name in ZOO:
        return (name,)
    if name in GROUPS:
        return GROUPS[name]
    if name in presets.PRESETS:
        return used_by(presets.preset(name))
    near = did_you_mean(name, [*ZOO, *GROUPS, *presets.PRESETS])
    raise InputError(f"unknown weights {name!r}{near}: give a name of `diffsfsr weights list`, one of {', '.join(GROUPS)}, or a preset")


def _needed(asked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Zoo name -> the first setting that asks for it."""
    needed: dict[str, str] = {}
    for setting, word in asked:
        for name in files_of(word):
            needed.setdefault(name, setting)
    return needed


def _asked(preset: Preset) -> Iterator[tuple[str, str]]:
    """(setting, word) for every word of a preset that may stand for a file."""
    yield from _asked_to_prepare(preset)
    yield f"dln.backbone={preset.dln.backbone}", preset.dln.backbone
    for kind in preset.dln.triplets:
        yield f"dln.triplets={kind}", kind
    for part in ("dln", "autoencoder", "unet"):
        yield f"{part}.source={getattr(preset, part).source}", getattr(preset, part).source
    yield f"objective.loss_decoder={preset.objective.loss_decoder}", preset.objective.loss_decoder
    yield "evaluation.judge", preset.evaluation.judge
    yield "evaluation.pose", preset.evaluation.pose


def _asked_to_prepare(preset: Preset) -> Iterator[tuple[str, str]]:
    yield from _asked_to_align(preset.data)
    for name in preset.conditioning.identity:
        yield f"conditioning.identity={name}", name
    for name in preset.objective.identity:
        yield f"objective.identity={name}", name
    yield f"mask={preset.mask}", preset.mask


def _asked_to_align(data: Data) -> Iterator[tuple[str, str]]:
    source = data.landmarks
    yield f"alignment by data.landmarks={source}", "dlib-landmarks-68" if source == "dlib" else source  # "dlib" is an encoder too
    if data.detector != "dlib":  # dlib's detector is in the library
        yield f"data.detector={data.detector}", data.detector
