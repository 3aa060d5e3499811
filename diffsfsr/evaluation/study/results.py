"""What the participants of a human study found: the paper's two questions, its Table 2, and whether the differences mean anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr.errors import InputError
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.study.answers import Key, Reading, read_answers, read_key
from diffsfsr.evaluation.study.page import CHECKS, QUESTIONS, Question
from diffsfsr.evaluation.study.significance import Test, holm, one_way, repeated

FORMS = ("repeated", "one_way")  # of the analysis of variance, as `significance` has them
_SHOWN = 20  # notes
_RESAMPLINGS = 1000


def study_report(files: Sequence[Path], key_file: Path, seed: int = 0) -> dict[str, Any]:
    """What some files of answers say, as JSON-like data; a figure that cannot be computed is None.

    `participants`, `files`, `lines`, `notes`: what was read and what was left out. Who missed a check of attention is left out.
    `methods`: method -> question -> mean, low, high (95 %, participants resampled), variance, count. Yes-or-no questions are in per
    cent, and their variance is over items, as the paper's appears to be; that of a mark from 1 to 5 is over answers.
    `anova`: question -> form -> the test over all methods.
    `pairwise`: question -> other method -> the difference ours - theirs by participant, and for each form p and p corrected by Holm
    for all the comparisons of the table.
    Raises InputError where no answer is left.
    """
    key = read_key(key_file)
    reading = read_answers(files, key)
    people, standing = _standing(reading, key)
    if not people:
        why = "; ".join(reading.notes[:3]) or ("every participant missed a check" if standing["all"] else "they are empty")
        raise InputError(f"no answer to study {key.study} is left of {len(files)} file(s): {why}")
    marks = {q.name: _marks(reading, key, people, q.name) for q in QUESTIONS}
    return {
        **{"study": key.study, "task": key.task, "ours": key.ours, "made_nothing": dict(key.made_nothing)},
        **{"participants": standing, "files": reading.files, "lines": reading.lines, "notes": reading.notes[:_SHOWN]},
        "methods": {m: {q.name: _figures(marks[q.name][:, :, i], q, seed) for q in QUESTIONS} for i, m in enumerate(key.methods)},
        "anova": {name: {form: _plain(vars(test)) for form, test in _tests(answers).items()} for name, answers in marks.items()},
        "pairwise": _pairwise(marks, key, seed),
    }


# --- whose answers count --------------------------------------------------------------------------------------------------


def _standing(reading: Reading, key: Key) -> tuple[list[str], dict[str, int]]:
    """(the participants whose answers count, how many there are of each kind)."""
    everyone = sorted({person for person, _ in reading.answers})
    counted = [person for person in everyone if _is_attentive(person, reading, key)]
    full = {person: 0 for person in everyone}
    for (person, _), answer in reading.answers.items():
        full[person] += len(answer.values) == len(QUESTIONS)
    partial = sum(n < len(key.owners) for n in full.values())
    return counted, {"all": len(everyone), "partial": partial, "failed a check": len(everyone) - len(counted), "counted": len(counted)}


def _is_attentive(person: str, reading: Reading, key: Key) -> bool:
    """Whether no check that a participant came to was answered wrongly."""
    for picture, (whose, _) in key.owners.items():
        if whose in CHECKS and (answer := reading.answers.get((person, picture))):
            question, least, most = CHECKS[whose]
            if not least <= answer.values.get(question, least) <= most:
                return False
    return True


def _marks(reading: Reading, key: Key, people: Sequence[str], question: str) -> np.ndarray:
    """(participants, items, methods) answers to one question, NaN where there is none."""
    items = sorted({item for _, item in key.owners.values()})
    axes = [{name: i for i, name in enumerate(names)} for names in (people, items, key.methods)]
    marks = np.full([len(axis) for axis in axes], np.nan)
    for (person, picture), answer in reading.answers.items():
        whose, item = key.owners[picture]
        if person in axes[0] and whose in axes[2] and question in answer.values:
            marks[axes[0][person], axes[1][item], axes[2][whose]] = answer.values[question]
    return marks


# --- figures --------------------------------------------------------------------------------------------------------------


def _figures(marks: np.ndarray, question: Question, seed: int) -> dict[str, Any]:
    """(participants, items) answers about one method -> its figures."""
    given, scale = marks[~np.isnan(marks)], _scale(question)
    by_item = [own[~np.isnan(own)].mean() for own in marks.T if not np.isnan(own).all()]
    spread = np.array(by_item) if question.kind == "yes" else given
    low, high = _interval(marks, seed)
    mean, variance = given.mean() if len(given) else math.nan, spread.var(ddof=1) if len(spread) > 1 else math.nan
    return _plain({"mean": mean * scale, "low": low * scale, "high": high * scale, "variance": variance * scale, "count": len(given)})


def _scale(question: Question) -> float:
    return 100.0 if question.kind == "yes" else 1.0  # per cent


def _interval(marks: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, whole participants resampled; NaN for fewer than two of them."""
    counts = (~np.isnan(marks)).sum(axis=1)
    sums, counts = np.nansum(marks, axis=1)[counts > 0], counts[counts > 0]
    if len(sums) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_RESAMPLINGS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _by_person(marks: np.ndarray) -> np.ndarray:
    """(participants, items, methods) -> (n, methods): each participant's means over the items of which they judged every method."""
    whole = ~np.isnan(marks).any(axis=2)
    means = [own[seen].mean(axis=0) for own, seen in zip(marks, whole, strict=True) if seen.any()]
    return np.array(means).reshape(-1, marks.shape[2])


