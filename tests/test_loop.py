"""The loop around a plain engine of one process: what it promises about rates, averages, resuming, files and errors."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffsfsr import config, presets
from diffsfsr.config import Preset, Training
from diffsfsr.errors import NotReady
from diffsfsr.training import checkpoints
from diffsfsr.training.data import Batch, Position
from diffsfsr.training.loop import Ema, Stopped, learning_rate, train
from diffsfsr.training.run import RunDirectory


class PlainEngine:
    """torch.optim.AdamW behind the loop's verbs. At the calls of `step` in `narrow`, a step's last, half precision is too narrow."""

    rank, world, device = 0, 1, torch.device("cpu")

    def __init__(self, network: nn.Module, t: Training) -> None:
        self.network, self.t, self.micro = network, t, 0
        self.rates: list[float] = []
        self.narrow: set[int] = set()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=t.lr, weight_decay=t.weight_decay)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        (loss / self.t.accumulation).backward()

    def step(self, lr: float) -> float | None:
        self.micro += 1
        if self.micro % self.t.accumulation:
            return None
        if self.overflowed():
            self.optimizer.zero_grad()
            return math.inf
        self.optimizer.param_groups[0]["lr"] = lr
        self.rates.append(lr)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.t.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def save(self, folder: Path) -> None:
        torch.save({"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def barrier(self) -> None:
        pass

    def overflowed(self) -> bool:
        return self.micro in self.narrow

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


class Toy:
    """Learn y = (sum of x, 1) from noisy x; the noise is the step's own. `spoil` may change a step's loss."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(3)
        self.batch, self.network = batch, nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.x = torch.randn(29, 4)
        self.seeds: list[int] = []
        self.spoil = lambda at, loss: loss

    def draw(self, at: Position) -> Batch:
        return {"x": self.x[at.items(self.batch, len(self.x))], "place": torch.tensor([at.step, at.micro])}

    def losses(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.seeds.append(generator.initial_seed())
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)
        target = torch.stack([batch["x"].sum(1), torch.ones(len(x))], 1)
        each = (network(x) - target).square().mean(1)
        kept = each[each > 1]  # a term that some batches lack
        return {"loss": self.spoil(tuple(batch["place"].tolist()), each), "large": kept}

    def save(self, folder: Path) -> None:
        torch.save(self.network.state_dict(), folder / "weights.pt")


def preset(**changes: Any) -> Preset:
    basis = {"steps": 20, "batch": 4, "accumulation": 2, "lr": 0.02, "warmup": 3, "decay_from": 15, "ema": 0.9}
    basis |= {"checkpoint_every": 4, "log_every": 3, "keep_checkpoints": 2, "precision": "fp32"}
    settings = {f"training.{name}": value for name, value in (basis | changes).items()}
    return config.override(presets.PRESETS["tiny"], settings | {"objective.aux_fraction": 1})


def learn(folder: Path, chosen: Preset, toy: Toy | None = None, stop_at: int = 0) -> tuple[RunDirectory, Toy, list[dict[str, float]]]:
    toy, run, reported = toy or Toy(chosen.training.batch), RunDirectory(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    steps = iter(range(1, 10_000))
    train(PlainEngine(toy.network, chosen.training), toy, chosen, run, reported.append, stop=lambda: next(steps) == stop_at)
    return run, toy, reported


CLOCK = {"images_per_second", "data_wait"}  # of a line of statistics, what no two runs share


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in run.stats()]


def weights(run: RunDirectory) -> dict[str, Tensor]:
    return torch.load(run.model / "weights.pt")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- rates and averages -----------------------------------------------------------------------------------------------


