"""What a preset's training costs, before anything is trained: parameters, bytes on each GPU, FLOP of an image.

The networks are built without memory and measured (`measure`); the weights need not be on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffsfsr import config
from diffsfsr.config import Preset, Training
from diffsfsr.errors import InputError, NotReady
from diffsfsr.precision import HALF
from diffsfsr.training import launch, parts
from diffsfsr.training.measure import Work, forward_flop, measure, weightless

_FLOAT = 4  # bytes
_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in gradients, where its configuration names none
_LIVE = 1_000_000_000  # and its stage3_max_live_parameters
_CHOICES: dict[str, tuple[Any, ...]] = {  # what is compared with the preset's own; shares are of schedule.steps
    "objective.aux_fraction": (0.0, 0.25, 0.5, 1.0),
    "objective.aux_max_t": (0.25, 0.5, 1.0),
    "objective.loss_decoder": ("", "small", "vaelight_decoder"),
    "objective.midpoint": ("improved", "original", "one-step"),
    "training.gradient_checkpointing": (False, True),
    "training.zero_stage": (0, 1, 2, 3),
}


@dataclass(frozen=True)
class Network:
    """One network of a training step. What could not be counted says why, and has no parameters here."""

    name: str
    parameters: int = 0
    trained: bool = False
    absent: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU, that of rank 0, in a training step; `host` on the machine's side for each process."""

    weights: int
    frozen: int
    gradients: int
    optimizer: int  # AdamW's two moments, and ZeRO's own float32 copy of the weights
    communication: int  # ZeRO's bucket of gradients, and the weights that stage 3 has gathered
    ema: int
    activations: int  # at the fullest moment of the way back
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.frozen + self.gradients + self.optimizer + self.communication + self.ema + self.activations


@dataclass(frozen=True)
class Cost:
    """`step`: FLOP per image of a training step, by part; an image carries L_id and L_exp only as often as it will. `sample`: FLOP of one
    picture made by the preset's sampler, from scene and selfie to pixels."""

    networks: tuple[Network, ...]
    memory: Memory
    step: dict[str, float]
    sample: float

    @property
    def flop(self) -> float:
        return sum(self.step.values())


@dataclass(frozen=True)
class Choice:
    """One setting at another value. `cost` is None where the preset would be refused or a file lacks: `refused` says why."""

    setting: str
    value: Any
    own: bool
    cost: Cost | None = None
    refused: str = ""


class Estimate:
    """The costs of a diffusion preset and of its neighbours; a network is measured once."""

    def __init__(self, preset: Preset) -> None:
        """Raises InputError for a preset that trains something else."""
        if preset.trains != "diffusion":
            raise InputError(f"preset {preset.name} trains its {preset.trains}; costs are estimated for diffusion models")
        self.preset = preset
        self._space = FakeTensorMode()
        self._measured: dict[tuple[str, ...], tuple[Any, Work]] = {}

    def cost(self, preset: Preset | None = None) -> Cost:
        """Of the preset itself, or of one that differs only in `objective` and `training` (not in its batch and precision). What the
        perceptual loss compares with, a decoded picture without gradients, is not counted: about a fiftieth of a step."""
        p = preset or self.preset
        again, share, most = p.training.gradient_checkpointing, carriers_expected(p) / p.training.batch, carriers_at_most(p)
        network, unet = self._unet(again)
        autoencoder, _ = self._decoder("")
        decoder, decoding = self._decoder(p.objective.loss_decoder)
        experts, absent = self._experts()
        calls = {"unet": (unet, 1.0, p.training.batch)}
        if most:
            late = {"decoder": decoding} | {name: work for name, (_, work) in experts.items()}
            late = {name: work.recomputed() for name, work in late.items()} if again else late
            if p.objective.midpoint != "one-step":
                late = {"unet, second call": replace(unet, fixed=0)} | late  # the weights' copies are there already
            calls |= {name: (work, share, most) for name, work in late.items()}
        networks = (
            *(Network(name, parts.count(part), True) for name, part in network.named_children()),
            Network("autoencoder", parts.count(autoencoder)),
            *([Network(f"loss decoder {p.objective.loss_decoder}", parts.count(decoder))] if p.objective.loss_decoder else []),
            *(Network(name, parts.count(net)) for name, (net, _) in experts.items()),
            *(Network(name, absent=why) for name, why in absent.items()),
        )
        trained = sum(n.parameters for n in networks if n.trained)
        activations = fullest([(work, items) for work, _, items in calls.values()])
        return Cost(
            networks,
            memory(p.training, trained, sum(n.parameters for n in networks) - trained, activations),
            {name: part_share * (work.forward + work.backward) for name, (work, part_share, _) in calls.items()},
            self._sample,
        )

    def choices(self) -> Iterator[Choice]:
        """Each setting of the table at each of its values, all else as in the preset."""
        for setting, values in _CHOICES.items():
            room, name = setting.split(".")
            now = getattr(getattr(self.preset, room), name)
            if name == "aux_max_t":
                values = tuple(round(part * self.preset.schedule.steps) for part in values)
            for value in dict.fromkeys([*values, now]):
                try:
                    found: dict[str, Any] = {"cost": self.cost(config.override(self.preset, {setting: value}))}
                except (InputError, NotReady) as why:
                    found = {"refused": str(why)}
                yield Choice(setting, value, value == now, **found)

    @cached_property
    def _sample(self) -> float:
        """FLOP of one picture: the scene encoded, embeddings made, the sampler's calls, and its latents decoded."""
        from diffsfsr.model.sampling import make_scheduler, paper_timestep, timesteps

        p, row = self.preset, self.preset.sampling
        levels = paper_timestep(timesteps(make_scheduler(p.schedule, row.sampler), row.steps))
        calls = len(levels) + int((levels <= row.guidance_max_t).sum()) * (row.guidance != 1)
        autoencoder, decoding = self._decoder("")
        with self._space:
            encoding = forward_flop(lambda: autoencoder.encode(torch.empty(1, 3, p.crop, p.crop)))
        experts = sum(work.forward for name, (_, work) in self._experts()[0].items() if name not in p.objective.identity)
        return encoding + experts + calls * self._unet(p.training.gradient_checkpointing)[1].forward + decoding.forward

    # --- its networks ---

    def _unet(self, again: bool) -> tuple[Any, Work]:
        return self._work(("unet", str(again)), partial(parts.network, self.preset, again), self.preset.training.batch)

    def _decoder(self, name: str) -> tuple[Any, Work]:
        return self._work(("decoder", name), partial(parts.decoder, self.preset, name))

    def _experts(self) -> tuple[dict[str, tuple[Any, Work]], dict[str, str]]:
        """The recognisers and the DLN, and why those of them that are not here could not be counted."""
        found, absent = {}, {}
        for name in (*self.preset.recognisers, "dln"):
            try:
                found[name] = self._work(("expert", name), partial(parts.expert, self.preset, name), half=False)
            except (InputError, NotReady) as why:
                absent[name] = str(why)
        return found, absent

    def _work(self, key: tuple[str, ...], build: Callable[[], parts.Built], batch: int = 1, half: bool = True) -> tuple[Any, Work]:
        if key not in self._measured:
            net, call = build()
            with self._space:
                work = measure(weightless(net), lambda: call(batch), batch, HALF.get(self.preset.training.precision) if half else None)
            self._measured[key] = net, work
        return self._measured[key]


