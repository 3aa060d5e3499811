"""Training as it is really started: guard, torchrun, DeepSpeed, two ranks. Run as a script, this file is what the ranks of
`test_zero_stages_accumulation_and_precision` execute: several trainings in one start, because a start takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffsfsr.config import Preset
from diffsfsr.training import checkpoints, launch
from diffsfsr.training.run import Inputs, RunDirectory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard's calls and /proc are Linux's")

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8
# A line of statistics spans checkpoints, so that a resumed run must know what the killed one had seen of it.
SETTINGS = {
    "training.steps": STEPS,
    "training.checkpoint_every": 2,
    "training.log_every": 3,
    "training.processes": 2,
    "training.batch": 2,
    "training.decay_from": 5,
    "training.warmup": 2,
    "training.lr": 1e-3,
    "objective.aux_fraction": 0.5,
}
SPEED = "images_per_second"


def preset(**changes: Any) -> Preset:
    return synthetic.small(SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    face = synthetic.faces(astronaut, preset().crop)[0]
    return synthetic.diffusion_inputs(folder, preset(), synthetic.training_rows(preset(), 11, face.crop_landmarks))


class Process:
    """A training under its guard, recognised by a token in the environment of everything it starts."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.token, self.log = f"launch-test-{uuid.uuid4().hex}", log
        environment = {**os.environ, "LAUNCH_TEST": self.token, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(log, "wb") as f:
            self.guard = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=f, stderr=f, start_new_session=True)

    def alive(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.token.encode() in (entry / "environ").read_bytes() and "\nState:\tZ" not in (entry / "status").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL to the whole tree at once, as the machine's own end would be."""
        while found := self.alive():
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.guard.wait()

    def until(self, condition: Callable[[], object], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.guard.poll() is None and time.monotonic() < end, self.text
            time.sleep(0.01)

    def ended(self, seconds: float = 120.0) -> int:
        """The exit code, with no process left behind."""
        code = self.guard.wait(timeout=seconds)
        assert self.alive() == []
        return code

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[RunDirectory], Process]]:
    started: list[Process] = []

    def start_one(run: RunDirectory) -> Process:
        started.append(Process(launch.command(run), tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()


def weights(run: RunDirectory) -> dict[str, Tensor]:
    files = sorted(run.model.rglob("*.safetensors"))
    assert len(files) >= 3  # unet, tokens, autoencoder, DLN
    return {f"{file.relative_to(run.model)}:{name}": value for file in files for name, value in load_file(file).items()}


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != SPEED} for line in run.stats()]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@linux
def test_killed_and_stopped_runs_end_as_the_uninterrupted_one(
    tmp_path: Path, inputs: Inputs, start: Callable[[RunDirectory], Process]
) -> None:
    whole = RunDirectory.open(tmp_path / "whole", preset(), inputs)
    process = start(whole)
    assert process.ended() == 0, process.text
    assert [line["step"] for line in lines(whole)] == [3, 6, 8]
    assert {"loss", "loss_dm", "loss_id", "loss_exp", "lr", "grad_norm"} <= set().union(*lines(whole))
    kept = [folder.name for folder in checkpoints.complete(whole.checkpoints)]
    assert kept == ["step-00000004", "step-00000006", "step-00000008"]  # keep_checkpoints

    run = RunDirectory.open(tmp_path / "broken", preset(), inputs)
    assert run.path.name == whole.path.name
    process = start(run)
    process.until(lambda: checkpoints.newest(run.checkpoints))
    process.kill()
    killed = checkpoints.newest(run.checkpoints)
    assert killed is not None and killed[0] < STEPS and not run.done

    process = start(run)
    process.until(lambda: f"resumed {run.path.name} at step {killed[0]}" in process.text)
    process.guard.terminate()
    assert process.ended() == launch.STOPPED, process.text
    stopped = checkpoints.newest(run.checkpoints)
    assert stopped is not None and killed[0] < stopped[0] < STEPS and not run.done
    assert f"stopped at step {stopped[0]} of {STEPS}" in process.text and "Traceback (most recent call last)\n  File" not in process.text

    process = start(run)
    assert process.ended() == 0, process.text
    assert f"at step {stopped[0]}" in process.text
    assert lines(run) == lines(whole)
    assert same(weights(run), weights(whole))


@linux
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_batch(
    tmp_path: Path, inputs: Inputs, astronaut: Path, start: Callable[[RunDirectory], Process]
) -> None:
    # as many as three steps see, so that the poisoned one comes once, on one rank
    rows = synthetic.training_rows(preset(), 12, synthetic.faces(astronaut, preset().crop)[0].crop_landmarks)
    rows[0]["latent"] = rows[0]["latent"] * float("nan")
    shard = synthetic.training_shard(tmp_path / "poisoned.parquet", preset(), rows)
    poisoned = Inputs((str(shard),), "poisoned", inputs.autoencoder, inputs.dln)
    run = RunDirectory.open(tmp_path / "runs", preset(), poisoned)
    process = start(run)
    assert process.ended() == 1, process.text
    (kept,) = run.path.glob("not-finite-*.safetensors")
    assert f"the loss is not finite at step {kept.name.split('-')[3]}; the batch is kept in {run.path}/not-finite-" in process.text
    assert not run.done
    assert load_file(kept)["latent"].isnan().flatten(1).all(1).sum() == 1