def test_learning_rate_by_hand() -> None:
    paper = presets.PRESETS["paper"].training
    for step, rate in [(0, 1e-5), (100_000, 1e-5), (150_000, 5e-6), (199_999, 1e-10)]:
        assert learning_rate(step, paper) == pytest.approx(rate, rel=1e-9)
    t = Training(steps=10, lr=1.0, warmup=4, decay_from=6)
    assert [learning_rate(step, t) for step in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [learning_rate(step, Training(steps=4, lr=2.0, warmup=0, decay_from=99)) for step in range(4)] == [2.0] * 4


def test_ema_is_the_weighted_sum_of_all_that_was() -> None:
    """avg_n = sum_j (1 - d_j) prod_{i > j} d_i w_j + prod_i d_i w_0, with d_k = min(decay, (1 + k) / (10 + k))."""
    torch.manual_seed(0)
    network, decay, past = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last), 0.8, []  # type: ignore[call-overload]
    ema = Ema(network, decay)
    past.append(network.weight.detach().double().clone())
    for k in range(1, 60):
        with torch.no_grad():
            network.weight.normal_(generator=torch.Generator().manual_seed(k))
        past.append(network.weight.detach().double().clone())
        ema.update(network, k)
    d = [1.0] + [min(decay, (1 + k) / (10 + k)) for k in range(1, 60)]
    assert d[1] == pytest.approx(2 / 11) and d[-1] == decay and d[34] < decay
    expected = torch.zeros_like(past[0])
    for j, weight in enumerate(past):
        factor = 1.0 if j == 0 else 1 - d[j]
        for i in range(j + 1, 60):
            factor *= d[i]
        expected += factor * weight
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=0, atol=1e-6)


def test_ema_survives_its_file(tmp_path: Path) -> None:
    network = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema, other = Ema(network, 0.9), Ema(nn.Conv2d(2, 3, 2), 0.9)
    ema.save(tmp_path / "ema.safetensors")
    kept = other.average["weight"]
    other.load(tmp_path / "ema.safetensors")
    assert other.average["weight"] is kept and torch.equal(kept, network.weight)  # copied into place, wherever that lies
    target = nn.Conv2d(2, 3, 2)
    ema.copy_to(target)
    assert torch.equal(target.weight, network.weight) and torch.equal(target.bias, network.bias)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_it_learns_and_the_average_is_what_is_saved(tmp_path: Path) -> None:
    run, toy, reported = learn(tmp_path / "run", preset(steps=300, decay_from=200, log_every=50, checkpoint_every=300))
    assert reported == run.stats() and [line["step"] for line in reported] == [50, 100, 150, 200, 250, 300]
    assert reported[-1]["loss"] < reported[0]["loss"] / 10
    assert reported[-1]["lr"] == pytest.approx(0.02 / 100) and reported[0]["grad_norm"] > 0 and reported[0]["images_per_second"] > 0
    newest = checkpoints.newest(run.checkpoints)
    assert newest is not None and run.done
    assert same(weights(run), load_file(newest[1] / "ema.safetensors"))
    last = torch.load(newest[1] / "state.pt")["network"]
    assert not same(weights(run), last)
    plain, _, _ = learn(tmp_path / "plain", preset(steps=300, decay_from=200, ema=0.0, checkpoint_every=300))
    assert same(weights(plain), last)


def test_every_step_has_its_rate_and_every_micro_batch_its_noise(tmp_path: Path) -> None:
    chosen, toy = preset(), Toy(4)
    engine, run = PlainEngine(toy.network, chosen.training), RunDirectory(tmp_path)
    train(engine, toy, chosen, run, lambda line: None)
    assert engine.rates == [learning_rate(step, chosen.training) for step in range(20)]
    assert [line["lr"] for line in run.stats()] == [engine.rates[line["step"] - 1] for line in run.stats()]
    places = [Position(step, micro, rank, 2, 2, seed) for step in range(20) for micro in range(2) for rank in range(2) for seed in range(2)]
    seeds = {at: at.generator().initial_seed() for at in places}
    assert len(set(seeds.values())) == len(places)
    alone = [Position(step, micro, 0, 1, 2, 0) for step in range(20) for micro in range(2)]
    assert toy.seeds == [at.generator().initial_seed() for at in alone]
    # the parts of a step are the same ones on one rank as on two
    spread = [seeds[Position(step, 0, rank, 2, 2, 0)] for step in range(20) for rank in range(2)]
    assert toy.seeds == spread


