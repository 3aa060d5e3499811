"""Training as it is really started: guard, torchrun, DeepSpeed, two ranks. Run as a script, this file is what the ranks of the
fixture `many` execute: several trainings in one start, because a start takes seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
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
from diffsfsr.errors import InputError, NotReady
from diffsfsr.precision import half_of
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
CLOCK = {"images_per_second", "data_wait"}  # of a line of statistics, what no two runs share


def preset(**changes: Any) -> Preset:
    return synthetic.small(SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    face = synthetic.faces(astronaut, preset().crop)[0]
    return synthetic.diffusion_inputs(folder, preset(), synthetic.training_rows(preset(), 11, face.crop_landmarks))


class Process:
    """A training under its guard, recognised by a token in the environment of everything it starts."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.token, self.log = f"launch-test-{uuid.uuid4().hex}", log
        environment = {**os.environ, "LAUNCH_TEST": self.token, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
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

    def until(self, condition: Callable[[], object], seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.guard.poll() is None and time.monotonic() < end, self.text
            time.sleep(0.01)

    def ended(self, seconds: float = 600.0) -> int:
        """The exit code, with no process left behind."""
        code = self.guard.wait(timeout=seconds)
        assert self.alive() == []
        return code

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start_one(run: RunDirectory, **environment: str) -> Process:
        """By the command that people have too."""
        command = [sys.executable, "-m", "diffsfsr.training.launch", str(run.path)]
        started.append(Process(command, tmp_path / f"log-{len(started)}", **environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()


def weights(run: RunDirectory) -> dict[str, Tensor]:
    files = sorted(run.model.rglob("*.safetensors"))
    assert len(files) >= 3  # unet, tokens, autoencoder, DLN
    return {f"{file.relative_to(run.model)}:{name}": value for file in files for name, value in load_file(file).items()}


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in run.stats()]


def close(run: RunDirectory, reference: RunDirectory) -> None:
    """The same sums in another order: statistics to float32's precision, weights to half a hundredth of what as many steps can move
    them, over all: Adam steps by a whole rate where a gradient is nothing but rounding (a bias before a norm)."""
    for line, expected in zip(lines(run), lines(reference), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    first, other = weights(reference), weights(run)
    assert first.keys() == other.keys()
    apart = torch.cat([(other[name] - value).flatten() for name, value in first.items() if name.startswith(("unet", "tokens"))])
    reach = lines(reference)[-1]["step"] * SETTINGS["training.lr"]
    assert len(apart) > 400_000 and float(apart.square().mean().sqrt()) < 0.005 * reach


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> RunDirectory:
    """Two processes on one machine, from start to end."""
    folder = tmp_path_factory.mktemp("whole")
    run = RunDirectory.open(folder, preset(), inputs)
    process = Process(launch.command(run), folder / "log")
    assert process.ended() == 0, process.text
    return run


@linux
def test_killed_and_stopped_runs_end_as_the_uninterrupted_one(tmp_path: Path, inputs: Inputs, whole: RunDirectory, start: Start) -> None:
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

    sums = stopped[1] / "contents.json"
    contents = sums.read_text()
    (state, *_) = sorted((stopped[1] / "engine").glob("*optim_states.pt"))
    written = state.read_bytes()
    state.write_bytes(bytes(len(written)))
    sums.write_text(json.dumps({name: size for name, (size, _) in json.loads(contents).items()}))  # as older ones were: not passed over
    process = start(run)
    assert process.ended() == 1, process.text
    with pytest.raises(NotReady, match=f"the checkpoint {stopped[1]} cannot be loaded; remove it"):
        run.raise_failure()
    state.write_bytes(written)
    sums.write_text(contents)

    process = start(run)
    assert process.ended() == 0, process.text
    assert f"at step {stopped[0]}" in process.text
    assert lines(run) == lines(whole)
    assert same(weights(run), weights(whole))


@linux
@pytest.mark.slow
def test_a_stopped_run_goes_on_with_fewer_processes(tmp_path: Path, inputs: Inputs, whole: RunDirectory, start: Start) -> None:
    run = RunDirectory.open(tmp_path, preset(), inputs)
    process = start(run)
    process.until(lambda: checkpoints.newest(run.checkpoints))
    process.guard.terminate()
    assert process.ended() == launch.STOPPED, process.text
    stopped = checkpoints.newest(run.checkpoints)
    assert stopped is not None and stopped[0] < STEPS

    assert RunDirectory.open(tmp_path, preset(training__processes=1), inputs) == run
    process = start(run)
    assert process.ended() == 0, process.text
    assert f"resumed {run.path.name} at step {stopped[0]}: 1 process(es), 2 x 2 images each" in process.text
    close(run, whole)


@linux
@pytest.mark.slow
def test_two_machines_are_as_good_as_one(tmp_path: Path, inputs: Inputs, whole: RunDirectory, start: Start) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        machines = {"DIFFSFSR_NODES": "2", "DIFFSFSR_RENDEZVOUS": f"localhost:{s.getsockname()[1]}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSFSR_NODES", "2")
        run = RunDirectory.open(tmp_path / "runs", preset(training__processes=1), inputs)
    second = start(run, DIFFSFSR_NODE_RANK="1", **machines)
    first = start(run, DIFFSFSR_NODE_RANK="0", **machines)
    assert first.ended() == 0 and second.ended() == 0, first.text + second.text
    assert f"step {STEPS}/{STEPS}" in first.text and f"step {STEPS}/{STEPS}" not in second.text
    assert lines(run) == lines(whole) and same(weights(run), weights(whole))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DIFFSFSR_NODES": "2"}, "DIFFSFSR_NODE_RANK= is not this machine's number, 0 to 1"),
        ({"DIFFSFSR_NODES": "2", "DIFFSFSR_NODE_RANK": "2"}, "DIFFSFSR_NODE_RANK=2 is not this machine's number, 0 to 1"),
        ({"DIFFSFSR_NODES": "2", "DIFFSFSR_NODE_RANK": "1", "DIFFSFSR_RENDEZVOUS": "first"}, "DIFFSFSR_RENDEZVOUS=first is not HOST:PORT"),
    ],
)
def test_machines_that_cannot_meet_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    run = RunDirectory.open(tmp_path, preset(objective__aux_fraction=1), Inputs((), ""))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        launch.command(run)


@pytest.mark.parametrize("argv", [["nowhere"], []])
def test_a_wrong_run_directory_is_one_line(tmp_path: Path, argv: list[str]) -> None:
    command, environment = [sys.executable, "-m", "diffsfsr.training.launch", *argv], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert ("nowhere/config.json is not a run's configuration" if argv else "one run directory is needed") in line


def test_compiling_without_a_compiler_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.open(tmp_path, preset(training__compile=True), Inputs(("no shard",), ""))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="training.compile=true needs a C"):
        launch.build_objective(run)


@linux
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_batch(tmp_path: Path, inputs: Inputs, astronaut: Path, start: Start) -> None:
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


LINE = {"training__batch": 4, "objective__aux_fraction": 1, "training__log_every": 1}


class Ranks:
    """What each rank of the tests below does. The results are files, a folder a training."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "inputs.json").read_text())
        self.folder, self.inputs = folder, Inputs(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
        self.world = int(os.environ["WORLD_SIZE"])

    def learn(self, name: str, chosen: Preset, objective: Any, stop_at: int = 0) -> launch.DeepSpeedEngine:
        from diffsfsr.training.loop import Stopped, train

        run = RunDirectory(self.folder / name)
        if os.environ["RANK"] == "0":
            run.path.mkdir(exist_ok=True)
        count = iter(range(1, 1000))
        engine = launch.DeepSpeedEngine(objective.network, chosen)
        engine.barrier()
        try:
            train(engine, objective, chosen, run, lambda line, picture=None: None, stop=lambda: next(count) == stop_at)
        except Stopped:
            pass
        except FloatingPointError as why:
            (run.path / f"rank-{engine.rank}.txt").write_text(str(why))
        return engine

    def diffusion(self, name: str, steps: int, stop_at: int = 0, **changes: Any) -> None:
        from diffsfsr.training.objectives import OBJECTIVES

        settings = {"training__steps": steps, "training__decay_from": 15, "training__checkpoint_every": 99, "training__log_every": 1}
        chosen = preset(**settings, training__accumulation=2 // self.world, **changes)
        torch.manual_seed(0)
        self.learn(name, chosen, OBJECTIVES["diffusion"](chosen, self.inputs), stop_at)

    def line(self, name: str, stop_at: int = 0, **changes: Any) -> None:
        chosen = preset(**LINE | {"training__accumulation": 2 // self.world} | changes)
        self.learn(name, chosen, Line(chosen.training.batch), stop_at)

    # --- three starts, each going on from what the one before left ---

    def alone(self) -> None:
        self.diffusion("alone", 3, training__zero_stage=1)
        for stage in (0, 1, 2, 3):
            self.line(f"grown-{stage}", stop_at=4, training__zero_stage=stage)
        for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")):
            self.line(f"offload-{stage}-{offload}", training__zero_stage=stage, training__offload=offload)

    def two(self) -> None:
        for stage in (0, 1, 2, 3):
            self.diffusion(f"stage-{stage}", 3, training__zero_stage=stage)
            self.line(f"line-{stage}", training__zero_stage=stage)
            self.line(f"grown-{stage}", training__zero_stage=stage)
            self.line(f"shrunk-{stage}", stop_at=4, training__zero_stage=stage)
        self.diffusion("stage-3-resumed", 3, stop_at=2, training__zero_stage=3)
        self.diffusion("stage-3-resumed", 3, training__zero_stage=3)
        for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
            self.line(f"accumulation-{accumulation}", training__batch=batch, training__accumulation=accumulation, training__ema=0.0)
        self.precisions()
        self.half()
        self.learn("ill-0", preset(**LINE, training__zero_stage=0), Ill(4, "gradient"))

    def again_alone(self) -> None:
        for stage in (0, 1, 2, 3):
            self.line(f"shrunk-{stage}", training__zero_stage=stage)

    # --- and two for the slow test ---

    def twenty_alone(self) -> None:
        self.diffusion("alone", 20, training__zero_stage=1)

    def twenty(self) -> None:
        for stage in (0, 1, 2, 3):
            self.diffusion(f"stage-{stage}", 20, training__zero_stage=stage)

    # --- parts of them ---

    def precisions(self) -> None:
        ask = torch.is_autocast_enabled
        for answer in ("cpu", "gpu"):
            # What DeepSpeed asks without a device is the GPU's state, which is on inside the loop's autocast.
            torch.is_autocast_enabled = (lambda *a: ask(*a) if a else ask("cpu")) if answer == "gpu" else ask  # type: ignore[assignment]
            for precision in ("fp32", "bf16", "fp16"):
                line = Line(2)
                self.learn(f"{answer}-{precision}", preset(training__precision=precision, training__steps=1), line)
                (self.folder / f"{answer}-{precision}" / "dtypes").write_text(" ".join(sorted(map(str, set(line.seen)))))

    def half(self) -> None:
        for stage in (2, 3):  # the first is divided as the second
            chosen = preset(**LINE, training__precision="fp16", training__zero_stage=stage)
            engine = self.learn(f"half-{stage}", chosen, Line(4))
            scale = f"{engine.engine.optimizer.loss_scale} {engine.engine.skipped_steps}"
            (self.folder / f"half-{stage}" / f"scale-{engine.rank}").write_text(scale)
            self.learn(f"half-{stage}-resumed", chosen, Line(4), stop_at=3)
            engine = self.learn(f"half-{stage}-resumed", chosen, Line(4))
            (self.folder / f"half-{stage}-resumed" / f"scale-{engine.rank}").write_text(str(engine.engine.skipped_steps))
            for ill in ("loss", "gradient"):
                self.learn(f"half-{stage}-{ill}", chosen, Ill(4, ill))


class Ill(Line):
    """A line that on rank 1, at the third step, is not finite: its loss, or only its slope."""

    def __init__(self, batch: int, ill: str) -> None:
        super().__init__(batch)
        self.ill = ill

    def draw(self, at: Any) -> dict[str, Tensor]:
        return super().draw(at) | {"ill": torch.tensor(float((at.step, at.rank) == (2, 1)))}

    def losses(self, network: Any, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        loss = super().losses(network, batch, generator)["loss"]
        if batch["ill"]:
            # the square root of zero has a value but no slope
            loss = loss * float("nan") if self.ill == "loss" else loss + (loss * 0).sqrt()
        return {"loss": loss}


def run_ranks(folder: Path, inputs: Inputs, starts: dict[str, int]) -> Path:
    """Call those methods of `Ranks`, each on so many ranks."""
    (folder / "inputs.json").write_text(json.dumps(inputs.__dict__))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for what, ranks in starts.items():
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", __file__, str(folder), what]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-8000:]
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> Path:
    return run_ranks(tmp_path_factory.mktemp("many"), inputs, {"alone": 1, "two": 2, "again_alone": 1})


def zero_stages_and_one_process_agree(folder: Path, steps: int) -> None:
    reference, *others = [RunDirectory(folder / name) for name in ("stage-1", "alone", "stage-0", "stage-2", "stage-3")]
    assert [line["step"] for line in lines(reference)] == list(range(1, steps + 1))
    assert {"loss", "loss_dm", "loss_id", "loss_exp", "grad_norm"} <= set().union(*lines(reference))
    for run in others:
        close(run, reference)
    assert same(weights(reference), weights(others[2]))  # stages 1 and 2 divide alike


def test_zero_stages_and_one_process_agree(many: Path) -> None:
    """With L_id, L_exp and EMA in play, to float32's precision."""
    zero_stages_and_one_process_agree(many, 3)


@pytest.mark.slow
def test_twenty_losses_agree(tmp_path: Path, inputs: Inputs) -> None:
    zero_stages_and_one_process_agree(run_ranks(tmp_path, inputs, {"twenty_alone": 1, "twenty": 2}), 20)


def test_zero_3_resumes(many: Path) -> None:
    whole, resumed = RunDirectory(many / "stage-3"), RunDirectory(many / "stage-3-resumed")
    assert lines(whole) == lines(resumed) and same(weights(whole), weights(resumed))


def line_weights(run: RunDirectory) -> dict[str, Tensor]:
    return torch.load(run.model / "weights.pt")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["grown", "shrunk"])
