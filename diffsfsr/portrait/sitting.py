"""From an order to everything that its portrait needs but the painting: files read, faces found, the word looked up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from diffsfsr.errors import InputError
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.words import Found, Reference

if TYPE_CHECKING:  # it loads torch
    from diffsfsr.face.alignment import AlignedFace
    from diffsfsr.portrait.compose import Sitting, Studio


class Inputs(Protocol):
    """Who and where: an order for one portrait, or for many."""

    @property
    def selfies(self) -> tuple[str, ...]: ...
    @property
    def scene(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...


def sit(order: Order, studio: Studio, reference: Reference) -> tuple[Sitting, Found | None]:
    """The sitting of a checked order, and what stands for its word (None for task `identity`).

    Raises InputError for an order that cannot be fulfilled.
    """
    found = reference(order.emotion, order.seed) if order.task != "identity" else None
    selfies, scene = photographs(order, studio)
    wishes = {name: getattr(order, name) for name in ("task", "strength", "steps", "sampler", "seed", "face")}
    expression, negative = (found.vector, found.negative) if found else (None, None)
    return studio.sit(selfies, scene, expression, negative=negative, **wishes), found


def photographs(order: Inputs, studio: Studio) -> tuple[list[AlignedFace], np.ndarray]:
    """The faces of an order's selfies, and its scene, painted where it is a prompt. Raises InputError for what cannot be used."""
    from diffsfsr.portrait import scenes

    pictures = {path: photograph(path) for path in dict.fromkeys((*order.selfies, order.scene)) if path}
    scene = pictures[order.scene] if order.scene else scenes.from_prompt(order.prompt, order.seed)
    return [studio.face(pictures[path], f"selfie {path}") for path in order.selfies], scene


def photograph(path: str) -> np.ndarray:
    """HWC uint8 RGB. Raises InputError, naming the file, where it is no photograph."""
    from diffsfsr.face.images import Rejected, read

    try:
        return read(Path(path))
    except Rejected as rejected:
        raise InputError(f"{path} cannot be used: {rejected.reason} ({rejected.detail}); give another photograph") from rejected
