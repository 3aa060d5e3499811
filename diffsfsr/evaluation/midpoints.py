"""How far each estimate of z_0 is from the true one, over t: the improved midpoint with and without its noise, the original, one step.

The comparison that the paper does not make. Every estimator starts from the same z_t, has the same first prediction and the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr import tables
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.metrics import Interval
from diffsfsr.model.diffusion import NoiseSchedule, PredictZ0, add_noise, improved_midpoint, one_step, original_midpoint
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Triplets
from diffsfsr.training.objectives.diffusion import conditions_of

if TYPE_CHECKING:
    from diffsfsr.portrait.compose import Studio

ESTIMATORS: dict[str, tuple[Callable[..., Tensor], bool]] = {  # name -> midpoint, whether its random part is kept
    "improved": (improved_midpoint, True),
    "improved, no noise": (improved_midpoint, False),
    "original (Eq. 8)": (original_midpoint, False),
    "one step": (one_step, False),
}
TRUE = "true z_0"  # what the autoencoder and the experts lose by themselves
MEASURES = {  # name -> (axis label, whether less is better)
    "rmse": ("RMSE of the latent", True),
    "psnr": ("PSNR of the decoded face, dB", False),
    "identity": ("L_id (Eq. 5)", True),
    "expression": ("L_exp (Eq. 6)", True),
}
Look = Callable[[Tensor], Mapping[str, Tensor]]  # estimates of z_0 (B,C,h,w) -> measure -> (B,)


@dataclass(frozen=True)
class Study:
    """values[estimator][measure] is (len(t), items), NaN where an estimate is not defined; `true`[measure] (items,) is of z_0 itself."""

    t: tuple[int, ...]
    values: dict[str, dict[str, np.ndarray]]
    true: dict[str, np.ndarray]

    def interval(self, estimator: str, measure: str, at: int) -> Interval:
        return metrics.bootstrap_interval(self.values[estimator][measure][at])

    def gain(self, estimator: str, measure: str, at: int) -> Interval:
        """How much an estimator is above one step, item by item."""
        return metrics.paired_difference(self.values[estimator][measure][at], self.values["one step"][measure][at])


def grid(steps: int) -> tuple[int, ...]:
    """Where t is looked at: a twentieth and every tenth of 1..T."""
    return tuple(sorted({max(1, round(steps * share)) for share in (0.05, *(n / 10 for n in range(1, 11)))}))


def estimates(predict_z0: PredictZ0, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, noise: Tensor) -> dict[str, Tensor]:
    """Each estimator's z_0 (B,C,h,w) from the same z_t at one t, the first prediction made once; `noise` (B,C,h,w) is the improved walk's.

    The original is left out where alpha_bar is 0, by which it would divide.
    """
    first = predict_z0(z_t, t)

    def predict(z: Tensor, at: Tensor) -> Tensor:
        return first if z is z_t else predict_z0(z, at)

    undefined = {original_midpoint} if schedule.zero_terminal and bool((t == schedule.steps).any()) else set()
    return {
        name: midpoint(predict, z_t, t, schedule, noise, keep) for name, (midpoint, keep) in ESTIMATORS.items() if midpoint not in undefined
    }


def rmse(z_0_hat: Tensor, z_0: Tensor) -> Tensor:
    """Root of the mean square over an item's values: (B,C,h,w) -> (B,)."""
    return (z_0_hat - z_0).square().flatten(1).mean(1).sqrt()


@torch.no_grad()
def study(
    batches: Iterable[tuple[Tensor, PredictZ0, Look]], schedule: NoiseSchedule, times: Sequence[int], generator: torch.Generator
) -> Study:
    """Measure the estimators on items. A batch is its true z_0 (B,C,h,w), the network under its conditions, and further measures."""
    found: dict[str, dict[str, list[list[np.ndarray]]]] = {name: {} for name in ESTIMATORS}
    true: dict[str, list[np.ndarray]] = {}
    for z_0, predict_z0, look in batches:
        for measure, values in look(z_0).items():
            true.setdefault(measure, []).append(_numbers(values))
        for place, time in enumerate(times):
            t = torch.full((len(z_0),), time, device=z_0.device)
            eps, noise = (torch.randn(z_0.shape, generator=generator, dtype=z_0.dtype).to(z_0.device) for _ in range(2))
            made = estimates(predict_z0, add_noise(z_0, eps, t, schedule), t, schedule, noise)
            for name in ESTIMATORS:
                estimate = made.get(name)
                seen = {m: torch.full((len(z_0),), math.nan) for m in ("rmse", *true)}
                if estimate is not None:
                    seen = {"rmse": rmse(estimate, z_0), **look(estimate)}
                for measure, values in seen.items():
                    found[name].setdefault(measure, [[] for _ in times])[place].append(_numbers(values))
    joined = {name: {m: np.stack([np.concatenate(v) for v in rows]) for m, rows in measures.items()} for name, measures in found.items()}
    return Study(tuple(times), joined, {m: np.concatenate(v) for m, v in true.items()})


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


# --- a trained model on faces -----------------------------------------------------------------------------------------


def batches(studio: Studio, data: Triplets, count: int, size: int) -> Iterator[tuple[Tensor, PredictZ0, Look]]:
    """What `study` takes, from a saved model and `count` faces spread over `data`, in batches of `size`.

    A face is its own scene, identity and expression: only then is z_0 the answer. All slots are told; an identity encoder that is
    not on this machine neither conditions nor judges.
    """
    for items in np.split(places := np.linspace(0, len(data) - 1, min(count, len(data))).astype(int), range(size, len(places), size)):
        batch = data.take(items, items, items, np.zeros(len(items), bool))
        batch = {name: value.to(studio.device) for name, value in batch.items()}
        yield batch["latent"], _bound(studio, batch), _looking(studio, batch)