def _tests(marks: np.ndarray) -> dict[str, Test]:
    """Form -> the analysis of variance of (participants, items, methods) answers."""
    groups = [answers[~np.isnan(answers)] for answers in marks.reshape(-1, marks.shape[2]).T]
    return {"repeated": repeated(_by_person(marks)), "one_way": one_way(groups)}


def _pairwise(marks: Mapping[str, np.ndarray], key: Key, seed: int) -> dict[str, dict[str, Any]]:
    """Each other method against ours, two at a time: F is then the square of Student's t, paired or not."""
    ours = key.methods.index(key.ours)
    pairs = {(q, other): marks[q.name][:, :, [ours, i]] for q in QUESTIONS for i, other in enumerate(key.methods) if i != ours}
    tests = {place: _tests(pair) for place, pair in pairs.items()}
    corrected = {form: dict(zip(tests, holm([test[form].p for test in tests.values()]), strict=True)) for form in FORMS}
    found: dict[str, dict[str, Any]] = {q.name: {} for q in QUESTIONS}
    for (q, other), pair in pairs.items():
        means = _by_person(pair)
        gap = metrics.paired_difference(means[:, 0], means[:, 1], seed=seed).scaled(_scale(q))
        entry = {"difference": gap.mean, "low": gap.low, "high": gap.high}
        for form in FORMS:
            entry |= {f"{form}_p": tests[q, other][form].p, f"{form}_holm": corrected[form][q, other]}
        found[q.name][other] = _plain(entry)
    return found


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as JSON has them; what is not finite is None."""
    numbers = {name: value.item() if isinstance(value, np.generic) else value for name, value in figures.items()}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in numbers.items()}


# --- text -----------------------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: who was counted, the paper's two questions, its Table 2 with p-values, the analyses of variance."""
    yes, five = ([q for q in QUESTIONS if q.kind == kind] for kind in ("yes", "five"))
    counted = [f"- {what}: {', '.join(f'{name} {n}' for name, n in report[what].items())}" for what in ("participants", "files", "lines")]
    note = (
        "In brackets 95 % intervals, participants resampled. p is against our method: by repeated measures over participants, then "
        "one-way over answers; each raw, then corrected by Holm for all comparisons of both tables. Variances of shares are over items, "
        "those of marks over answers."
    )
    parts = [f"# Human study {report['study']}, task {report['task']}, our method {_escaped(report['ours'])}", "", *counted, ""]
    parts += [
        "## Found consistent, per cent",
        "",
        *_table(report, yes),
        "",
        "## Marks from 1 to 5",
        "",
        *_table(report, five),
        "",
        note,
        "",
    ]
    parts += ["## Analysis of variance over all methods", "", *_anova_table(report), ""]
    lacking = [
        f"- {_escaped(method)} made nothing of {n} items, which nobody was shown" for method, n in report["made_nothing"].items() if n
    ]
    left_out = lacking + [f"- {_escaped(note)}" for note in report["notes"]]
    return "\n".join(parts + (["## Left out", "", *left_out, ""] if left_out else []))


def _table(report: Mapping[str, Any], questions: Sequence[Question]) -> list[str]:
    header = ["Method", *(q.name.removesuffix("_yes") for q in questions)]
    return _rows([header, ["---"] * len(header), *([_escaped(m), *(_cell(report, m, q) for q in questions)] for m in report["methods"])])


def _cell(report: Mapping[str, Any], method: str, question: Question) -> str:
    figures, pair = report["methods"][method][question.name], report["pairwise"][question.name].get(method)
    if figures["mean"] is None:
        return "-"
    text = f"{figures['mean']:.3g}" + ("" if figures["low"] is None else f" [{figures['low']:.3g}, {figures['high']:.3g}]")
    text += "" if figures["variance"] is None else f", variance {figures['variance']:.2g}"
    return text + "".join(f"; p {_p(pair[f'{form}_p'])} ({_p(pair[f'{form}_holm'])})" for form in (FORMS if pair else ()))


def _anova_table(report: Mapping[str, Any]) -> list[str]:
    header = ["Question", "repeated measures", "p", "epsilon (Greenhouse-Geisser)", "p corrected for it", "one-way", "p"]
    rows = []
    for name, forms in report["anova"].items():
        over, one = (forms[form] for form in FORMS)
        epsilon = "-" if over["f"] is None else f"{over['epsilon']:.2f}"
        rows.append([name, _f(over), _p(over["p"]), epsilon, _p(over["corrected"]), _f(one), _p(one["p"])])
    return _rows([header, ["---"] * len(header), *rows])


def _f(test: Mapping[str, Any]) -> str:
    return "-" if test["f"] is None else f"F({test['between']:g}, {test['within']:g}) = {test['f']:.3g}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "\\`*_<>[]#|" else c for c in " ".join(str(text).split()))
