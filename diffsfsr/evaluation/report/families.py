"""The report on words: how each resolves, and whether outputs are named as what was asked for as often as photographs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr import tables
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.families import KINDS, ROWS, Asked, Row
from diffsfsr.evaluation.report.figures import Figure, Shown
from diffsfsr.evaluation.report.numbers import entry
from diffsfsr.evaluation.report.sheets import Line, Section, Sheet

AIM = 0.75  # of the photographs' share
TASK, TOGETHER = "words", "together"
_PEOPLE = 6  # of the picture
_TITLES = {
    "output": "Outputs named so, %",
    "photograph": "Labelled photographs, %",
    "reference": "Reference photographs, %",
    "ratio": "Outputs over photographs",
    "ratio_reference": "Outputs over references",
}
_ABOUT = (
    "For each word the model made portraits of unseen people in unseen scenes, its expression looked up as for a portrait. A classifier "
    "that neither conditions nor trains the model says which of seven expressions it sees; it counts where that is of the word's family. "
    "It errs on photographs too, and their labels are noisy: the outputs' share is read beside the photographs'. Aim: a ratio of {aim:g}."
)
_RESOLVED = "exact: faces with that label; cluster and family: the nearest labels up the tree; refused: nothing may serve it."


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Word -> kind, `ratio` and `ratio_reference` -> {mean, low, high, count}: shares in per cent. TOGETHER is the mean over the words."""
    hits: dict[str, dict[str, np.ndarray]] = {}
    for word in dict.fromkeys(row["word"] for row in rows):
        hits[word] = {kind: np.array([float(r["hit"]) for r in rows if (r["word"], r["kind"]) == (word, kind)]) for kind in KINDS}
    groups = {word: [each] for word, each in hits.items()} | {TOGETHER: list(hits.values())}
    return {name: _of({kind: [each[kind] for each in group] for kind in KINDS}, seed) for name, group in groups.items()}


def _of(parts: Mapping[str, Sequence[np.ndarray]], seed: int) -> dict[str, Any]:
    found = {kind: entry(metrics.balanced_share(parts[kind], seed=seed).scaled(100)) for kind in KINDS}
    found["ratio"] = entry(metrics.balanced_ratio(parts["output"], parts["photograph"], seed=seed))
    found["ratio_reference"] = entry(metrics.balanced_ratio(parts["output"], parts["reference"], seed=seed))
    return found


def write_report(
    directory: Path,
    rows: Sequence[Row],
    asked: Sequence[Asked],
    resolved: Sequence[Mapping[str, Any]],
    title: str,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write report.md, report.html, items.parquet, grid-words.png and, last, report.json, which is returned.

    Its `tasks` hold one, "words", with an entry for each word and figure ("joy_output", "joy_ratio", "together_ratio", ...); `resolution`
    says how every word resolves.
    """
    from diffsfsr.evaluation.report.page import page
    from diffsfsr.evaluation.report.sheets import markdown
    from diffsfsr.face.images import write_image

    found = figures(rows)
    flat = {f"{word}_{name}": value for word, each in found.items() for name, value in each.items()}
    report = {"title": title, "facts": dict(facts), "tasks": {TASK: flat}, "resolution": list(resolved)}
    grid = picture(asked, rows)
    parts = [
        Section("words", "Named as what was asked for", [_ABOUT.format(aim=AIM)], [_named(found, resolved), _taken_for(rows)], [grid]),
        Section("resolution", "How the words resolve", [_counted(resolved)], _resolved(resolved)),
        Section("facts", "How this was measured", terms=[(str(name), str(value)) for name, value in facts.items()]),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").unlink(missing_ok=True)
    tables.write_text(directory / "report.md", markdown(title, parts))
    tables.write_text(directory / "report.html", page(title, parts))
    tables.write(directory / "items.parquet", tables.from_rows(rows, ROWS), tables.fingerprint(title, facts))
    write_image(directory / "grid-words.png", grid.sheet())
    tables.write_json(directory / "report.json", report)
    return report


def _named(found: Mapping[str, Mapping[str, Any]], resolved: Sequence[Mapping[str, Any]]) -> Sheet:
    served = {row["word"]: f"{row['how']}: {', '.join(row['labels'])} ({row['faces']} faces)" for row in resolved}
    lines = [
        Line(
            "part" if word == TOGETHER else "",
            [word, served.get(word, ""), str(each["output"]["count"]), *(each[name] for name in _TITLES)],
        )
        for word, each in found.items()
    ]
    return Sheet("The family asked for, by word", ["Word", "Served by", "n", *_TITLES.values()], lines, bars=True)


def _taken_for(rows: Sequence[Row]) -> Sheet:
    """What the outputs and the photographs of each word were taken for."""
    labels = sorted({row["named"] for row in rows})
    lines = []
    for word, kind in dict.fromkeys((row["word"], row["kind"]) for row in rows):
        taken = Counter(row["named"] for row in rows if (row["word"], row["kind"]) == (word, kind))
        lines.append(Line("ours" if kind == "output" else "", [f"{word} ({kind})", *(str(taken[label]) for label in labels)]))
    return Sheet("What they were taken for", ["Asked for", *(label or "no face found" for label in labels)], lines, shut=True)


def _counted(resolved: Sequence[Mapping[str, Any]]) -> str:
    ways = Counter(row["how"] or "refused" for row in resolved)
    return f"Of {len(resolved)} words {', '.join(f'{n} {way}' for way, n in ways.items())}. {_RESOLVED}"


def _resolved(resolved: Sequence[Mapping[str, Any]]) -> list[Sheet]:
    sheets = []
    for primary in dict.fromkeys(row["primary"] for row in resolved):
        part = [row for row in resolved if row["primary"] == primary]
        lines = [
            Line("", [row["word"], row["secondary"], row["how"] or "refused", ", ".join(row["labels"]), str(row["faces"])]) for row in part
        ]
        sheets.append(Sheet(primary or "Outside the tree", ["Word", "Cluster", "How", "Labels", "Faces"], lines, shut=True))
    return sheets


def picture(asked: Sequence[Asked], rows: Sequence[Row]) -> Figure:
    """The first items of the list, a row an item: scene, identity, and every word with what it was taken for."""
    pairs, faces = asked[0].outputs.pairs, asked[0].outputs.faces
    named = {(row["word"], row["item"]): row["named"] or "no face" for row in rows if row["kind"] == "output"}
    shown = []
    for i in range(min(_PEOPLE, len(pairs))):
        given = [Shown(faces.crops[getattr(pairs.items[i], role)], f"{role.capitalize()} of item {i}") for role in ("scene", "identity")]
        made = [Shown(a.outputs.picture(i), f"{a.word}, item {i}: {named[a.word, i]}", named[a.word, i]) for a in asked]
        shown.append(given + made)
    note = "The first items of the list, which no one has chosen; under each what the classifier takes it for."
    return Figure("grid-words", "One person, one word after another", note, ["Scene", "Identity", *(a.word for a in asked)], shown)
