"""What is said of every portrait: a JSON sidecar beside it, and the check that the two belong together."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffsfsr
from diffsfsr import tables
from diffsfsr.errors import InputError
from diffsfsr.portrait.order import Order
from diffsfsr.untrusted import read_json
from diffsfsr.weights import GROUPS, ZOO, file_sha256, files_of, restricted, used_by

if TYPE_CHECKING:  # it loads torch
    from diffsfsr.portrait.compose import Portrait, Studio


def sidecar_path(portrait: Path) -> Path:
    return portrait.with_name(portrait.name + ".json")


def sidecar(
    path: Path,
    sha256: str,
    order: Order,
    inputs: dict[str, str],
    expression: dict[str, Any] | None,
    model_version: str,
    studio: Studio,
    made: Portrait,
    seconds: float,
) -> dict[str, Any]:
    """What a portrait was made from, by what, and how long it took (seconds). `sha256` is of the bytes that were written: another run may
    have put its own there since."""
    box = dict(zip(("left", "top", "right", "bottom"), map(int, made.scene_face.box), strict=True))
    used = weights_of(studio, order)
    return {
        "portrait": str(path.resolve()),
        "sha256": sha256,
        "order": order.payload(),
        "inputs_sha256": inputs,
        "expression": expression,
        "scene_face": {"box": box, "pose_degrees": [made.scene_face.pose.yaw, made.scene_face.pose.pitch, made.scene_face.pose.roll]},
        "model_version": model_version,
        "model_steps": studio.preset.training.steps,
        "preset": studio.preset.name,
        "licences": {name: ZOO[name].licence for name in used},
        "non_commercial": restricted(used),
        "identity_absent": studio.absent,
        "selfies_unlike": {name: [order.selfies[i] for i in found] for name, found in made.outliers.items()},
        "timings_seconds": {**made.timings, "total": round(seconds, 4)},
        "synthetic": True,
        "made_by": f"diffsfsr {diffsfsr.__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def weights_of(studio: Studio, order: Order) -> tuple[str, ...]:
    """Zoo names of every published file behind a portrait: of its model's preset, of the encoders at work, of a scene's painter.

    An encoder that is absent from this studio is among them: the model was trained by it.
    """
    encoders = [name for encoder in studio.identity.present for name in files_of(encoder)]
    painter = GROUPS["sd-1.4"] if order.prompt else ()
    return tuple(dict.fromkeys((*used_by(studio.preset, judged=False), *encoders, *painter)))


def write(portrait: Path, content: dict[str, Any]) -> None:
    tables.write_json(sidecar_path(portrait), content)


def verify(portrait: Path) -> dict[str, Any]:
    """The sidecar of a portrait whose bytes are the ones it names. Raises InputError where they are not, or it is missing."""
    if not portrait.is_file():
        raise InputError(f"{portrait} is not a file: give a portrait")
    beside = sidecar_path(portrait)
    try:
        content = read_json(beside)
        recorded, *_ = content["sha256"], content["model_version"], content["made_at"]
        if not all(isinstance(sha256, str) for sha256 in dict(content["inputs_sha256"]).values()):
            raise ValueError("inputs_sha256 is no table of hashes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{portrait} has no readable sidecar at {beside.name}: it was not made here, or lost its record") from error
    if file_sha256(portrait) != recorded:
        raise InputError(f"{portrait} has been changed since it was made: its bytes are not those that {beside.name} names")
    return content
