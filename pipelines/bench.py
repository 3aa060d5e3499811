"""`diffsfsr bench`: our speed beside a peer's, measured in turns in one run, so that a busy machine slows both alike.

Each row is first shown to do the same work as its peer: where their results differ, nothing is timed.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsfsr.errors import InputError

if TYPE_CHECKING:
    from pipelines.benches import Pair

_ROUNDS = 3  # turns of each side, as long as a row may still take twice its time


def bench(args: Namespace) -> Any:
    """Figures of one benchmark: machine, preset and a row per pair. Raises InputError, and RuntimeError where results differ."""
    from diffsfsr import config, presets

    preset = config.override(presets.preset(args.preset), config.read_changes(args.set))
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise InputError(f"--seconds {args.seconds} is not a positive number")
    from pipelines import bench_encoders, bench_sample, bench_train, benches
    from pipelines.machine import machine

    known = {
        "encoders": bench_encoders.encoders,
        "train": bench_train.train,
        "sample": bench_sample.sample,
        "catalogue": benches.catalogue,
    }
    found: dict[str, Any] = {
        "bench": args.what,
        "preset": preset.name,
        "changes": args.set,
        "machine": machine(),
    }
    found["rows"] = [measure(pair, args.seconds) for pair in known[args.what](preset)]
    return found if args.json else table(found)


def measure(pair: Pair, seconds: float) -> dict[str, Any]:
    """Time both sides in turns for at least `seconds`, and report medians."""
    print(f"{pair.name}, {pair.batch}: ours and {pair.peer_name}", file=sys.stderr, flush=True)
    difference = pair.difference()
    if not difference <= pair.tolerance:
        raise RuntimeError(f"{pair.name} and {pair.peer_name} differ by {difference:.3g}, more than {pair.tolerance:g}: nothing to compare")
    start = time.perf_counter()
    ours: list[float] = []
    peer: list[float] = []
    while not ours or time.perf_counter() < start + seconds * (1 if len(ours) >= _ROUNDS else 2):
        ours.append(_time(pair.ours))
        peer.append(_time(pair.peer))
    per_item, peer_per_item = statistics.median(ours) / pair.items, statistics.median(peer) / pair.peer_items
    return {
        "name": pair.name,
        "batch": pair.batch,
        "per_second": _figures(1 / per_item),
        "ms_per_item": _figures(1000 * per_item),
        "peer": pair.peer_name,
        "peer_per_second": _figures(1 / peer_per_item),
        "ratio": _figures(peer_per_item / per_item),
        "rounds": len(ours),
        "difference": difference,
        **(_closer(pair, 1 / per_item) if pair.flop else {}),
    }


def _closer(pair: Pair, per_second: float) -> dict[str, Any]:
    """What the memory of both sides rises to, the arithmetic that ours does a second, its share of the card's peak, and where time goes."""
    from pipelines.machine import peak_tflops

    tflops, peak = per_second * pair.flop / 1e12, peak_tflops()
    shares = {"tflops": _figures(tflops)} | ({"of_peak": _figures(tflops / peak)} if peak else {})
    return {"peak_mb": _peak(pair.ours), "peer_peak_mb": _peak(pair.peer), **shares, "profile": profile(pair.ours)}


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(call: Callable[[], Any]) -> int:
    """The most memory in use during a call, MB: of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        call()
        return round(torch.cuda.max_memory_allocated() / 1e6)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): forget the peak so far
    except OSError:
        pass
    call()
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)
    except (OSError, IndexError, ValueError):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def profile(call: Callable[[], Any], most: int = 8) -> list[dict[str, Any]]:
    """Where a call's time goes: its costliest operations with their share of the device's own time, largest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        call()
        _synchronize()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows) or 1
    return [{"operation": row.key, "calls": row.count, "share": round(getattr(row, key) / total, 3)} for row in rows[:most]]


def _figures(value: float) -> float:
    """Four significant figures, which is more than a measurement is good for."""
    return float(f"{value:.4g}")


def table(found: dict[str, Any]) -> str:
    """The figures for a person; a ratio above 1 means that ours is faster."""
    m = found["machine"]
    heads = ("", "batch", "per second", "ms an item", "peer", "per second", "ratio")
    keys = ("name", "batch", "per_second", "ms_per_item", "peer", "peer_per_second", "ratio")
    cells = [heads, *(tuple(_cell(row[key]) for key in keys) for row in found["rows"])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    left = (0, 4)
    lines = ["  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in cells]
    machine = f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, load {m['load']}"
    notes = [f"{machine}; accelerator {m['accelerator']}; torch {m['torch']}"]
    if m["load"] > m["cores"]:
        notes.append("the machine is busy with other work: every figure is low, and ratios where one side has more threads are off")
    for row in (row for row in found["rows"] if "profile" in row):
        spent = ", ".join(f"{each['operation']} {each['share']:.0%}" for each in row["profile"])
        share = f", {row['of_peak']:.0%} of the card's peak" if "of_peak" in row else ""
        notes.append(f"{row['name']}, {row['batch']}: {row['tflops']:.3g} TFLOP/s{share}; peak memory {row['peak_mb']} MB,")
        notes.append(f"  of the peer {row['peer_peak_mb']} MB; time: {spent}")
    return "\n".join([f"{found['bench']}, preset {found['preset']} (ratio above 1: ours is faster)", *(x.rstrip() for x in lines), *notes])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
