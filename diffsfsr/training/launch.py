"""The training process, which torchrun starts on every rank, and the command that starts torchrun under a guard.

python -m diffsfsr.training.launch RUN_DIR     that command itself, for a person or for the other machines of a run

The one file that imports deepspeed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsfsr.config import Preset, Training
from diffsfsr.cores import cores, threads
from diffsfsr.errors import InputError, NotReady
from diffsfsr.precision import HALF, half_of
from diffsfsr.training.guard import die_with_parent
from diffsfsr.training.loop import Objective, Report, Stopped, Validate, train
from diffsfsr.training.run import RunDirectory, nodes

STOPPED = 143  # the exit code of a run that was asked to stop: 128 + SIGTERM


def command(run: RunDirectory, module: str = "diffsfsr.training.launch") -> list[str]:
    """The command line that trains a run directory to its end, or on from where it stopped; on several machines, this one's part."""
    preset, _ = run.load()
    torchrun = [
        "-m",
        "diffsfsr.training.elastic",
        "--nproc-per-node",
        str(preset.training.processes),
        *_rendezvous(),
        "--max-restarts",
        "0",
    ]
    return [sys.executable, "-m", "diffsfsr.training.guard", "--", sys.executable, *torchrun, "-m", module, str(run.path)]


def _rendezvous() -> list[str]:
    """How the machines of a run find each other: torchrun's options, from the variables that deploy/README.md explains."""
    if nodes() == 1:
        return ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    here, endpoint = os.environ.get("DIFFSFSR_NODE_RANK", ""), os.environ.get("DIFFSFSR_RENDEZVOUS", "")
    if not here.isdigit() or int(here) >= nodes():
        raise InputError(f"DIFFSFSR_NODE_RANK={here} is not this machine's number, 0 to {nodes() - 1} (DIFFSFSR_NODES={nodes()})")
    if not re.fullmatch(r".+:\d+", endpoint):
        raise InputError(f"DIFFSFSR_RENDEZVOUS={endpoint} is not HOST:PORT of machine 0, which DIFFSFSR_NODES={nodes()} machines need")
    static = ["--rdzv-backend", "static", "--rdzv-endpoint", endpoint]  # the one backend whose rank 0 is where it is told to be
    return ["--nnodes", str(nodes()), "--node-rank", here, *static]


