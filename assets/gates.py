"""The gates between a new version and the champion: read from a file that people write, judged on what evaluations measured."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.evaluation.items import TASKS
from diffsfsr.evaluation.report.columns import BY_NAME
from diffsfsr.presets import PRESETS, TUNED

if TYPE_CHECKING:  # it loads torch
    from diffsfsr.evaluation.protocols import Result

_SHIPPED = Path(__file__).with_name("gates.toml")
_DEFAULT = "default"


@dataclass(frozen=True)
class Gates:
    """One row of gates.toml, which says what each of them means."""

    items: int
    failure_rate: float
    background: float
    better: tuple[str, ...]
    better_on: tuple[str, ...]
    without_comparison: Literal["refuse", "by-itself"]
    not_worse: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What one gate said of one data set and task."""

    where: str
    gate: str
    measured: str
    passed: bool
    reason: str


Results = Mapping[str, "Result"]  # "<data set>, <task>" -> what was measured there


# --- the file ---------------------------------------------------------------------------------------------------------


def gates_file() -> Path:
    return Path(os.environ.get("DIFFSFSR_GATES") or _SHIPPED)


def read(preset: str) -> Gates:
    """The gates for versions of a preset. Raises InputError, naming file and key, for what cannot be a gate."""
    path = gates_file()
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the gates in {path} cannot be read ({error}); DIFFSFSR_GATES names the file") from error
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise InputError(f"{path}: {name} stands outside of a table: put it under [{_DEFAULT}]")
        if name != _DEFAULT and name not in PRESETS:
            raise InputError(f"{path}: [{name}] is neither [{_DEFAULT}] nor a preset{did_you_mean(name, PRESETS)}")
    return _gates(rows.get(_DEFAULT, {}) | rows.get(TUNED.get(preset, ""), {}) | rows.get(preset, {}), path)


