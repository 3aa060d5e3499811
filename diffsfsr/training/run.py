"""A run directory is the whole interface to a training: who starts it, watches it and resumes it needs nothing else.

config.json     what is trained on what, and with which code and packages
stats.jsonl     one line every few steps
checkpoints/    step-00000500/ ..., each whole
validation/     step-00000500.png ...: what the network made of a few faces it does not train on
model/          the finished network; its presence says that the run is done
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from diffsfsr import config, tables
from diffsfsr.config import Preset, Training
from diffsfsr.errors import InputError, NotReady

# The parts of a preset that do not change what is trained.
_EXPERT = ("evaluation", "sampling", "mask", "conditioning", "unet", "schedule", "objective")
_NO_CONCERN = {
    "diffusion": ("evaluation",),
    "finish": ("evaluation",),
    "autoencoder": (*_EXPERT, "dln"),
    "decoder": (*_EXPERT, "dln"),
    "dln": (*_EXPERT, "autoencoder"),
}
_PACKAGES = ("torch", "deepspeed", "diffusers", "numpy", "pyarrow")


@dataclass(frozen=True)
class Inputs:
    """What a run reads besides its preset. Shards, triplets and teacher are Parquet files; the rest are folders of saved networks."""

    shards: tuple[str, ...]
    data_version: str
    autoencoder: str = ""
    dln: str = ""
    start_from: str = ""
    triplets: tuple[str, ...] = ()  # Parquet: which of three faces people found most alike (columns of training.triplets.ANNOTATIONS)
    teacher: tuple[str, ...] = ()  # Parquet, one a shard: face_id and its 52 blendshape coefficients
    decoder: str = ""  # the small one that objective.loss_decoder may ask for
    crops: tuple[str, ...] = ()  # Parquet: the aligned faces of the shards, for a training that looks at both

    def network(self, kind: str, preset: Preset) -> Path:
        """The folder of the autoencoder, dln or decoder. Raises NotReady where there is none."""
        folder = getattr(self, kind)
        if not folder or not Path(folder).is_dir():
            raise NotReady(f"the {kind} of preset {preset.name} is missing at {folder or '(nowhere)'}; run `diffsfsr run train` again")
        return Path(folder)


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @classmethod
    def open(cls, runs: Path, preset: Preset, inputs: Inputs) -> RunDirectory:
        """The directory of this very configuration, made where it is new: the same command finds the same run.

        `training.processes` is where a run goes on, not what it is: another number finds the same run, whose steps stay as large
        as they were when it began. Nor is a run another one for settings that do not concern its network. Raises InputError where
        that number cannot share such a step.
        """
        row = {name: value for name, value in config.to_dict(preset).items() if name not in _NO_CONCERN[preset.trains]}
        del row["training"]["processes"]
        mark = tables.fingerprint(row, inputs.data_version, inputs.autoencoder, inputs.dln, inputs.start_from, inputs.decoder)
        run, t = cls(runs / f"{preset.name}-{mark[:8]}"), preset.training
        world = t.processes * nodes()
        if not run.config_file.exists():
            facts: dict[str, Any] = {"preset": config.to_dict(preset), "inputs": inputs.__dict__, "git": _commit()}
            facts |= {"packages": {name: metadata.version(name) for name in _PACKAGES}}
            facts |= {"processes": t.processes, "images_per_step": t.batch * t.accumulation * world}
            tables.write_json(run.config_file, facts)
        facts = run._facts()
        shared = spread(t, facts["images_per_step"], world)
        try:
            replace(preset, training=shared)
        except InputError as error:
            why = f"training.processes={t.processes} leaves each a micro batch of {shared.batch} where the run has {t.batch}"
            raise InputError(f"{why}: {error}; go on with another number") from error
        if facts["processes"] != t.processes:
            tables.write_json(run.config_file, facts | {"processes": t.processes})
        return run

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def done(self) -> bool:
        return self.model.is_dir()

    def load(self) -> tuple[Preset, Inputs]:
        """The configuration of the run, its step spread over the processes that it goes on with. Raises InputError where there is
        none or it does not parse."""
        facts, inputs = self._facts(), self.inputs
        try:
            preset = config.from_dict(facts["preset"])
        except (KeyError, TypeError) as error:
            raise self._broken(error) from error
        t = replace(preset.training, processes=facts["processes"])
        return replace(preset, training=spread(t, facts["images_per_step"], t.processes * nodes())), inputs

    @property
    def inputs(self) -> Inputs:
        """What the run reads. Raises InputError as `load` does."""
        try:
            inputs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self._facts()["inputs"].items()}
            return Inputs(**inputs)
        except (KeyError, TypeError, AttributeError) as error:
            raise self._broken(error) from error

    def _facts(self) -> dict[str, Any]:
        try:
            facts = json.loads(self.config_file.read_text(encoding="utf-8"))
            t = facts["preset"]["training"]
            begun = {"processes": t["processes"], "images_per_step": t["batch"] * t["accumulation"] * t["processes"]}
            return begun | facts
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> InputError:
        return InputError(f"{self.config_file} is not a run's configuration: {error}")

    def fail(self, error: Exception) -> None:
        """Leave word of why the run cannot go on, for whoever started it."""
        tables.write_json(self.path / "failure.json", {"kind": type(error).__name__, "message": str(error)})

    def forget_failure(self) -> None:
        (self.path / "failure.json").unlink(missing_ok=True)

    def raise_failure(self) -> None:
        """Raise, and forget, what `fail` left; a file that is none of its is forgotten too."""
        try:
            left = json.loads((self.path / "failure.json").read_text(encoding="utf-8"))
            error = {"InputError": InputError, "NotReady": NotReady}.get(left["kind"], RuntimeError)(left["message"])
        except (OSError, ValueError, LookupError, TypeError):
            error = None
        self.forget_failure()
        if error:
            raise error

    def stats(self) -> list[dict[str, Any]]:
        """The lines of stats.jsonl, oldest first; one cut short by a kill, or otherwise damaged, is passed over."""
        path = self.path / "stats.jsonl"
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                found.append(value)
        return found

    def forget_stats_after(self, step: int) -> None:
        """Drop lines that a resumed run will write again."""
        kept = [json.dumps(line) + "\n" for line in self.stats() if line["step"] <= step]
        tables.write_whole(self.path / "stats.jsonl", lambda p: p.write_text("".join(kept), encoding="utf-8"))

    def append_stats(self, line: dict[str, Any]) -> None:
        with open(self.path / "stats.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")


def nodes() -> int:
    """Machines that train together (deploy/README.md). Raises InputError where DIFFSFSR_NODES is not a number of them."""
    value = os.environ.get("DIFFSFSR_NODES") or "1"
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"DIFFSFSR_NODES={value} is not a number of machines")
    return int(value)


def spread(t: Training, images: int, world: int) -> Training:
    """`t` such that a step sees `images` images on `world` processes: as large a micro batch as `t` has, where that divides them.

    Raises InputError where the processes cannot share them evenly.
    """
    share, left = divmod(images, world)
    if left or not share:
        raise InputError(
            f"a step of this run sees {images} images, which training.processes={t.processes} on {world // t.processes} machine(s) "
            f"cannot share evenly; use a number that divides {images}"
        )
    batch = max(n for n in range(1, min(t.batch, share) + 1) if share % n == 0)
    return replace(t, batch=batch, accumulation=share // batch)


def _commit() -> str:
    """The code's git commit, or 'unknown' outside a checkout."""
    try:
        here = Path(__file__).parent
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
