"""What a report says of a comparison, as numbers with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.baselines import CEILING
from diffsfsr.evaluation.items import ROLES
from diffsfsr.evaluation.protocols import Result
from diffsfsr.evaluation.report import quoted, slices, words
from diffsfsr.evaluation.report.columns import BY_NAME, COLUMNS, SHORT, Column

Entry = dict[str, Any]  # {mean, low, high, count} as printed; None for what could not be computed


def summary(results: Sequence[Result], seed: int = 0) -> dict[str, dict[str, Any]]:
    """task -> items, gallery, chance_top1 (%), not_distinct, judges, independent, fid, and one entry per COLUMNS.

    An entry is {mean, low, high, count} as printed (ID and Exp times 100, as in the paper), with None for what could not be
    computed; `low` and `high` bound the 95 % bootstrap interval over items. The results are of one method.
    """
    return {r.task: _summary_of(r, seed) for r in results}


def _summary_of(result: Result, seed: int) -> dict[str, Any]:
    head = {
        "items": len(result.rows),
        "gallery": result.gallery,
        "chance_top1": 100.0 / result.gallery if result.gallery else None,
        "not_distinct": sum(not row["distinct"] for row in result.rows),
        "judge": result.judges.get("identity", ""),
        "judges": dict(result.judges),
        "independent": result.independent,
        "fid": result.fid,
        "fid_note": result.fid_note,
    }
    return head | {c.name: entry(interval(result, c, seed)) for c in COLUMNS}


def interval(result: Result, column: Column, seed: int = 0) -> metrics.Interval:
    """One figure as printed: the mean of a metric over the items, or a statistic of several."""
    if column.statistic is None:
        return metrics.bootstrap_interval(values(result, column), seed=seed).scaled(column.scale)
    return metrics.bootstrap_statistic(column.statistic, *_operands(result, column), seed=seed).scaled(column.scale)


def _operands(result: Result, column: Column) -> list[np.ndarray]:
    """What a statistic is of, (n,) each; NaN where the task gives it no meaning."""
    apt = not column.tasks or result.task in column.tasks
    return [result.column(name) if apt else np.full(len(result.rows), np.nan) for name in column.of]


def values(result: Result, column: Column) -> np.ndarray:
    """(n,) of one metric, one an item; NaN where missing, or where the task gives it no meaning."""
    if column.tasks and result.task not in column.tasks:
        return np.full(len(result.rows), np.nan)
    if column.name == "failure_rate":
        return 1.0 - result.column("found")
    if column.name in ("smile_gap", "jaw_gap"):
        shown = "smile" if column.name == "smile_gap" else "jaw_open"
        return np.abs(result.column(shown) - result.column(f"{shown}_wanted"))
    return result.column(column.name)


def entry(interval: metrics.Interval) -> Entry:
    """An interval as it stands in report.json."""
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"count": interval.count}


def compare(new: Result, old: Result, seed: int = 0) -> dict[str, Entry]:
    """Column -> the paired difference new - old on the same items, {mean, low, high, count, better}, as printed.

    `better` is True or False where the interval leaves out zero, else None. A metric that another network judged for the other has no
    difference. Raises ValueError where the two did not see the same items with the same noise and identity judge.
    """
    if _key(new) != _key(old) or _network(new, "identity") != _network(old, "identity"):
        raise ValueError("two evaluations are compared on the same items, seeds and judge")
    return {c.name: _difference(c, new, old, seed) for c in COLUMNS}


def _key(result: Result) -> list[tuple[Any, ...]]:
    return [tuple(row[k] for k in ("task", "seed", *ROLES)) for row in result.rows]


def _network(result: Result, role: str) -> tuple[str, str]:
    """Name and weights of a judge, whatever its standing toward the method it judged."""
    line = result.judges.get(role, "")
    return line.split(" (")[0], line.rpartition("weights ")[2]


def _difference(column: Column, new: Result, old: Result, seed: int) -> Entry:
    gap = _gap(column, new, old, seed).scaled(column.scale)
    if column.judge and _network(new, column.judge) != _network(old, column.judge):
        gap = metrics.Interval(math.nan, math.nan, math.nan, 0)
    return entry(gap) | {"better": _verdict(column, gap)}


def _gap(column: Column, new: Result, old: Result, seed: int) -> metrics.Interval:
    """new - old, both of the same resampled items."""
    if (statistic := column.statistic) is None:
        return metrics.paired_difference(values(new, column), values(old, column), seed=seed)
    both = [*_operands(new, column), *_operands(old, column)]
    return metrics.bootstrap_statistic(lambda *x: statistic(*x[: len(column.of)]) - statistic(*x[len(column.of) :]), *both, seed=seed)


def _verdict(column: Column, gap: metrics.Interval) -> bool | None:
    side = 1 if gap.low > 0 else -1 if gap.high < 0 else 0
    return None if side == 0 else (side > 0) == (column.better == "higher")


# --- parts of a list ----------------------------------------------------------------------------------------------------


def by_word(result: Result, seed: int = 0) -> list[dict[str, Any]]:
    """The tree of words, a row a family, a cluster and a word: which labels serve it, how, of how many items, and their figures."""
    known: dict[tuple[int, ...], dict[str, Entry]] = {}
    rows = []
    for branch in words.branches([row["emotion"] or "" for row in result.rows]):
        figures = known.setdefault(branch.items, _of_part(result, np.array(branch.items, dtype=int), seed)) if branch.items else {}
        rows.append({**branch._asdict(), "items": len(branch.items), **figures})
    return rows


def by_attribute(result: Result, attributes: Sequence[slices.Attribute], seed: int = 0) -> list[dict[str, Any]]:
    """A row a slice: its figures, and how each differs from the items outside the slice.

    `better` is None where the difference is within chance, or one of the sides has fewer than FEW items.
    """
    rows = []
    for attribute in attributes:
        kinds = attribute.sorted(result.rows)
        for value, inside in kinds.items() if len(kinds) > 1 else ():
            enough = min(inside.sum(), (~inside).sum()) >= slices.FEW
            gaps = {}
            for name in SHORT:
                gap = slices.gap(values(result, BY_NAME[name]), inside, seed=seed).scaled(BY_NAME[name].scale)
                gaps[name] = entry(gap) | {"better": _verdict(BY_NAME[name], gap) if enough else None}
            head = {"attribute": attribute.title, "how": attribute.how, "proxy": attribute.proxy, "value": value}
            rows.append({**head, "items": int(inside.sum()), "gaps": gaps, **_of_part(result, np.flatnonzero(inside), seed)})
    return rows


def _of_part(result: Result, items: np.ndarray, seed: int) -> dict[str, Entry]:
    chosen = {name: (values(result, BY_NAME[name])[items], BY_NAME[name].scale) for name in SHORT}
    return {name: entry(metrics.bootstrap_interval(v, seed=seed).scaled(scale)) for name, (v, scale) in chosen.items()}


# --- the whole ----------------------------------------------------------------------------------------------------------


def report_of(results: Sequence[Result], title: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that a report says, as JSON-like data. The method of the first result is ours; every result may be of another task or method."""
    ours = results[0].method if results else ""
    own = {r.task: r for r in results if r.method == ours}
    methods: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for r in results:
        rows = _applicable(r)
        methods.setdefault(r.task, {})[r.method] = _summary_of(replace(r, rows=rows), 0)
        if r.method != ours and r.task in own:
            places = {row["item"] for row in rows}
            same = [row for row in own[r.task].rows if row["item"] in places]
            differences.setdefault(r.task, {})[r.method] = compare(replace(own[r.task], rows=same), replace(r, rows=rows))
    swaps = {task: r for task, r in own.items() if task != "reconstruct"}
    return {
        "title": title,
        "facts": dict(facts),
        "method": ours,
        "tasks": {task: methods[task][ours] for task in own},
        "methods": methods,
        "differences": differences,
        "words": {task: by_word(r) for task, r in swaps.items()},
        "slices": {task: by_attribute(r, _attributes(r)) for task, r in swaps.items()},
        "quoted": [q._asdict() for q in quoted.QUOTED],
        "quoted_protocol": list(quoted.PAPER_PROTOCOL),
    }


def _applicable(result: Result) -> list[dict[str, Any]]:
    """The rows to count: of the ceiling those it has a photograph for, since a person with a single one is no failure of it."""
    return [row for row in result.rows if row["found"]] if result.method == CEILING else result.rows


def _attributes(result: Result) -> list[slices.Attribute]:
    if result.outputs is None:
        return []
    used = {getattr(item, role) for item in result.outputs.pairs.items for role in ROLES}
    return slices.attributes(result.outputs.faces, used)
