"""bf16 where a machine is made for it, float32 where it would be emulated."""

from __future__ import annotations

import pytest
import torch

from diffsfsr.precision import autocast, half_of


def test_a_cpu_without_bf16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for has, want in (("avx2", torch.float32), ("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("bf16", torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {has: True})
        with autocast("bf16", "cpu"):
            assert layer(x).dtype == want
        assert half_of("bf16", "cuda") == torch.bfloat16 and half_of("fp32", "cuda") is None
    with autocast("fp32", "cpu"):
        assert layer(x).dtype == torch.float32


def test_what_this_machine_says_is_understood() -> None:
    has = torch.cpu.get_capabilities()
    assert {"avx512_bf16", "amx_bf16"} <= set(has) if has["architecture"] == "x86_64" else "bf16" in has
