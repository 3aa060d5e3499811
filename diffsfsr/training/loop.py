"""The loop, nothing else. What is learned is an Objective; how gradients become steps is an Engine."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from diffsfsr import tables
from diffsfsr.config import Preset, Training
from diffsfsr.errors import NotReady
from diffsfsr.precision import autocast
from diffsfsr.training import checkpoints
from diffsfsr.training.data import Batch, Position
from diffsfsr.training.feed import Feed
from diffsfsr.training.run import RunDirectory

Network = Callable[..., Any]
Stats = dict[str, float]
Terms = dict[str, list[float]]  # name -> a value (mean over items) from each micro batch that has it
Validate = Callable[[dict[str, Tensor]], tuple[Stats, np.ndarray]]  # whole weights by name -> numbers, and an HWC uint8 picture


class Report(Protocol):
    def __call__(self, line: Stats, picture: Path | None = None) -> None:
        """A line of statistics, as it was written; a line of validation comes with the file of its picture."""


class Objective(Protocol):
    """A network and what it should become good at."""

    network: nn.Module  # its parameters are exactly what is trained

    def draw(self, at: Position) -> Batch: ...

    def losses(self, network: Network, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
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

    def overflowed(self) -> bool:
        """Whether that step left the weights alone, because half precision was too narrow for its gradient at the present loss
        scale, and the scale has been lowered since: doing the step again may succeed."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def barrier(self) -> None: ...
    def any(self, flag: bool) -> bool: ...
    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""

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
        torch._foreach_lerp_(list(self.average.values()), [p.detach().float() for p in network.parameters()], 1 - decay)

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
    engine: Engine,
    objective: Objective,
    preset: Preset,
    run: RunDirectory,
    report: Report,
    stop: Callable[[], bool] = lambda: False,
    validate: Validate | None = None,
) -> None:
    """Train to `preset.training.steps` from the newest checkpoint, then write `run.model`. Raises Stopped when asked to stop.

    report and validate are used on rank 0 alone.
    """
    t = preset.training
    leader = engine.rank == 0
    with engine.whole():
        ema = Ema(objective.network, t.ema) if t.ema and leader else None
    meter = _Meter(t)
    step = _resume(engine, ema, meter, t, run)
    with Feed(objective.draw, _places(engine, t, step), t.ahead, engine.device, t.channels_last) as feed:
        while step < t.steps:
            terms = _step(engine, objective, t, step, feed, run)
            step += 1
            if t.ema:
                with engine.whole():
                    if ema:
                        ema.update(objective.network, step)
            meter.add(terms)
            if t.validate_every and (step % t.validate_every == 0 or step == t.steps):
                with engine.whole():
                    if leader and validate:
                        _validate(validate, ema.average if ema else dict(objective.network.named_parameters()), step, run, report)
            if step % t.log_every == 0 or step == t.steps:
                meter.collect(engine)
                if leader:
                    line = meter.line(step, learning_rate(step - 1, t), t.batch * t.accumulation * engine.world, feed)
                    run.append_stats(line)
                    report(line)
            stopping = engine.any(stop())
            if step % t.checkpoint_every == 0 or step == t.steps or stopping:
                _save(engine, ema, meter, run, step, t.keep_checkpoints)
            if stopping and step < t.steps:
                raise Stopped(f"stopped at step {step} of {t.steps}; the same command goes on from there")
    _finish(engine, objective, ema, run)


def _places(engine: Engine, t: Training, step: int) -> Iterator[Position]:
    """This rank's micro batches from a step to the end."""
    for n in range(step, t.steps):
        for micro in range(t.accumulation):
            yield Position(n, micro, engine.rank, engine.world, t.accumulation, t.seed)


def _step(engine: Engine, objective: Objective, t: Training, step: int, feed: Feed, run: RunDirectory) -> Terms:
    """One step's terms on this rank. A step that overflowed is done again, so that it always is one step.

    What is not finite is looked for once the step is done, which costs one wait for the GPU a step; nothing is saved after it.
    """
    batches = [feed.next() for _ in range(t.accumulation)]
    places = list(_places(engine, t, step))[: t.accumulation]
    while True:
        terms, norm = [], None
        for at, batch in zip(places, batches, strict=True):
            with autocast(t.precision, engine.device.type):
                values = objective.losses(engine, batch, at.generator(engine.device))
            engine.backward(values["loss"].float().mean())
            norm = engine.step(learning_rate(step, t))
            terms.append({name: value.detach().float().mean() for name, value in values.items() if value.numel()})
        fetched = _fetched(terms)
        bad = next((i for i, loss in enumerate(fetched["loss"]) if not math.isfinite(loss)), None)
        if engine.any(bad is not None):
            raise _not_finite("loss", step, engine.rank, None if bad is None else batches[bad], run)
        if not engine.overflowed():
            break
    if norm is not None and not math.isfinite(norm):  # a sum over all ranks: which of them spoiled it is not known
        raise _not_finite("gradient", step, engine.rank, batches[-1], run)
    return fetched | ({} if norm is None else {"grad_norm": [norm]})


