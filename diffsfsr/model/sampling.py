"""Noise -> latents; the three tasks as choices of input; expression travel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsfsr import config
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.model import attention
from diffsfsr.model.diffusion import paper_timestep
from diffsfsr.model.unet import DiffSFSR

T = TypeVar("T")
ModelFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z_t, t (n,) of 1..T, null (n,) bool) -> network output
TASKS = ("all", "identity", "expression")
SAMPLERS = ("pndm", "ddim", "dpm-solver++", "unipc")
_UNEVEN = 1.1  # how far a fixed-gap sampler's even gap may fall short of T / steps before the levels no longer meet


def make_scheduler(row: config.Schedule, sampler: str) -> Any:
    """A diffusers scheduler on the row's noise levels: pndm (PLMS, as SD configures it), ddim, dpm-solver++ or unipc.

    With zero terminal SNR the first level must be T itself: DDIM spaces from the end ("trailing"), the other two solvers'
    "linspace" starts there (their "trailing" adds a timestep of -1 at some step counts). PNDM divides by the signal level,
    so it keeps "leading", which never visits T.
    """
    scheduler = _scheduler(row, sampler)
    # Carried along by from_config(scheduler.config) to a class that knows them, where the defaults would be wrong for latents
    scheduler.register_to_config(rescale_betas_zero_snr=row.zero_terminal_snr, clip_sample=False)
    return scheduler


def _scheduler(row: config.Schedule, sampler: str) -> Any:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler

    zero = row.zero_terminal_snr
    shared: dict[str, Any] = {
        "num_train_timesteps": row.steps,
        "beta_start": row.beta_start,
        "beta_end": row.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": row.prediction,
    }
    if sampler == "pndm":
        betas = {"trained_betas": _rescaled_betas(row)} if zero else {}
        ends = {"set_alpha_to_one": zero, "steps_offset": 0 if zero else 1}
        return PNDMScheduler(**shared, **betas, **ends, skip_prk_steps=True, timestep_spacing="leading")
    if sampler == "ddim":
        spacing = {"timestep_spacing": "trailing"} if zero else {"timestep_spacing": "leading", "steps_offset": 1}
        return DDIMScheduler(**shared, **spacing, clip_sample=False, set_alpha_to_one=zero, rescale_betas_zero_snr=zero)
    if sampler == "dpm-solver++":
        return DPMSolverMultistepScheduler(**shared, timestep_spacing="linspace", rescale_betas_zero_snr=zero)
    if sampler == "unipc":
        return UniPCMultistepScheduler(**shared, timestep_spacing="linspace", rescale_betas_zero_snr=zero)
    raise InputError(f"unknown sampler {sampler!r}{did_you_mean(sampler, SAMPLERS)}; known: {', '.join(SAMPLERS)}")


def _rescaled_betas(row: config.Schedule) -> list[float]:
    from diffsfsr.model.diffusion import NoiseSchedule

    alpha_bar = NoiseSchedule.from_config(row).alpha_bar
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()


def initial_noise(shape: Sequence[int], seeds: Sequence[int], device: Any = "cpu") -> Tensor:
    """(B, *shape) float32, row i drawn on the CPU from seeds[i] alone: the same on every device and in every batch."""
    return _draw(shape, [torch.Generator().manual_seed(seed) for seed in seeds], device)


def _draw(shape: Sequence[int], generators: Sequence[torch.Generator], device: Any) -> Tensor:
    """(B, *shape) standard normal float32, row i from generators[i], each on its own device."""
    return torch.stack([torch.randn(tuple(shape), generator=own, device=own.device).to(device) for own in generators])


def conditioned(
    model: DiffSFSR,
    condition: Tensor,
    identity: dict[str, Tensor | None],
    expression: Tensor | None,
    present: Tensor | None = None,
    negative: Tensor | None = None,
) -> ModelFn:
    """The model bound to B items' conditions, for `sample`: rows with `null` set see null tokens in every slot, and the background.
    Where `negative` (B,16) is given, they see it as their expression.

    A batch of 2B rows holds the items twice. What stays the same from step to step (tokens, and their keys and values in every
    cross-attention) is computed anew only for another `null` tensor: `sample` hands in one and the same at every step. The
    weights must not change in between.
    """
    if present is None:
        present = torch.ones(len(condition), len(model.tokens.slots), dtype=torch.bool, device=condition.device)
    last: _Constant | None = None

    def predict(z_t: Tensor, t: Tensor, null: Tensor) -> Tensor:
        nonlocal last
        given = last  # read once: a call in another thread may replace it
        if given is None or given.null is not null:
            copies = len(null) // len(condition)
            named = {k: None if v is None else v.repeat(copies, 1) for k, v in identity.items()}
            travel = None if expression is None else expression.repeat(copies, 1)
            shown = present.repeat(copies, 1) & ~null[:, None]
            if travel is not None and negative is not None:
                travel = torch.where(null[:, None], negative.repeat(copies, 1), travel)
                shown[:, -1] = present[:, -1].repeat(copies)
            tokens = model.tokens(named, travel, shown)
            kept = attention.keep(model.unet, tokens.to(model.unet.dtype))
            last = given = _Constant(null, condition.repeat(copies, 1, 1, 1), tokens, kept)
        return model.denoise(z_t, t, given.condition, given.tokens, given.kept)

    return predict


@dataclass(frozen=True)
class _Constant:
    """What the network sees at every step alike, for one `null`."""

    null: Tensor
    condition: Tensor
    tokens: Tensor
    kept: attention.Kept


@torch.no_grad()
def sample(
    model_fn: ModelFn,
    shape: Sequence[int],
    scheduler: Any,
    steps: int,
    seeds: Sequence[int] = (),
    guidance: float = 1.0,
    device: Any = "cpu",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    keep: tuple[Tensor, Tensor] | None = None,
    callback: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    eta: float = 0.0,
    guidance_max_t: int = 1000,
) -> Tensor:
    """Latents (B, C, h, w) float32, one per seed, each the same alone or in a batch.

    Args:
        model_fn: see `conditioned`; a step calls it once, on 2B rows where it is guided.
        shape: (C, h, w).
        scheduler: from `make_scheduler`, or any of diffusers'; it is copied, not changed.
        steps: network calls per item (PNDM makes one more).
        guidance: 1 follows the conditions; above 1 moves away from the prediction without them.
        keep: (scene's latents (B,C,h,w), mask (B,1,h,w)): where the mask is 0 the scene stays. After each step it is put back
            there, noised to the level that the step has reached; at the end it is clean.
        callback: called after each step as callback(i, n, latents), n being the scheduler's timestep; latents that it returns
            go on in their place.
        generators: one per item, in place of seeds. What a stochastic scheduler draws on the way also comes from them.
        eta: DDIM's share of fresh noise in each step, 0..1; 0 is deterministic. Below 1 where the last level has no signal, for rounding
            gives it the root of a negative number. Schedulers without one take no notice.
        guidance_max_t: the largest timestep, 1..T, at which guidance counts; above, it is 1 (Kynkaanniemi et al. 2024).

    Raises: InputError when the scheduler cannot take that many steps, or for another eta.
    """
    if not 0 <= eta <= 1 or (eta == 1 and scheduler.config.get("rescale_betas_zero_snr")):
        raise InputError(f"eta={eta} is not between 0 and 1, nor below 1 where the schedule ends without signal")
    scheduler = type(scheduler).from_config(scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if generators is None else list(generators)
    levels = timesteps(scheduler, steps)
    t = paper_timestep(levels).to(device)
    noise = _draw(shape, generators, device)
    z = noise * scheduler.init_noise_sigma
    guide = _guided(model_fn, guidance, len(z), device)
    guided = [guidance != 1.0 and at <= guidance_max_t for at in paper_timestep(levels).tolist()]
    extra = {name: value for name, value in (("generator", generators), ("eta", eta)) if name in signature(scheduler.step).parameters}
    for i, n in enumerate(progress(levels)):
        output = guide(scheduler.scale_model_input(z, n), t[i], guided[i])
        z = scheduler.step(output, n, z, **extra).prev_sample
        if keep is not None:
            scene, mask = (x.to(z) for x in keep)
            reached = scene if i + 1 == len(levels) else scheduler.add_noise(scene, noise, levels[i + 1].expand(len(z)))
            z = torch.where(mask > 0, mask * z + (1 - mask) * reached, reached)
        if callback is not None:
            returned = callback(i, n, z)
            z = z if returned is None else returned
    return z


def timesteps(scheduler: Any, steps: int) -> Tensor:
    """Sets and returns the scheduler's timesteps (network count, falling). Raises InputError where they cannot be spaced."""
    total = scheduler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise InputError(f"steps={steps} is not between 1 and {total}")
    if _fixed_gap(scheduler):
        # "leading" starts a whole gap before the end: a single step would start at clean data, and T steps beyond T
        outside = scheduler.config.timestep_spacing == "leading" and steps in (1, total)
        if outside or (total / steps) / (total // steps) > _UNEVEN:
            even = [n for n in range(2, total) if total % n == 0]
            near = sorted(sorted(even, key=lambda n: abs(n - steps))[:2])
            raise InputError(f"steps={steps} cannot be spaced evenly over {total} by this sampler; try {' or '.join(map(str, near))}")
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]  # rounding in diffusers adds a -1 at some step counts
    return scheduler.timesteps


def _fixed_gap(scheduler: Any) -> bool:
    """DDIM and PNDM step down by T // steps whatever the next timestep is."""
    return type(scheduler).__name__ in ("DDIMScheduler", "PNDMScheduler")


def _guided(model_fn: ModelFn, guidance: float, rows: int, device: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """Ho and Salimans 2022: uncond + guidance (cond - uncond), both from one forward pass; a function of z (rows, ...), t () and whether
    this step is guided."""
    told = torch.zeros(rows, dtype=torch.bool, device=device)
    null = torch.cat([told, ~told])

    def guide(z: Tensor, t: Tensor, guided: bool) -> Tensor:
        if not guided:
            return model_fn(z, t.expand(rows), told)
        cond, uncond = model_fn(z.repeat(2, 1, 1, 1), t.expand(2 * rows), null).chunk(2)
        return uncond + guidance * (cond - uncond)

    return guide


# --- choices of input -----------------------------------------------------------------------------------------------


def task_inputs(task: str, scene: T, identity: T | None = None, expression: T | None = None) -> tuple[T, T, T]:
    """(scene, identity, expression) images for a task: "all" swaps both; "identity" keeps the scene's expression, "expression"
    its identity. An input that the task takes from the scene is not looked at. Raises InputError for a missing one."""
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}{did_you_mean(task, TASKS)}; known: {', '.join(TASKS)}")
    who = scene if task == "expression" else identity
    how = scene if task == "identity" else expression
    if who is None or how is None:
        raise InputError(f"task {task} needs an {'identity' if who is None else 'expression'} image")
    return scene, who, how


def slerp(a: Tensor, b: Tensor, x: float | Tensor) -> Tensor:
    """The point at x on the great circle from a (x = 0) through b (x = 1), on the unit sphere; (..., D).

    x beyond 1 goes on past b, at most to the point opposite a. Equal inputs stay; opposite ones, between which no shortest
    way exists, travel by a fixed one.
    """
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    across = b - (a * b).sum(-1, keepdim=True) * a
    sine = across.norm(dim=-1, keepdim=True)
    angle = _angle(a, b)[..., None]
    away = torch.where(sine > 1e-6, across / sine.clamp(min=1e-12), _orthogonal(a))
    x = torch.as_tensor(x, dtype=a.dtype, device=a.device)
    turn = ((x[..., None] if x.ndim else x) * angle).clamp(-torch.pi, torch.pi)
    return a * turn.cos() + away * turn.sin()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle (...) between unit vectors (..., D), 0..pi; exact for the nearly equal, where an arc cosine is not."""
    cosine = (a * b).sum(-1)
    return torch.atan2((b - cosine[..., None] * a).norm(dim=-1), cosine)


def _orthogonal(a: Tensor) -> Tensor:
    """A unit vector at right angles to each unit vector a: its least-used axis, made orthogonal."""
    axis = F.one_hot(a.abs().argmin(-1), a.shape[-1]).to(a)
    return F.normalize(axis - (axis * a).sum(-1, keepdim=True) * a, dim=-1)


def expression_strength(scene_exp: Tensor, word_exp: Tensor, x: float | Tensor) -> Tensor:
    """Unit expression embeddings (..., 16): x = 0 the scene's own, 1 the word's, beyond 1 exaggerated.

    Raises InputError when x is negative or not finite.
    """
    value = torch.as_tensor(x)
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise InputError(f"strength={x} must be a number of at least 0")
    return slerp(scene_exp, word_exp, x)


def travel(stations: Tensor, frames: int) -> tuple[Tensor, list[int]]:
    """Unit vectors (frames, D) from the first of n stations (n, D) to the last, and the frame that is nearest to each station.

    The way is the great circles between neighbours. Frames are even in angle, so that each changes the expression by as much as
    the one before; evenly many a station would rush between words that differ and dawdle between those that are alike.

    Raises InputError for fewer than two stations or frames.
    """
    if len(stations) < 2 or frames < 2:
        raise InputError(f"a travel needs two stations and two frames at least, not {len(stations)} and {frames}")
    units = F.normalize(stations, dim=-1)
    legs = _angle(units[:-1], units[1:])
    reached = torch.cat([legs.new_zeros(1), legs.cumsum(0)])  # angle on the way, at each station
    where = torch.linspace(0, 1, frames, dtype=legs.dtype, device=legs.device) * reached[-1]
    leg = (torch.searchsorted(reached, where, right=True) - 1).clamp(0, len(legs) - 1)
    share = ((where - reached[leg]) / legs[leg].clamp(min=1e-12)).clamp(0, 1)
    near = torch.linspace(0, frames - 1, len(units)) if float(reached[-1]) == 0 else reached / reached[-1] * (frames - 1)
    return slerp(units[leg], units[leg + 1], share), near.round().int().tolist()
