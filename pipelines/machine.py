"""What this process runs on: processor, cores, memory, accelerator, compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from diffsfsr.cores import cores


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory it may use in GB, torch and the accelerators that torch sees."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(_memory() / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        **_torch(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    """Bytes: the machine's, or the container's limit where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return min(limits)


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation is a finding, not a crash
        return {"torch": None, "accelerator": f"unknown: torch does not load ({' '.join(str(error).split())})"}
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if not torch.cuda.is_available():
        return {**found, "accelerator": f"none: CPU, {cores()} cores"}
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {**found, "accelerator": ", ".join(f"{d.name} ({d.total_memory / 1e9:.0f} GB)" for d in devices)}


def compiler() -> str | None:
    """A C++ compiler that compiles, by its path."""
    with tempfile.TemporaryDirectory() as folder:
        for path in filter(None, map(shutil.which, ("c++", "g++", "clang++"))):
            command = [path, "-x", "c++", "-", "-o", f"{folder}/out"]
            if subprocess.run(command, input=b"int main() { return 0; }", capture_output=True, check=False).returncode == 0:
                return path
    return None


# bf16 with float32 sums, dense, TFLOP/s, as NVIDIA's data sheets give them.
_PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0, "A10": 125.0}


def peak_tflops() -> float | None:
    """The first GPU's peak in bf16, TFLOP/s; None where there is none, or it is not one that is known here."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