def deepspeed_config(t: Training) -> dict[str, Any]:
    """DeepSpeed's settings for a preset. Mixed precision is torch's autocast over float32 weights.

    It has to be named here too: on a GPU the engine turns off an autocast that it was not told of. Without the list of
    modules it would also send their gradients in half precision. Its own CPU optimiser is not forced on offloaded states: it
    would have to be compiled.
    """
    cpu = {"device": "cpu", "pin_memory": True}
    offload = {"none": {}, "optimizer": {"offload_optimizer": cpu}, "all": {"offload_optimizer": cpu, "offload_param": cpu}}
    return {
        "train_micro_batch_size_per_gpu": t.batch,
        "gradient_accumulation_steps": t.accumulation,
        "gradient_clipping": t.grad_clip,
        "zero_optimization": {"stage": t.zero_stage, **offload[t.offload]},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": t.precision in HALF,
            "dtype": str(HALF.get(t.precision, torch.bfloat16)).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


# DeepSpeed's dynamic loss scaling for fp16: halved after every overflow, doubled after so many steps without one.
_LOSS_SCALE = {"init_scale": 2.0**16, "scale_window": 1000, "min_scale": 1.0, "delayed_shift": 1, "consecutive_hysteresis": False}

_BETAS = {"finish": (0.5, 0.99)}  # two networks that answer each other: a long memory has them circle (Radford et al. 2016)


class DeepSpeedEngine:
    """DeepSpeed's engine behind the few verbs the loop uses."""

    def __init__(self, network: nn.Module, preset: Preset) -> None:
        """Must be called on every rank. torch.optim.AdamW is passed in so that no kernel has to be compiled."""
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would warn of what it found itself
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # it calls what torch has renamed

        import deepspeed
        import deepspeed.comm as dist

        # Without a compiler the shared-memory all-reduce cannot be built; gloo gives the same sums.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
        t = preset.training
        if half_of(t.precision, "cuda" if on_gpu else "cpu") is None:
            t = replace(t, precision="fp32")  # what the loop computes in
        _fit(network, t)
        for p in network.parameters():
            p.data = p.data.contiguous()  # DeepSpeed sends them as bytes, and refuses transposed ones
        trainable = [p for p in network.parameters() if p.requires_grad]
        fused = None if on_gpu else True  # on a CPU a third of the time; a GPU's choice is torch's
        betas = _BETAS.get(preset.trains, (0.9, 0.999))
        optimizer = torch.optim.AdamW(trainable, lr=t.lr, betas=betas, weight_decay=t.weight_decay, fused=fused)
        self.engine, *_ = deepspeed.initialize(model=network, model_parameters=trainable, optimizer=optimizer, config=deepspeed_config(t))
        self._dist, self._gather, self._stage = dist, deepspeed.zero.GatheredParameters, t.zero_stage
        self._scaled = t.precision == "fp16" and t.zero_stage > 0
        if self._scaled:
            self._scale_losses()
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), torch.device(self.engine.device)

    def _scale_losses(self) -> None:
        """DeepSpeed's own loss scaling, in place of the scaler that it pairs with autocast: that one unscales after the gradient
        was clipped, each rank by itself, and does not learn of the overflows that DeepSpeed finds."""
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        optimizer = self.engine.optimizer
        optimizer.torch_autocast_gradscaler = None
        optimizer.loss_scaler = DynamicLossScaler(**_LOSS_SCALE, raise_error_at_min_scale=False, dtype=torch.float16)
        optimizer.dynamic_loss_scale = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float) -> float | None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        scale = self.engine.optimizer.loss_scale if self._scaled else 1.0
        # Without ZeRO the engine clips the gradient, already summed over all ranks, and tells nobody its norm.
        alone = self._stage == 0 and self.engine.is_gradient_accumulation_boundary()
        norm = nn.utils.get_total_norm([p.grad for p in self.engine.module.parameters() if p.grad is not None]) if alone else None
        self.engine.step()
        self._overflowed = scale > _LOSS_SCALE["min_scale"] and self.engine.optimizer.overflow
        norm = self.engine.get_global_grad_norm() if self._stage else norm
        return None if norm is None else float(norm)

    def overflowed(self) -> bool:
        return self._overflowed

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="engine", save_latest=False)

    def load(self, folder: Path) -> None:
        """What as many ranks saved, or another number of them: DeepSpeed's universal form of a checkpoint then lies beside it for a
        moment. Without ZeRO every rank has all of it."""
        saved = len(list((folder / "engine").glob("*_optim_states.pt")))
        if saved in (0, self.world):
            self._load(folder, "engine")
            return
        universal = folder.with_name(f".{folder.name}.universal.part")
        if self.rank == 0:
            _to_universal(folder / "engine", universal)
        self.barrier()
        self.engine._config.load_universal_checkpoint = True
        self._load(universal.parent, universal.name)
        self.engine._config.load_universal_checkpoint = False
        self.barrier()
        if self.rank == 0:
            shutil.rmtree(universal)

    def _load(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no DeepSpeed state")

    def barrier(self) -> None:
        self._dist.barrier()

    def any(self, flag: bool) -> bool:
        """True on every rank where it is true on one."""
        if self.world == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        self._dist.all_reduce(value, op=self._dist.ReduceOp.MAX)
        return bool(value.item())

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which the network's parameters are whole on every rank (ZeRO-3 keeps them in parts)."""
        return self._gather(list(self.engine.module.parameters())) if self._stage == 3 else contextlib.nullcontext()


def _fit(network: nn.Module, t: Training) -> None:
    """Make the network's forward pass smaller or faster, as the preset asks. Weights stay in DeepSpeed's layout: inputs in
    channels_last suffice for convolutions to run in it."""
    unet = getattr(network, "unet", None)
    if unet is not None and t.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if unet is not None and t.compile:
        unet.compile()


def _need_compiler(t: Training) -> None:
    """torch.compile writes C++, on a GPU too. Raises InputError where nothing here can compile it."""
    if t.compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise InputError("training.compile=true needs a C++ compiler (g++ or clang++, or CXX) and finds none; install one or leave it off")


def _to_universal(saved: Path, universal: Path) -> None:
    """A checkpoint of ZeRO's parts as one file a parameter, for any number of ranks. Its chatter is left out."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(universal, ignore_errors=True)
    asked = {"input_folder": str(saved), "output_folder": str(universal), "num_extract_workers": 1, "num_merge_workers": 1}
    asked |= {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(argparse.Namespace(**asked))


def build_objective(run: RunDirectory) -> tuple[Preset, Objective]:
    from diffsfsr.training import objectives

    preset, inputs = run.load()
    _need_compiler(preset.training)
    torch.manual_seed(preset.training.seed)  # the same first weights on every rank
    return preset, objectives.OBJECTIVES[preset.trains](preset, inputs)


def build_validation(preset: Preset, objective: Any) -> Validate | None:
    """What rank 0 looks at every so often, where the preset asks for it; `config` refuses that for what has no pictures."""
    if not preset.training.validate_every or os.environ.get("RANK", "0") != "0":
        return None
    from diffsfsr.training.validation import Validation

    return Validation(objective)


def main(argv: list[str], report: Report = lambda line, picture=None: None) -> int:
    """Train, as one of torchrun's ranks, the run directory named in argv; `report` is called on rank 0 with each line of statistics."""
    die_with_parent()
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    run = RunDirectory(Path(argv[0]))
    if not torch.cuda.is_available():
        alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
        torch.set_num_threads(threads() if alone else max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        preset, objective = build_objective(run)
        validate = build_validation(preset, objective)
        engine = DeepSpeedEngine(objective.network, preset)
        train(engine, objective, preset, run, report, stop=lambda: bool(asked), validate=validate)
        run.forget_failure()
    except (InputError, NotReady, FloatingPointError, Stopped) as why:
        print(f"{run.path.name}: {why}", file=sys.stderr, flush=True)
        if not isinstance(why, Stopped):
            run.fail(why)
        return {InputError: 2, Stopped: STOPPED}.get(type(why), 1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def start(argv: list[str]) -> int:
    """Become the command that trains the run directory named in argv. Returns only where there is none: 2."""
    try:
        if len(argv) != 1:
            raise InputError("one run directory is needed: python -m diffsfsr.training.launch RUN_DIR")
        line = command(RunDirectory(Path(argv[0])))
    except InputError as why:
        print(why, file=sys.stderr)
        return 2
    os.execv(line[0], line)


if __name__ == "__main__":
    sys.exit((main if "RANK" in os.environ else start)(sys.argv[1:]))
