"""`diffsfsr travel`: a strip or a GIF of one person whose expression moves from station to station, made by the champion."""

from __future__ import annotations

import dataclasses
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import look

if TYPE_CHECKING:  # they load torch
    import numpy as np

    from assets.portraits import Serving
    from diffsfsr.portrait.compose import Portrait, Sitting
    from diffsfsr.portrait.travel import Travel


def travel(args: Namespace) -> Any:
    """Make one travel; answers with its sidecar."""
    from diffsfsr.portrait.travel import ENDINGS, Travel

    fields = ("scene", "prompt", "task", "strength", "steps", "sampler", "seed", "face", "frames")
    wanted = Travel(selfies=tuple(args.selfie), through=tuple(args.through), **{name: getattr(args, name) for name in fields}).check()
    if wanted.prompt:
        look.need_painter()
    out = look.picture_name(args.out, ENDINGS, tuple(wanted.inputs()))
    sidecar, _ = fulfil(wanted, look.champion(), out)
    return sidecar if args.json else sidecar["portrait"]


def fulfil(wanted: Travel, serving: Serving, out: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Writes the picture and its sidecar; returns this and the frames (HWC uint8). Every frame starts from the same noise: only the
    expression moves."""
    from diffsfsr.model import sampling
    from diffsfsr.portrait import provenance
    from diffsfsr.portrait import travel as room
    from diffsfsr.portrait.sitting import photographs

    started = time.perf_counter()
    inputs, studio = wanted.inputs(), serving.studio
    selfies, scene = photographs(wanted, studio)
    wishes = {name: getattr(wanted, name) for name in ("task", "steps", "sampler", "seed", "face")}
    sitting = studio.sit(selfies, scene, None, **wishes)
    stations, plain, facts = _stations(wanted, sitting, serving)
    way, near = sampling.travel(stations, wanted.frames)
    masks = [studio.mask(sitting.target, sitting.identity, expression) for expression in sampling.travel(plain, wanted.frames)[0]]
    frames = [dataclasses.replace(sitting, expression=shown, mask=mask) for shown, mask in zip(way, masks, strict=True)]
    painted, last = _paint(studio, frames)
    names = [Path(name).stem if room.is_photograph(name) else name for name in wanted.through]
    words = {frame: " / ".join(name for name, at in zip(names, near, strict=True) if at == frame) for frame in near}
    sha256 = room.write(out, painted, words)
    told = {"stations": [fact | {"frame": frame} for fact, frame in zip(facts, near, strict=True)]}
    sidecar = provenance.sidecar(out, sha256, wanted, inputs, told, serving.version, studio, last, time.perf_counter() - started)
    provenance.write(out, sidecar)
    return sidecar, painted


def _stations(wanted: Travel, sitting: Sitting, serving: Serving) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Unit expression embeddings (n, 16), the same without exaggeration, and how each was found."""
    import torch

    from diffsfsr.model.sampling import expression_strength
    from diffsfsr.portrait.sitting import photograph
    from diffsfsr.portrait.travel import OWN, is_photograph

    found, plain, facts = [], [], []
    for name in wanted.through:
        if name == OWN:
            station, fact = sitting.own, {"scene": "its own expression"}
        elif is_photograph(name):
            face = serving.studio.face(photograph(name), f"station {name}")
            station, fact = serving.studio.embed_expression(face)[0], {"photograph": name}
        else:
            vector, fact, _ = serving.expression(name, wanted.seed)  # between two feelings none is the contrary one
            station = torch.from_numpy(vector).to(sitting.own)
        found.append(expression_strength(sitting.own, station, wanted.strength))
        plain.append(expression_strength(sitting.own, station, min(wanted.strength, 1.0)))
        facts.append(fact)
    return torch.stack(found), torch.stack(plain), facts


def _paint(studio: Any, sittings: list[Sitting]) -> tuple[list[np.ndarray], Portrait]:
    """The frames, no larger than a strip can use, and the last portrait with the time that all took."""
    from diffsfsr.face.images import resize
    from diffsfsr.portrait.compose import TOGETHER
    from diffsfsr.portrait.travel import SIDE

    frames, seconds = [], dict.fromkeys(("generate", "paste"), 0.0)
    for start in range(0, len(sittings), TOGETHER):  # so that no more full-size pictures than that are held at once
        made = studio.paint(sittings[start : start + TOGETHER])
        height, width = made[0].image.shape[:2]
        scale = min(1.0, SIDE / max(height, width))
        frames += [resize(one.image, (max(1, round(height * scale)), max(1, round(width * scale)))) for one in made]
        seconds["generate"] += made[0].timings["generate"]
        seconds["paste"] += sum(one.timings["paste"] for one in made)
    return frames, dataclasses.replace(made[-1], timings=made[-1].timings | {k: round(v, 4) for k, v in seconds.items()})