def _gates(row: dict[str, Any], path: Path) -> Gates:
    known = [f.name for f in fields(Gates)]
    for name in row:
        if name not in known:
            raise InputError(f"{path}: there is no gate {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    if missing := [name for name in known if name not in row]:
        raise InputError(f"{path}: [{_DEFAULT}] lacks {missing[0]}")
    if row["without_comparison"] not in ("refuse", "by-itself"):
        raise InputError(f"{path}: without_comparison is 'refuse' or 'by-itself', not {row['without_comparison']!r}")
    numbers = {name: row[name] for name in ("items", "failure_rate", "background")}
    for name, value in (numbers | _table(row["not_worse"], path)).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InputError(f"{path}: {name} = {value!r} is not a number from 0 on")
    _known_figures((*row["not_worse"], *_list(row["better"], path)), path)
    for task in _list(row["better_on"], path):
        if task not in TASKS:
            raise InputError(f"{path}: better_on names no task {task!r}{did_you_mean(task, TASKS)}; known: {', '.join(TASKS)}")
    return Gates(**{**row, "better": tuple(row["better"]), "better_on": tuple(_list(row["better_on"], path))})


def _table(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: not_worse is a table of figures and tolerances, not {value!r}")
    return value


def _list(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: better and better_on are lists of names, not {value!r}")
    return value


def _known_figures(names: Iterable[str], path: Path) -> None:
    for name in names:
        if name not in BY_NAME:
            raise InputError(f"{path}: no figure is called {name!r}{did_you_mean(name, BY_NAME)}; known: {', '.join(BY_NAME)}")


# --- the verdicts -----------------------------------------------------------------------------------------------------


def judge(new: Results, old: Results | None, gates: Gates) -> list[Verdict]:
    """Every gate on a challenger's results, and on those of the champion on the same items; None where there is no champion.

    A gate on what was not measured is not passed; a difference that no item has, as of MSE where faces were swapped, is no gate.
    """
    verdicts = [verdict for where, result in new.items() for verdict in _by_itself(where, result, gates)]
    if old is None:
        return verdicts
    gaps = {where: _gaps(result, old.get(where)) for where, result in new.items()}
    for where in gaps:
        verdicts += _not_worse(where, gaps[where], gates)
    return verdicts + ([_better(gaps, new, gates)] if gates.better else [])


def _by_itself(where: str, result: Result, gates: Gates) -> list[Verdict]:
    count, failed = len(result.rows), 100.0 * (1.0 - result.column("found"))
    rate = float(failed.mean()) if count else float("nan")
    outside = result.column("background")
    largest = float(np.nanmax(outside)) if np.isfinite(outside).any() else float("nan")
    return [
        Verdict(where, "items", str(count), count >= gates.items, f"at least {gates.items} are needed"),
        _at_most(where, "failure_rate", rate, gates.failure_rate, " %"),
        _at_most(where, "background", largest, gates.background, " of 255"),
    ]


def _at_most(where: str, gate: str, value: float, limit: float, unit: str) -> Verdict:
    if np.isnan(value):
        return Verdict(where, gate, "-", False, "it was not measured")
    return Verdict(where, gate, f"{value:.3g}{unit}", value <= limit, f"at most {limit:g}{unit}")


Gaps = Mapping[str, Mapping[str, Any]]  # figure -> the difference challenger - champion (report.compare)


def _gaps(new: Result, old: Result | None) -> Gaps | str:
    """The differences, or why there are none."""
    from diffsfsr.evaluation.report.numbers import compare

    if old is None:
        return "the champion was not measured there"
    try:
        return compare(new, old)
    except ValueError as error:
        return str(error)


def _not_worse(where: str, gaps: Gaps | str, gates: Gates) -> list[Verdict]:
    if isinstance(gaps, str):
        return [Verdict(where, "not worse", "-", False, f"there is no comparison: {gaps}")]
    known = [(name, tolerance) for name, tolerance in gates.not_worse.items() if gaps[name]["mean"] is not None]
    return [_tolerated(where, name, gaps[name], tolerance) for name, tolerance in known]


def _tolerated(where: str, figure: str, gap: Mapping[str, Any], tolerance: float) -> Verdict:
    loss = gap["low"] if BY_NAME[figure].better == "lower" else -gap["high"]  # what is lost at the least, in 95 of 100 draws
    if loss > tolerance:
        return Verdict(where, f"{figure}: not worse", shown(gap), False, "WORSE" + (f" by more than {tolerance:g}" if tolerance else ""))
    return Verdict(where, f"{figure}: not worse", shown(gap), True, "better" if gap["better"] else "no proof that it is worse")


def _better(gaps: Mapping[str, Gaps | str], new: Results, gates: Gates) -> Verdict:
    """One verdict over all data sets: whether anything is better."""
    asked = {
        f"{where} {figure}": gap[figure]
        for where, gap in gaps.items()
        if not isinstance(gap, str) and new[where].task in gates.better_on
        for figure in gates.better
        if gap[figure]["mean"] is not None
    }
    found = [f"{name} {shown(gap)}" for name, gap in asked.items() if gap["better"]]
    wanted = f"{' or '.join(gates.better)} on task {' or '.join(gates.better_on)}"
    reason = "better" if found else f"NOT BETTER: {wanted} must be better"
    return Verdict("all data sets", f"{wanted}: better", "; ".join(found) or "nothing is better", bool(found), reason)


def shown(gap: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{gap['mean']:+.3g} [{gap['low']:+.3g}, {gap['high']:+.3g}]"


# --- for people -------------------------------------------------------------------------------------------------------


def table(verdicts: Iterable[Verdict]) -> str:
    """Every verdict with its reason, as Markdown, refusals first. A difference is challenger - champion with its 95 % interval."""
    lines = ["| data set, task | gate | measured | verdict | reason |", "| --- | --- | --- | --- | --- |"]
    for v in sorted(verdicts, key=lambda verdict: verdict.passed):
        lines.append(f"| {v.where} | {v.gate} | {v.measured} | {'passed' if v.passed else 'REFUSED'} | {v.reason} |")
    return "\n".join(lines)


def refusals(verdicts: Iterable[Verdict]) -> list[str]:
    """A line for each gate that was not passed."""
    return [f"{v.where}, {v.gate}: {v.measured} ({v.reason})" for v in verdicts if not v.passed]