def _fetched(terms: list[dict[str, Tensor]]) -> Terms:
    """The values of every term, micro batch after micro batch, brought from the device in one go."""
    values = torch.stack([value for each in terms for value in each.values()]).tolist()
    found: Terms = {}
    for name, value in zip((name for each in terms for name in each), values, strict=True):
        found.setdefault(name, []).append(value)
    return found


def _validate(validate: Validate, weights: dict[str, Tensor], step: int, run: RunDirectory, report: Report) -> None:
    from diffsfsr.face.images import encode_png

    numbers, sheet = validate(weights)
    picture, line = run.validation / f"step-{step:08d}.png", {"step": step, **numbers}
    tables.write_whole(picture, lambda path: path.write_bytes(encode_png(sheet)))
    run.append_stats(line)
    report(line, picture)


def _not_finite(what: str, step: int, rank: int, batch: Batch | None, run: RunDirectory) -> FloatingPointError:
    """The error that ends the run, the same on every rank; the rank whose batch it was keeps it."""
    from safetensors.torch import save_file

    kept = f"not-finite-step-{step}-rank-"
    if batch is not None:
        save_file({name: value.cpu().contiguous() for name, value in batch.items()}, run.path / f"{kept}{rank}.safetensors")
    where = run.path / f"{kept}*.safetensors"
    return FloatingPointError(f"the {what} is not finite at step {step}; the batch is kept in {where}; look at it or lower training.lr")


def _resume(engine: Engine, ema: Ema | None, meter: _Meter, t: Training, run: RunDirectory) -> int:
    """The step to go on from: that of the newest sound checkpoint, which rank 0 looks for. Raises NotReady where it does not load."""
    step, folder = engine.gather(checkpoints.newest(run.checkpoints) if engine.rank == 0 else None)[0] or (0, None)
    if folder:
        try:
            _load(engine, ema, meter, folder)
        except Exception as error:  # whatever torch, DeepSpeed or safetensors make of a damaged file
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise NotReady(f"the checkpoint {folder} cannot be loaded; remove it to go on from the one before ({why})") from error
    if engine.rank == 0:
        run.forget_stats_after(step)
        if folder:
            spread = f"{engine.world} process(es), {t.accumulation} x {t.batch} images each"
            print(f"resumed {run.path.name} at step {step}: {spread}", file=sys.stderr, flush=True)
    meter.since = step
    return step


def _load(engine: Engine, ema: Ema | None, meter: _Meter, folder: Path) -> None:
    engine.load(folder)
    if ema:
        ema.load(folder / "ema.safetensors")
    if engine.rank == 0:
        meter.add(json.loads((folder / "meter.json").read_text(encoding="utf-8")))


def _save(engine: Engine, ema: Ema | None, meter: _Meter, run: RunDirectory, step: int, keep: int) -> None:
    meter.collect(engine)

    def write(folder: Path) -> None:
        engine.save(folder)
        if ema:
            ema.save(folder / "ema.safetensors")
        if engine.rank == 0:  # so that a resumed run's next line is the mean of the same steps
            (folder / "meter.json").write_text(json.dumps(meter.seen), encoding="utf-8")

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
        self.seen: Terms = {}

    def add(self, terms: Terms) -> None:
        for name, values in terms.items():
            self.seen.setdefault(name, []).extend(values)

    def collect(self, engine: Engine) -> None:
        """Bring to rank 0 what all ranks have seen."""
        parts = engine.gather(self.seen)
        self.seen = {}
        for part in parts if engine.rank == 0 else []:
            self.add(part)

    def line(self, step: int, lr: float, images: int, feed: Feed) -> Stats:
        """One line of stats.jsonl; speed in images a second over all processes, and the share of the time that waited for data."""
        seconds, waited = time.perf_counter() - self.started, feed.waited
        done = step - self.since
        means = {name: math.fsum(values) / len(values) for name, values in self.seen.items()}  # in whichever order they came
        eta = seconds / done * (self.total - step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"step {step}/{self.total}  {shown}  {seconds / done:.2f} s/step  {eta:.0f} s left", file=sys.stderr, flush=True)
        self.since, self.started, self.seen, feed.waited = step, time.perf_counter(), {}, 0.0
        return {"step": step, **means, "lr": lr, "images_per_second": images * done / seconds, "data_wait": waited / seconds}