def test_accumulation_splits_the_batch(tmp_path: Path) -> None:
    """Without noise of their own, two halves are one batch."""
    runs = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        chosen, toy = preset(batch=batch, accumulation=accumulation, ema=0.0), Toy(batch)
        toy.losses = lambda network, b, g: {"loss": (network(b["x"])[:, 0] - b["x"].sum(1)).square()}  # type: ignore[method-assign]
        runs.append(learn(tmp_path / str(accumulation), chosen, toy)[0])
    for run in runs[1:]:
        for name, value in weights(runs[0]).items():
            torch.testing.assert_close(weights(run)[name], value, rtol=1e-4, atol=1e-6)
        for line, reference in zip(lines(run), lines(runs[0]), strict=True):
            assert line == pytest.approx(reference, rel=1e-4)


def test_a_line_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    every, _, _ = learn(tmp_path / "every", preset(log_every=1, accumulation=1))
    third, _, _ = learn(tmp_path / "third", preset(log_every=3, accumulation=1))
    ones = lines(every)
    assert [line["step"] for line in ones] == list(range(1, 21)) and [line["step"] for line in lines(third)] == [3, 6, 9, 12, 15, 18, 20]
    for line in lines(third):
        of = [one for one in ones if (line["step"] - 1) // 3 == (one["step"] - 1) // 3]
        for name in ("loss", "large", "grad_norm"):
            values = [one[name] for one in of if name in one]
            assert (name in line) == bool(values) and (not values or line[name] == pytest.approx(sum(values) / len(values)))


@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
def test_drawing_ahead_changes_nothing(tmp_path: Path, ahead: int) -> None:
    usual, _, _ = learn(tmp_path / "usual", preset())
    run, _, reported = learn(tmp_path / "run", preset(ahead=ahead))
    assert lines(run) == lines(usual) and same(weights(run), weights(usual))
    assert all(0 < line["data_wait"] < 1 for line in reported)


def test_a_step_that_overflowed_is_done_again(tmp_path: Path) -> None:
    """It counts once, in the schedule, the average and the statistics, with the batch it had."""
    usual, _, _ = learn(tmp_path / "usual", preset())
    chosen, toy, run = preset(), Toy(4), RunDirectory(tmp_path / "run")
    run.path.mkdir()
    engine = PlainEngine(toy.network, chosen.training)
    engine.narrow = {2, 4, 10, 12, 14}  # the first step twice, the third three times
    train(engine, toy, chosen, run, lambda line, picture=None: None)
    assert engine.micro == 2 * (20 + 5)
    assert lines(run) == lines(usual) and same(weights(run), weights(usual))


@pytest.mark.parametrize("step", [1, 4, 5, 11, 19])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, step: int) -> None:
    whole, _, _ = learn(tmp_path / "whole", preset())
    with pytest.raises(Stopped, match=f"stopped at step {step} of 20"):
        learn(tmp_path / "run", preset(), stop_at=step)
    run = RunDirectory(tmp_path / "run")
    found = checkpoints.newest(run.checkpoints)
    assert found is not None and found[0] == step and not run.done
    learn(tmp_path / "run", preset())
    assert lines(run) == lines(whole) and same(weights(run), weights(whole))


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("step", [0, 2, 4, 9, 15])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, step: int) -> None:
    """Killed in a step's second half, before the first checkpoint too, with its last line of statistics cut."""
    whole, _, _ = learn(tmp_path / "whole", preset(log_every=2))
    toy = Toy(4)

    def kill(at: tuple[int, int], loss: Tensor) -> Tensor:
        if at == (step, 1):
            raise Killed
        return loss

    toy.spoil = kill
    with pytest.raises(Killed):
        learn(tmp_path / "run", preset(log_every=2), toy)
    run = RunDirectory(tmp_path / "run")
    with open(run.path / "stats.jsonl", "a") as f:
        f.write(json.dumps({"step": step + 1, "loss": 1.0})[:-4])
    assert all(line["step"] <= step for line in run.stats())
    learn(tmp_path / "run", preset(log_every=2))
    assert lines(run) == lines(whole) and same(weights(run), weights(whole))
    assert all(json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines())


