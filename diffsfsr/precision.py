"""In which precision networks are computed, over float32 weights: what `training.precision` asks for, where the device is made for it."""

from __future__ import annotations

import torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_of(precision: str, device: str) -> torch.dtype | None:
    """What a precision is on a kind of device ("cpu", "cuda"); None is float32.

    A CPU without instructions for bf16 has it emulated, eight times slower than float32 where that was measured:
    there it is float32. What is trained is the same but for rounding.
    """
    if device == "cpu" and precision == "bf16" and not _has_bf16():
        return None
    return HALF.get(precision)


def autocast(precision: str, device: str) -> torch.autocast:
    """The context in which a device computes in that precision."""
    half = half_of(precision, device)
    return torch.autocast(device, half, enabled=half is not None)


def _has_bf16() -> bool:
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's