# --- a step, out of its parts -----------------------------------------------------------------------------------------


def carriers_at_most(p: Preset) -> int:
    """Items of a batch that carry L_id and L_exp where every t allows it. One does in any case: see DiffusionObjective."""
    return max(1, round(p.objective.aux_fraction * p.training.batch)) if p.objective.sees_faces else 0


def carriers_expected(p: Preset) -> float:
    """The mean number of those items, t being uniform in 1..T: of a binomial number, at most so many and at least one."""
    from scipy.stats import binom

    most, counts = carriers_at_most(p), np.arange(p.training.batch + 1)
    ways = binom.pmf(counts, p.training.batch, min(1.0, p.objective.aux_max_t / p.schedule.steps))
    return float(ways @ counts.clip(1, most)) if most else 0.0


def fullest(calls: list[tuple[Work, int]]) -> int:
    """The most bytes that live at once. All calls have run, in order; the way back goes from the last to the first, and each
    lets go of its own: while one is on its way back, those before it are still kept.
    """
    kept = [work.fixed + items * work.kept for work, items in calls]
    return round(max(sum(kept[:i]) + work.fixed + items * work.peak for i, (work, items) in enumerate(calls)))


def memory(t: Training, trained: int, frozen: int, activations: int) -> Memory:
    """Bytes on rank 0's GPU for `trained` and `frozen` parameters, all float32: a half precision casts, see launch.deepspeed_config.

    ZeRO (Rajbhandari et al. 2020) divides the optimiser's state among the processes from stage 1, gradients from 2, weights from 3.
    As DeepSpeed does it: from stage 1 the optimiser updates a copy of the weights, gradients travel through a bucket of fixed
    size, and stage 1 divides them too where a step is one micro batch; stage 3 keeps weights that it gathered as long as they are
    fewer than `stage3_max_live_parameters`. On one machine: more of them divide further.
    """
    whole = _FLOAT * trained
    part = -(-whole // t.processes)
    divided = t.zero_stage >= 2 or (t.zero_stage == 1 and t.accumulation == 1)
    weights, gradients = part if t.zero_stage == 3 else whole, part if divided else whole
    optimizer = 3 * part if t.zero_stage else 2 * whole
    host = {"none": 0, "optimizer": optimizer + gradients, "all": optimizer + gradients + weights}[t.offload]
    away = t.offload != "none"
    zero = launch.deepspeed_config(t)["zero_optimization"]
    bucket = _FLOAT * int(zero.get("reduce_bucket_size", _BUCKET)) if t.zero_stage else 0
    gathered = min(whole, _FLOAT * int(zero.get("stage3_max_live_parameters", _LIVE))) if t.zero_stage == 3 else 0
    return Memory(
        weights=0 if t.offload == "all" else weights,
        frozen=_FLOAT * frozen,
        gradients=0 if away else gradients,
        optimizer=0 if away else optimizer,
        communication=bucket + gathered,
        ema=whole if t.ema else 0,
        activations=activations,
        host=host,
    )