def test_a_crash_inside_a_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    whole, _, _ = learn(tmp_path / "whole", preset())
    toy, run = Toy(4), RunDirectory(tmp_path / "run")
    run.path.mkdir()
    engine = PlainEngine(toy.network, preset().training)

    def crash(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        if "00000008" in folder.name:
            raise Killed
        PlainEngine.save(engine, folder)

    engine.save = crash  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(engine, toy, preset(), run, lambda line: None)
    found = checkpoints.newest(run.checkpoints)
    assert found is not None and found[0] == 4
    learn(run.path, preset())
    assert lines(run) == lines(whole) and same(weights(run), weights(whole))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000016", "step-00000020"]  # keep_checkpoints, and no half


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole, _, _ = learn(tmp_path / "whole", preset())
    with pytest.raises(Stopped):
        learn(tmp_path / "run", preset(), stop_at=10)
    run = RunDirectory(tmp_path / "run")
    state = run.checkpoints / "step-00000010" / "state.pt"
    state.write_bytes(bytes(state.stat().st_size))
    learn(tmp_path / "run", preset())
    assert lines(run) == lines(whole) and same(weights(run), weights(whole))


@pytest.mark.parametrize("name", ["state.pt", "ema.safetensors", "meter.json"])
def test_a_checkpoint_that_does_not_load_is_named(tmp_path: Path, name: str) -> None:
    """One whose files are as they were written, or that is too old to tell."""
    with pytest.raises(Stopped):
        learn(tmp_path / "run", preset(), stop_at=4)
    run = RunDirectory(tmp_path / "run")
    folder = run.checkpoints / "step-00000004"
    (folder / name).write_bytes(bytes(9))
    sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "contents.json"}
    (folder / "contents.json").write_text(json.dumps(sizes))
    with pytest.raises(NotReady, match=f"the checkpoint {folder} cannot be loaded; remove it") as caught:
        learn(tmp_path / "run", preset())
    assert "\n" not in str(caught.value)


def test_killed_after_the_last_checkpoint_but_before_the_model(tmp_path: Path) -> None:
    whole, _, _ = learn(tmp_path / "whole", preset(checkpoint_every=6))
    toy = Toy(4)

    def killed(folder: Path) -> None:
        raise Killed

    toy.save = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        learn(tmp_path / "run", preset(checkpoint_every=6), toy)
    assert not RunDirectory(tmp_path / "run").done
    run, _, reported = learn(tmp_path / "run", preset(checkpoint_every=6))
    assert reported == [] and lines(run) == lines(whole) and same(weights(run), weights(whole))


@pytest.mark.parametrize("ill", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_before_it_is_saved(tmp_path: Path, ill: str) -> None:
    toy = Toy(4)

    def spoil(at: tuple[int, int], loss: Tensor) -> Tensor:
        if at != (3, 1):
            return loss
        # the square root of zero has a value but no slope
        return loss * float("nan") if ill == "loss" else loss + (0 * toy.network[0].weight.sum()).sqrt()

    toy.spoil = spoil
    with pytest.raises(FloatingPointError, match=f"the {ill} is not finite at step 3; the batch is kept in .*; look at it"):
        learn(tmp_path / "run", preset(), toy)
    run = RunDirectory(tmp_path / "run")
    assert checkpoints.newest(run.checkpoints) is None and not run.done
    kept = load_file(run.path / "not-finite-step-3-rank-0.safetensors")
    assert torch.equal(kept["x"], toy.x[Position(3, 1, 0, 1, 2, 0).items(4, 29)])
