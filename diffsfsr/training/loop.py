"""The loop, nothing else. What is learned is an Objective; how gradients become steps is an Engine."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffsfsr.config import Preset, Training
from diffsfsr.training import checkpoints
from diffsfsr.training.data import Batch, Position
from diffsfsr.training.run import RunDirectory

Stats = dict[str, float]
Report = Callable[[Stats], None]


class Objective(Protocol):
    """A network and what it should become good at."""

    network: nn.Module  # its parameters are exactly what is trained

    def draw(self, at: Position) -> Batch: ...

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Each term, one value per item (n,); 'loss' (B,) is what is minimised."""

    def save(self, folder: Path) -> None:
        """Write `network` with whatever it needs to be used; `folder` is new and empty."""


class Engine(Protocol):
    """DeepSpeed's engine, as far as the loop knows it."""

    rank: int
    world: int
    device: torch.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float | None:
        """Called after every backward. After a step's last, the norm of its gradient over all ranks, where that is known."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def barrier(self) -> None: ...
    def any(self, flag: bool) -> bool: ...
    def whole(self) -> Any: ...


class Stopped(Exception):
    """The run was asked to stop and has saved itself."""


def learning_rate(step: int, t: Training) -> float:
    """Linear warm-up, constant, linear fall to zero from `decay_from` to `steps` (paper, section 4). `step` counts from 0."""
    rise = min(1.0, (step + 1) / t.warmup) if t.warmup else 1.0
    fall = (t.steps - step) / (t.steps - t.decay_from) if step > t.decay_from else 1.0
    return t.lr * rise * min(1.0, fall)


class Ema:
    """Exponential moving average of the weights, kept by rank 0 in float32; warm-up min(decay, (1 + k) / (10 + k))."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().float().clone(memory_format=torch.contiguous_format) for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in network.named_parameters():
            self.average[name].lerp_(p.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        for name, p in network.named_parameters():
            p.copy_(self.average[name])

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.average, path)

    def load(self, path: Path) -> None:
        """What `save` wrote, onto the device where the average lies."""
        from safetensors.torch import load_file

        for name, value in load_file(path).items():
            self.average[name].copy_(value)


def train(
    engine: Engine, objective: Objective, preset: Preset, run: RunDirectory, report: Report, stop: Callable[[], bool] = lambda: False
) -> None:
    """Train to `preset.training.steps` from the newest checkpoint, then write `run.model`. Raises Stopped when asked to stop."""
    t = preset.training
    leader = engine.rank == 0
    with engine.whole():
        ema = Ema(objective.network, t.ema) if t.ema and leader else None
    meter = _Meter(t)
    step = _resume(engine, ema, meter, run)
    while step < t.steps:
        terms = _step(engine, objective, t, step, run)
        step += 1
        if t.ema:
            with engine.whole():
                if ema:
                    ema.update(objective.network, step)
        meter.add(terms)
        if leader and (step % t.log_every == 0 or step == t.steps):
            line = meter.line(step, learning_rate(step - 1, t), t.batch * t.accumulation * engine.world)
            run.append_stats(line)
            report(line)
        stopping = engine.any(stop())
        if step % t.checkpoint_every == 0 or step == t.steps or stopping:
            _save(engine, ema, meter, run, step, t.keep_checkpoints)
        if stopping and step < t.steps:
            raise Stopped(f"stopped at step {step} of {t.steps}; the same command goes on from there")
    _finish(engine, objective, ema, run)


def _step(engine: Engine, objective: Objective, t: Training, step: int, run: RunDirectory) -> dict[str, float]:
    seen: dict[str, list[float]] = {}
    norm: float | None = None
    for micro in range(t.accumulation):
        at = Position(step, micro, engine.rank, engine.world, t.accumulation, t.seed)
        batch = {name: _moved(value, engine.device) for name, value in objective.draw(at).items()}
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=t.precision == "bf16"):
            terms = objective.losses(engine, batch, at.generator(engine.device))
        loss = terms["loss"].float().mean()
        bad = not math.isfinite(loss.item())
        if engine.any(bad):
            raise _not_finite("loss", step, engine.rank, batch if bad else None, run)
        engine.backward(loss)
        norm = engine.step(learning_rate(step, t))
        for name, value in terms.items():
            if value.numel():
                seen.setdefault(name, []).append(value.detach().float().mean().item())
    if norm is not None:
        seen["grad_norm"] = [norm]
        if not math.isfinite(norm):  # a sum over all ranks: which of them spoiled it is not known
            raise _not_finite("gradient", step, engine.rank, batch, run)
    return {name: sum(values) / len(values) for name, values in seen.items()}


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; pictures channels last, which convolutions in bf16 run several times faster on, on a CPU too."""
    return value.to(device, memory_format=torch.channels_last) if value.ndim == 4 else value.to(device)


def _not_finite(what: str, step: int, rank: int, batch: Batch | None, run: RunDirectory) -> FloatingPointError:
    """The error that ends the run, the same on every rank; the rank whose batch it was keeps it."""
    from safetensors.torch import save_file

    kept = f"not-finite-step-{step}-rank-"
    if batch is not None:
        save_file({name: value.cpu().contiguous() for name, value in batch.items()}, run.path / f"{kept}{rank}.safetensors")
    where = run.path / f"{kept}*.safetensors"
    return FloatingPointError(f"the {what} is not finite at step {step}; the batch is kept in {where}; look at it or lower training.lr")


def _resume(engine: Engine, ema: Ema | None, meter: _Meter, run: RunDirectory) -> int:
    step, folder = checkpoints.newest(run.checkpoints) or (0, None)
    if folder:
        engine.load(folder)
        if ema:
            ema.load(folder / "ema.safetensors")
    if engine.rank == 0:
        run.forget_stats_after(step)
        if folder:
            meter.sums = json.loads((folder / "meter.json").read_text(encoding="utf-8"))
            print(f"resumed {run.path.name} at step {step}", file=sys.stderr, flush=True)
    meter.since = step
    return step


def _save(engine: Engine, ema: Ema | None, meter: _Meter, run: RunDirectory, step: int, keep: int) -> None:
    def write(folder: Path) -> None:
        engine.save(folder)
        if ema:
            ema.save(folder / "ema.safetensors")
        if engine.rank == 0:  # so that a resumed run's next line is the mean of the same steps
            (folder / "meter.json").write_text(json.dumps(meter.sums), encoding="utf-8")

    checkpoints.save(run.checkpoints, step, write, engine.rank, engine.barrier, keep)


def _finish(engine: Engine, objective: Objective, ema: Ema | None, run: RunDirectory) -> None:
    with engine.whole():
        if engine.rank == 0:
            if ema:
                ema.copy_to(objective.network)
            checkpoints.replace_folder(run.model, objective.save)
    engine.barrier()


class _Meter:
    """Means of the terms and the speed since the last line."""

    def __init__(self, t: Training) -> None:
        self.total, self.since, self.started = t.steps, 0, time.perf_counter()
        self.sums: dict[str, list[float]] = {}

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self.sums.setdefault(name, []).append(value)

    def line(self, step: int, lr: float, images: int) -> Stats:
        """One line of stats.jsonl; the speed is in images a second over all processes."""
        seconds = time.perf_counter() - self.started
        done = step - self.since
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        eta = seconds / done * (self.total - step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"step {step}/{self.total}  {shown}  {seconds / done:.2f} s/step  {eta:.0f} s left", file=sys.stderr, flush=True)
        self.since, self.started, self.sums = step, time.perf_counter(), {}
        return {"step": step, **means, "lr": lr, "images_per_second": images * done / seconds}