def test_a_run_goes_on_with_another_number_of_processes(many: Path, what: str, stage: int) -> None:
    """From one to two, and from two to one, the average of the weights and Adam's moments included."""
    whole, run = RunDirectory(many / f"line-{stage}"), RunDirectory(many / f"{what}-{stage}")
    assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))
    for line, expected in zip(lines(run), lines(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    for name, value in line_weights(whole).items():
        torch.testing.assert_close(line_weights(run)[name], value, rtol=1e-5, atol=1e-6)
    assert not [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("where", ["1-optimizer", "2-optimizer", "3-optimizer", "3-all"])
def test_offloading_changes_nothing(many: Path, where: str) -> None:
    whole, run = RunDirectory(many / f"line-{where[0]}"), RunDirectory(many / f"offload-{where}")
    for line, expected in zip(lines(run), lines(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_accumulation_is_a_larger_batch(many: Path) -> None:
    runs = [RunDirectory(many / f"accumulation-{count}") for count in (1, 2, 4)]
    one, *others = [line_weights(run) for run in runs]
    start = Line(1).network.state_dict()
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
            assert float((value - start[name]).abs().max()) > 1e-3
    for line in zip(*(lines(run) for run in runs), strict=True):
        for item in line:
            assert item == pytest.approx(line[0], rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_half_precision_scales_its_losses(many: Path, stage: int) -> None:
    """The first scale is too large for this network's gradients: it is halved until they fit, and no step is lost by it."""
    whole, run = RunDirectory(many / f"line-{stage}"), RunDirectory(many / f"half-{stage}")
    (scale, skipped), second = ((run.path / f"scale-{rank}").read_text().split() for rank in (0, 1))
    assert [scale, skipped] == second
    assert int(skipped) >= 2 and float(scale) == 2 ** (16 - int(skipped)) > 1
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    for line, expected in zip(lines(run), lines(whole), strict=True):
        assert line == pytest.approx(expected, rel=2e-2)  # float16 has eleven bits
    resumed = RunDirectory(many / f"half-{stage}-resumed")
    assert lines(resumed) == lines(run) and same(line_weights(resumed), line_weights(run))
    assert (resumed.path / "scale-0").read_text() == skipped  # the scale was not looked for again


@pytest.mark.parametrize(
    ("name", "ill"),
    [("half-2-loss", "loss"), ("half-3-loss", "loss"), *((f, "gradient") for f in ("half-2-gradient", "half-3-gradient", "ill-0"))],
)
def test_what_is_not_finite_at_any_scale_ends_the_run(many: Path, name: str, ill: str) -> None:
    run = RunDirectory(many / name)
    assert not run.done and [line["step"] for line in lines(run)] == [1, 2]
    for rank in (0, 1):
        assert (run.path / f"rank-{rank}.txt").read_text().startswith(f"the {ill} is not finite at step 2; the batch is kept in")
    ranks = [1] if ill == "loss" else [0, 1]  # of a gradient only the sum over all is known
    assert sorted(p.name for p in run.path.glob("not-finite*")) == [f"not-finite-step-2-rank-{rank}.safetensors" for rank in ranks]
    assert float(load_file(run.path / "not-finite-step-2-rank-1.safetensors")["ill"]) == 1


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_precision_is_the_presets(many: Path, device: str) -> None:
    assert (many / f"{device}-fp32" / "dtypes").read_text() == "torch.float32"
    assert (many / f"{device}-bf16" / "dtypes").read_text() == str(half_of("bf16", "cpu") or torch.float32)
    assert (many / f"{device}-fp16" / "dtypes").read_text() == "torch.float16"


if __name__ == "__main__":
    torch.set_num_threads(1)
    getattr(Ranks(Path(sys.argv[1])), sys.argv[2])()
    torch.distributed.destroy_process_group()