def _bound(studio: Studio, batch: Batch) -> PredictZ0:
    given = conditions_of(batch, studio.preset.conditioning, studio.dln)
    given["identity"] = {name: given["identity"][name] for name in studio.identity.present}
    return lambda z_t, t: studio.pipeline.model.predict_z0(z_t, t, **given)


def _looking(studio: Studio, batch: Batch) -> Look:
    """PSNR against the decoded z_0, L_id and L_exp against the photograph's own embeddings, each of the decoded estimate."""
    decode, means = studio.pipeline.vae.decode, studio.pipeline.tokens.means()
    names = studio.preset.conditioning.identity
    present = {name: batch["present"][:, names.index(name)] for name in studio.identity.present}
    given = {name: batch[f"id_{name}"] for name in present}
    best = decode(batch["latent"]).clamp(-1, 1)

    def look(z_0: Tensor) -> dict[str, Tensor]:
        face = decode(z_0).clamp(-1, 1)
        error = (face - best).square().flatten(1).mean(1)
        made = studio.identity(face, batch["landmarks"])
        return {
            "psnr": torch.where(error > 0, 10 * torch.log10(4 / error), math.nan),
            "identity": losses.identity_loss(made, given, means, present),
            "expression": losses.expression_loss(studio.dln(face, batch["landmarks"]), batch["expression"]),
        }

    return look


# --- the report -------------------------------------------------------------------------------------------------------


def plain(found: Study) -> dict[str, Any]:
    """The figures as JSON data: {measure: {estimator: [{t, mean, low, high, count, above_one_step: {...}}]}}, and those of the true z_0."""
    measured = [m for m in MEASURES if m in found.values["one step"]]
    rows = {m: {name: [{"t": t} | _entry(found, name, m, at) for at, t in enumerate(found.t)] for name in ESTIMATORS} for m in measured}
    return {"measures": rows, TRUE: {m: _numbers_of(metrics.bootstrap_interval(v)) for m, v in found.true.items() if not np.isnan(v).all()}}


def _entry(found: Study, name: str, measure: str, at: int) -> dict[str, Any]:
    own = _numbers_of(found.interval(name, measure, at))
    return own if name == "one step" else own | {"above_one_step": _numbers_of(found.gain(name, measure, at))}


def _numbers_of(value: Interval) -> dict[str, Any]:
    numbers = {"mean": value.mean, "low": value.low, "high": value.high}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()} | {"count": value.count}


def markdown(figures: dict[str, Any], title: str, facts: Mapping[str, Any]) -> str:
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["Mean and 95 % bootstrap interval over faces; in brackets the mean difference to one step on the same faces and noise,"]
    lines += ["with `*` where its interval leaves out 0. A dash: not defined there.", "", "![over t](midpoints.png)", ""]
    for measure, rows in figures["measures"].items():
        label, less = MEASURES[measure]
        lines += [
            f"## {label} ({'less' if less else 'more'} is better)",
            "",
            f"| t | {' | '.join(rows)} |",
            "| --- " * (len(rows) + 1) + "|",
        ]
        for entries in zip(*rows.values(), strict=True):
            lines.append(f"| {entries[0]['t']} | {' | '.join(map(_cell, entries))} |")
        if measure in figures[TRUE]:
            lines += ["", f"Of the {TRUE}, decoded: {_shown(figures[TRUE][measure])}."]
        lines.append("")
    return "\n".join(lines)


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None:
        return "-"
    beside = entry.get("above_one_step")
    sure = beside and (beside["low"] > 0 or beside["high"] < 0)
    return _shown(entry) + (f" ({beside['mean']:+.4f}{'*' if sure else ''})" if beside else "")


def _shown(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"


def plot(figures: dict[str, Any], title: str) -> Any:
    """A matplotlib figure: a panel a measure, a line an estimator over t, with its interval."""
    from matplotlib.figure import Figure

    measures = figures["measures"]
    rows, columns = -(-len(measures) // 2), min(len(measures), 2)
    fig = Figure(figsize=(6 * columns, 4.5 * rows), layout="constrained")
    fig.suptitle(title)
    for axes, (measure, lines) in zip(fig.subplots(rows, columns, squeeze=False).flat, measures.items(), strict=False):
        for (name, entries), style in zip(lines.items(), ("-", "--", "-.", ":"), strict=True):
            known = [e for e in entries if e["mean"] is not None]
            t = [e["t"] for e in known]
            axes.plot(t, [e["mean"] for e in known], style, marker="o", markersize=3, label=name)
            axes.fill_between(t, [e["low"] for e in known], [e["high"] for e in known], alpha=0.2)
        if measure in figures[TRUE]:
            axes.axhline(figures[TRUE][measure]["mean"], color="grey", linewidth=1, label=f"{TRUE}, decoded")
        axes.set_xlabel("t")
        axes.set_ylabel(MEASURES[measure][0])
        axes.grid(alpha=0.3)
    axes.legend()
    return fig


def write_report(folder: Path, found: Study, title: str, facts: Mapping[str, Any]) -> None:
    """midpoints.png, report.md, and report.json last: where it stands, the report is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = plain(found)
    tables.write_whole(folder / "midpoints.png", lambda p: plot(figures, title).savefig(p, format="png", dpi=120))
    text = markdown(figures, title, facts)
    tables.write_whole(folder / "report.md", lambda p: p.write_text(text, encoding="utf-8"))
    tables.write_json(folder / "report.json", {"title": title, "facts": dict(facts), **figures})