# --- several trainings in one start -----------------------------------------------------------------------------------


class Line:
    """A network of two layers that learns a fixed map: nothing random, so that splitting the batch changes nothing."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.batch, self.network = batch, nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
        self.seen: list[torch.dtype] = []
        self.network[0].register_forward_hook(lambda module, given, made: self.seen.append(made.dtype))
        self.x = torch.randn(37, 5)

    def draw(self, at: Any) -> dict[str, Tensor]:
        return {"x": self.x[at.items(self.batch, len(self.x))]}

    def losses(self, network: Any, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (network(batch["x"]).float()[:, 0] - batch["x"].square().sum(1)).square()}

    def save(self, folder: Path) -> None:
        torch.save(self.network.state_dict(), folder / "weights.pt")


def ranks_train(folder: Path) -> None:
    """What each rank of the next test does. The results are files."""
    from diffsfsr.training.loop import Stopped, train
    from diffsfsr.training.objectives import OBJECTIVES

    torch.set_num_threads(1)
    made = Inputs(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads((folder / "inputs.json").read_text()).items()})

    def learn(name: str, chosen: Preset, objective: Any, stop_at: int = 0) -> None:
        run = RunDirectory(folder / name)
        if os.environ["RANK"] == "0":
            run.path.mkdir(exist_ok=True)
        count = iter(range(1, 1000))
        engine = launch.DeepSpeedEngine(objective.network, chosen)
        engine.barrier()
        try:
            train(engine, objective, chosen, run, lambda line: None, stop=lambda: next(count) == stop_at)
        except Stopped:
            pass

    def diffusion(stage: int, stop_at: int = 0, name: str = "") -> None:
        chosen = preset(training__zero_stage=stage, training__steps=3, training__checkpoint_every=9, training__log_every=1)
        torch.manual_seed(0)
        learn(name or f"stage-{stage}", chosen, OBJECTIVES["diffusion"](chosen, made), stop_at)

    for stage in (0, 1, 2, 3):
        diffusion(stage)
    diffusion(3, stop_at=2, name="stage-3-resumed")
    diffusion(3, name="stage-3-resumed")
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        chosen = preset(training__batch=batch, training__accumulation=accumulation, training__ema=0.0, objective__aux_fraction=1)
        learn(f"accumulation-{accumulation}", chosen, Line(batch))
    ask = torch.is_autocast_enabled
    for answer in ("cpu", "gpu"):
        # What DeepSpeed asks without a device is the GPU's state, which is on inside the loop's autocast.
        torch.is_autocast_enabled = (lambda *a: ask(*a) if a else ask("cpu")) if answer == "gpu" else ask  # type: ignore[assignment]
        for precision in ("fp32", "bf16"):
            line = Line(2)
            learn(f"{answer}-{precision}", preset(training__precision=precision, training__steps=1), line)
            (folder / f"{answer}-{precision}" / "dtypes").write_text(" ".join(sorted(map(str, set(line.seen)))))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> Path:
    folder = tmp_path_factory.mktemp("many")
    (folder / "inputs.json").write_text(json.dumps(inputs.__dict__))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder


def test_zero_stages_agree(many: Path) -> None:
    """The same sums in another order: losses to float32's precision, with L_id, L_exp and EMA in play. Weights to a hundredth of
    what the steps moved them, over all: Adam steps by a whole rate where a gradient is nothing but rounding (a bias before a norm).
    """
    plain, *zero = [RunDirectory(many / f"stage-{stage}") for stage in (0, 1, 2, 3)]
    for reference, *others in zip(lines(plain), *map(lines, zero), strict=True):
        for other in others:
            assert other.pop("grad_norm") == pytest.approx(lines(zero[0])[other["step"] - 1]["grad_norm"], rel=1e-5)
            assert other == pytest.approx(reference, rel=1e-5)
    assert [line["step"] for line in lines(plain)] == [1, 2, 3]
    assert same(weights(zero[0]), weights(zero[1]))
    first = weights(plain)
    for run in zero:
        other = weights(run)
        assert first.keys() == other.keys()
        apart = torch.cat([(other[name] - value).flatten() for name, value in first.items() if name.startswith(("unet", "tokens"))])
        assert len(apart) > 400_000 and float(apart.square().mean().sqrt()) < 1e-5


def test_zero_3_resumes(many: Path) -> None:
    whole, resumed = RunDirectory(many / "stage-3"), RunDirectory(many / "stage-3-resumed")
    assert lines(whole) == lines(resumed) and same(weights(whole), weights(resumed))


def test_accumulation_is_a_larger_batch(many: Path) -> None:
    runs = [RunDirectory(many / f"accumulation-{count}") for count in (1, 2, 4)]
    one, *others = [torch.load(run.model / "weights.pt") for run in runs]
    start = Line(1).network.state_dict()
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
            assert float((value - start[name]).abs().max()) > 1e-3
    for line in zip(*(lines(run) for run in runs), strict=True):
        assert [item["grad_norm"] for item in line] == pytest.approx([line[0]["grad_norm"]] * 3, rel=1e-4)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_precision_is_the_presets(many: Path, device: str) -> None:
    assert (many / f"{device}-fp32" / "dtypes").read_text() == "torch.float32"
    assert (many / f"{device}-bf16" / "dtypes").read_text() == "torch.bfloat16"


if __name__ == "__main__":
    ranks_train(Path(sys.argv[1]))
