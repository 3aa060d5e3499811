"""Networks as others publish them: diffusers' layout in a folder or on the hub, refused by their config before a weight is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin

from diffsfsr import config
from diffsfsr.errors import InputError

STABLE_DIFFUSION = ("CompVis/stable-diffusion-v1-4", "sd-1.4")  # its name on the hub, and that of the zoo's folder
_PULL = "`diffsfsr weights pull sd-1.4` brings a whole one"


@dataclass(frozen=True)
class Part:
    """One network or scheduler of a model: the subfolder of a local folder or of a repository on the hub (or in its cache)."""

    source: str | Path
    subfolder: str | None = None

    @classmethod
    def of(cls, source: str | Path | Part) -> Part:
        """The part itself, or the one that a folder is."""
        return source if isinstance(source, Part) else cls(source)

    def __str__(self) -> str:
        return f"{self.source}/{self.subfolder}" if self.subfolder else str(self.source)

    def config(self, *classes: Any) -> dict[str, Any]:
        """Its config file, which must describe one of the diffusers `classes`; all schedulers share a form.

        Raises InputError where it describes another, or cannot be read.
        """
        try:
            found: dict[str, Any] = classes[0].load_config(str(self.source), subfolder=self.subfolder)
            name = found["_class_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self} has no readable {classes[0].config_name} ({_line(error)}); {_PULL}") from error
        if name not in [kind.__name__ for kind in classes] and not issubclass(classes[0], SchedulerMixin):
            raise InputError(f"{self} holds a {name}; expected {' or '.join(kind.__name__ for kind in classes)}")
        return found

    def load(self, cls: Any, dtype: torch.dtype = torch.float32, new: str = "", **changes: Any) -> Any:
        """The network by diffusers' own from_pretrained, from safetensors only.

        Args:
            cls: its diffusers class. dtype: what the weights become, whatever they were saved in.
            new: how the parameters are named that the file does not have, and `changes` of the config make; none if empty.

        Raises: InputError for weights that are missing, damaged or not all there.
        """
        options: dict[str, Any] = {"use_safetensors": True, "dtype": dtype, "output_loading_info": True}
        try:
            # What is new gets its initial values only where the module is really built
            network, info = cls.from_pretrained(str(self.source), subfolder=self.subfolder, low_cpu_mem_usage=not new, **options, **changes)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"the weights of {self} cannot be read ({_line(error)}); {_PULL}") from error
        missing = [name for name in info["missing_keys"] if not (new and name.startswith(new))]
        if missing:
            raise InputError(f"the weights of {self} lack {len(missing)} tensors, {missing[0]} the first; {_PULL}")
        network.register_to_config(_name_or_path=Path(self.source).name)  # else it would be saved with this machine's path
        return network


def stable_diffusion(source: str | Path) -> str | Path:
    """Where to read Stable Diffusion from: the zoo's folder where `source` is the published model's name and it is there, else as given.

    Raises InputError for a path where there is no folder.
    """
    from diffsfsr.weights import find_folder

    if str(source) in STABLE_DIFFUSION:
        return find_folder(STABLE_DIFFUSION[1]) or STABLE_DIFFUSION[0]
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if isinstance(source, Path) or path.is_absolute() or str(source).count("/") != 1:  # else it may be a name on the hub
        raise InputError(f"no folder {source}; give one in diffusers' layout or a name on the hub; {_PULL}")
    return source


def scheduler_config(part: Part, row: config.Schedule) -> dict[str, Any]:
    """A published scheduler's config, for from_config of any class. Raises InputError when it is not on the row's noise levels."""
    found = part.config(DDIMScheduler)
    want = {
        "num_train_timesteps": (row.steps, "schedule.steps"),
        "beta_start": (row.beta_start, "schedule.beta_start"),
        "beta_end": (row.beta_end, "schedule.beta_end"),
        "beta_schedule": ("scaled_linear", "every preset"),
        "trained_betas": (None, "every preset"),
        "prediction_type": (row.prediction, "schedule.prediction"),
        "rescale_betas_zero_snr": (row.zero_terminal_snr, "schedule.zero_terminal_snr"),
    }
    refuse_misfit(part, found, DDIMScheduler, want)
    return {**found, "clip_sample": False}  # some classes clip unless told not to, and latents have no bounds


def refuse_misfit(part: Part, have: dict[str, Any], cls: Any, want: dict[str, tuple[Any, str]]) -> None:
    """Compares a config with what a preset needs: key -> (value, the setting that asks for it). Raises InputError with all differences.

    A key that the file leaves out has the value of the class's own default, which is how old files are to be read.
    """
    defaults = inspect.signature(cls.__init__).parameters
    found = {key: have.get(key, defaults[key].default) for key in want}
    wrong = [f"{key}={found[key]} where {name} needs {value}" for key, (value, name) in want.items() if _plain(found[key]) != _plain(value)]
    if wrong:
        raise InputError(f"{part} does not fit: {'; '.join(wrong)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
