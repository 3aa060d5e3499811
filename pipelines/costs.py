"""The table of `diffsfsr run train --dry-run`: what a training would cost, and what each choice in it does to that."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from diffsfsr.config import Preset, Training
from diffsfsr.training.cost import Choice, Cost, Estimate

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def estimate(preset: Preset) -> dict[str, Any]:
    """The costs of a diffusion preset as JSON data, bytes and FLOP."""
    found = Estimate(preset)
    cost = found.cost()
    return {
        "networks": [asdict(network) for network in cost.networks],
        "bytes_per_gpu": asdict(cost.memory) | {"total": cost.memory.total},
        "gpu_bytes": _card(),
        "flop_per_image": cost.step | {"total": cost.flop},
        "flop_per_sample": cost.sample,
        "choices": [_choice(choice, cost) for choice in found.choices()],
    }


def _choice(choice: Choice, own: Cost) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": choice.setting, "value": choice.value, "own": choice.own}
    if choice.cost is None:
        return row | {"refused": choice.refused}
    memory, flop = choice.cost.memory, choice.cost.flop
    relative = {"bytes_relative": memory.total / own.memory.total, "flop_relative": flop / own.flop}
    return row | {"activations": memory.activations, "bytes": memory.total, "flop": flop} | relative


def _card() -> int | None:
    """Bytes of the smallest GPU here, or None where there is none."""
    import torch

    return min((torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())), default=None)


def table(costs: dict[str, Any], t: Training) -> str:
    """The same for a person to read."""
    memory, step = costs["bytes_per_gpu"], costs["flop_per_image"]
    lines = ["", "parameters"]
    for n in costs["networks"]:
        what = f"not counted: {n['absent']}" if n["absent"] else f"{n['parameters']:>13,}  {'trained' if n['trained'] else 'frozen'}"
        lines.append(f"  {n['name']:<28}{what}")
    trained = sum(n["parameters"] for n in costs["networks"] if n["trained"])
    lines += [f"  {'trained in all':<28}{trained:>13,}", ""]
    lines += [f"bytes on a GPU: ZeRO {t.zero_stage}, offload {t.offload}, {t.processes} processes, batch {t.batch}, {t.precision}"]
    lines += [f"  {name:<28}{_bytes(value):>13}" for name, value in memory.items() if name != "host" or value]
    lines += [_fits(memory["total"], costs["gpu_bytes"])] if costs["gpu_bytes"] else []
    lines += ["", "FLOP of an image in a training step, forward and back"]
    lines += [f"  {name:<28}{_flop(value):>13}" for name, value in step.items()]
    lines += [f"FLOP of a sampled picture{'':<5}{_flop(costs['flop_per_sample']):>13}", "", "what each choice costs (* the preset's own)"]
    lines += [f"  {'':<42}{'activations':>12}{'a GPU':>12}{'':>8}{'an image':>14}"]
    return "\n".join([*lines, *map(_row, costs["choices"])])


def _row(row: dict[str, Any]) -> str:
    shown = f"{'*' if row['own'] else ' '} {row['setting']}={_value(row['value'])}"
    if "refused" in row:
        return f"{shown:<44}{row['refused']}"
    bytes_, flop = f"{_bytes(row['bytes']):>12}{row['bytes_relative']:>7.2f}x", f"{_flop(row['flop']):>14}{row['flop_relative']:>7.2f}x"
    return f"{shown:<44}{_bytes(row['activations']):>12}{bytes_}{flop}"


def _value(value: Any) -> str:
    return {"True": "true", "False": "false", "": "(the autoencoder's)"}.get(str(value), str(value))


def _fits(total: int, card: int) -> str:
    return f"  {'a GPU here has':<28}{_bytes(card):>13}" + ("" if total <= card else ": this does NOT fit")


def _bytes(value: float) -> str:
    size, unit = next((s, u) for s, u in _UNITS if value >= s or s == 1)
    return f"{value / size:.4g} {unit}"


def _flop(value: float) -> str:
    size, unit = next((s, u) for s, u in ((1e12, "TFLOP"), (1e9, "GFLOP"), (0, "MFLOP")) if value >= s)
    return f"{value / (size or 1e6):.4g} {unit}"
