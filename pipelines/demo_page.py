"""The demo's page: what was made, how good the model is by its own record and in this run, the verdicts, and the time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr import tables
from diffsfsr.evaluation.report.columns import BY_NAME, TITLES
from diffsfsr.evaluation.report.figures import Figure, Shown
from diffsfsr.evaluation.report.page import page
from diffsfsr.evaluation.report.sheets import Cell, Line, Section, Sheet
from diffsfsr.face.images import read
from diffsfsr.portrait.card import NAMED, SHOWN, judged, words_of
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.provenance import verify
from diffsfsr.portrait.shipped import evaluation

Measured = dict[str, Mapping[str, Any]]  # task -> metric -> {mean, low, high, count}, and who judged


@dataclass
class Story:
    """What there is to tell, which grows as the demo goes on."""

    model: Path | None  # the shipped model's folder; None: the demo trains one from nothing
    shown: Sequence[Figure] = ()  # made at once by the shipped model
    requests: Sequence[Any] = ()  # that were queued, as they ended
    measured: dict[str, Measured] = field(default_factory=dict)  # "model, data set" -> figures of this run
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)  # answers of `run promote`
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> time
    done: bool = False


def write(path: Path, story: Story) -> None:
    """The whole page, or nothing; it needs no other file."""
    made = page("DiffSFSR demo", [part for part in _sections(story) if part.text or part.figures or part.sheets or part.terms])
    tables.write_text(path, made)


def measured(reports: Iterable[Path]) -> Measured:
    """The figures of a model on one data set, by the report.json of each task."""
    found: Measured = {}
    for report in reports:
        found |= json.loads(report.read_text(encoding="utf-8"))["tasks"]
    return found


# --- sections ---------------------------------------------------------------------------------------------------------

_SHIPPED = (
    "Made by the model that comes with this package, offline and at once. It is small: it draws faces of 128 pixels, knows a person by "
    "one photograph, and was trained by this project on public photographs of other people. Expect a likeness and an expression, not a "
    "double; its card, diffsfsr/starter/README.md, says what it learned from, how good it is and what it cannot do. All portraits here "
    "are synthetic."
)
_FROM_NOTHING = (
    "The model behind these portraits was trained from nothing on a handful of photographs, in this run. They show that every stage works, "
    "not what the method can do: expect blurred faces."
)
_LIFE = (
    "The shipped model was registered and judged, trained on with the photographs of this run for a minute or two, and what came out was "
    "measured on the same items and put before the gates as its challenger. So little on a handful of faces seldom makes a model better, "
    "and then a refusal is what gates are for."
)
_FIGURES = (
    "People held out from training; each figure is a mean with its 95 % interval over items. Of the few items of a demo the intervals are "
    "wide: the table shows how the stage works, not how good a model is."
)


def _sections(story: Story) -> list[Section]:
    meaning = [(BY_NAME[name].title, BY_NAME[name].meaning) for name in SHOWN] if story.model or story.measured else []
    about = [] if story.done else ["The rest is still being made: this page is written again when it is done."]
    shipped = [_SHIPPED] if story.model else [_FROM_NOTHING]
    requested = ["Queued, and made by the model in service: the champion, where one passed its gates."] if story.requests else []
    return [
        Section("portraits", "Portraits", [*shipped, *about], figures=story.shown),
        Section("requests", "Three requests", requested, figures=[figure for one in story.requests for figure in _request(one)]),
        Section("shipped", "How good the shipped model is", *_record(story.model)),
        Section("run", "Measured in this run", *_life(story)),
        Section("meaning", "What the figures mean", terms=meaning),
        Section("verdicts", "At the gates", *_verdicts(story.verdicts)),
        Section("time", "How long it took", sheets=[_times(story.seconds)]),
        Section("now", "What there is now", terms=[(name, str(value)) for name, value in story.facts.items()]),
    ]


def _record(model: Path | None) -> tuple[list[str], list[Sheet]]:
    """What the evaluation that is shipped with a model says."""
    if model is None:
        return [], []
    record = evaluation(model)
    told = [_judged(name, tasks) for name, tasks in record["measured"].items()]
    sheets = [_sheet(record["measured"]), *(_by_word(dataset, found) for dataset, found in record["named"].items())]
    return [f"Measured before it was shipped, on people that it was not trained on. {' '.join(told)}"], sheets


def _life(story: Story) -> tuple[list[str], list[Sheet]]:
    if not story.measured:
        return [], []
    name, tasks = next(iter(story.measured.items()))
    return [*([_LIFE] if story.model else []), _FIGURES, _judged(name, tasks)], [_sheet(story.measured)]


def _judged(name: str, tasks: Measured) -> str:
    columns = next(iter(tasks.values()))
    independent = "" if columns.get("independent", True) else " Who it is was judged by a network that the model has learned from."
    return f"{name}: {judged(columns)}{independent}"


def _sheet(found: Mapping[str, Measured]) -> Sheet:
    """A row a model, data set and task, a column a metric."""
    every = [(name, task, columns) for name, tasks in found.items() for task, columns in tasks.items()]
    rows = {f"{name}, {TITLES.get(task, task).lower()} ({columns['items']} items)": columns for name, task, columns in every}
    shown = [BY_NAME[name] for name in SHOWN if any(_entry(columns, name) != "-" for columns in rows.values())]
    header = ["Task", *(f"{column.title}, {column.better} is better" for column in shown)]
    lines = [Line("", [name, *(_entry(columns, column.name) for column in shown)]) for name, columns in rows.items()]
    return Sheet("Means with 95 % intervals", header, lines, bars=True)


def _by_word(dataset: str, found: Mapping[str, Any]) -> Sheet:
    """A row a word: how often a classifier takes its portraits for its family, beside photographs."""
    kinds = [kind for kind in NAMED if any(_entry(found, f"{word}_{kind}") != "-" for word in words_of(found))]
    lines = [Line("", [word, *(_entry(found, f"{word}_{kind}") for kind in kinds)]) for word in words_of(found)]
    head = ["Word", *(NAMED[kind] for kind in kinds)]
    return Sheet(f"{dataset}: taken for the family of the word by {found['classifier']}", head, lines, bars=True)


def _entry(columns: Mapping[str, Any], name: str) -> Cell:
    found = columns.get(name)
    return found if isinstance(found, Mapping) and found.get("mean") is not None else "-"


def _verdicts(answers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Sheet]]:
    """A sentence and a table of each answer of `run promote`, whose comparison is Markdown: a sentence, then a table."""
    told, sheets = [], []
    for answer in answers:
        head, *rest = answer["comparison"].splitlines()
        outcome = "promoted: it is the champion" if answer["promoted"] else "refused: the champion stays as it was"
        told.append(f"{head} Version {answer['version']} was {outcome}.")
        header, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in rest if line.startswith("|")] or [[], []]
        lines = [Line("ours" if "REFUSED" in row else "", row) for row in rows]
        sheets += [Sheet(f"Version {answer['version']}, gate by gate", header, lines, shut=True)] if rows else []
    return told, sheets


def _times(seconds: Mapping[str, float]) -> Sheet:
    rows = {**seconds, "all of it": sum(seconds.values())}
    return Sheet("Seconds by stage", ["Stage", "Seconds"], [Line("", [name, f"{value:.0f}"]) for name, value in rows.items()])


# --- pictures ---------------------------------------------------------------------------------------------------------


def portrait(path: Path) -> Figure:
    """Selfie, scene, word and result of a finished portrait, by its sidecar; then both faces from near."""
    record = verify(path)
    order, box = Order.from_payload(record["order"]), record["scene_face"]["box"]
    scene, made = read(Path(order.scene)), read(path)
    asked = "the scene's own expression" if order.task == "identity" else f'"{order.emotion}"'
    row = [
        *(Shown(read(Path(selfie)), f"selfie {i}", "who: the selfie") for i, selfie in enumerate(order.selfies, 1)),
        Shown(scene, "the scene", "where: the scene"),
        Shown(made, f"the portrait: {asked}", "the portrait"),
        Shown(near(scene, box), "the scene's face", "the scene's face"),
        Shown(near(made, box), f"the portrait's face: {asked}", f"the portrait's: {asked}"),
    ]
    note = f"{_resolved(record['expression'])}{record['timings_seconds']['total']:.1f} s, seed {order.seed}, {_by(record)}."
    return Figure(path.stem, f"{TITLES[order.task]}: {asked}", note, (), [row], large=True)


def words(portraits: Sequence[Path]) -> Figure:
    """One person in one scene, word by word."""
    records = [verify(path) for path in portraits]
    order, box = Order.from_payload(records[0]["order"]), records[0]["scene_face"]["box"]
    given = [
        Shown(read(Path(order.selfies[0])), "the selfie", "who: the selfie"),
        Shown(near(read(Path(order.scene)), box), "the scene's face", "the scene's face"),
    ]
    row = [_word(path, record) for path, record in zip(portraits, records, strict=True)]
    painted = {record["timings_seconds"]["generate"] for record in records}  # those painted together have it in common
    seconds = sum(painted) + sum(record["timings_seconds"]["paste"] for record in records)
    note = f"Painted in {seconds:.1f} s from one noise, only the word differs; {_by(records[0])}."
    return Figure("words", f"One person, {len(row)} words", note, (), [given, row], large=True)


def _word(path: Path, record: Mapping[str, Any]) -> Shown:
    word = record["order"]["emotion"]
    return Shown(near(read(path), record["scene_face"]["box"]), f"the portrait's face: {word}", f"{word} ({record['expression']['how']})")


def strip(record: Mapping[str, Any], frames: Sequence[np.ndarray]) -> Figure:
    """A travel's faces from near; its frames have the scene's size."""
    names: dict[int, str] = {}
    for station, name in zip(record["expression"]["stations"], record["order"]["through"], strict=True):
        names[station["frame"]] = name
    columns, box = [names.get(i, "") for i in range(len(frames))], record["scene_face"]["box"]
    row = [
        Shown(near(frame, box), f"frame {i}: {name or 'on the way'}")
        for i, (frame, name) in enumerate(zip(frames, columns, strict=True), 1)
    ]
    note = f"{len(frames)} frames in {record['timings_seconds']['total']:.1f} s, on a way over the sphere of expressions; {_by(record)}."
    return Figure("travel", f"A travel: {' to '.join(record['order']['through'])}", note, columns, [row])


def _request(request: Any) -> list[Figure]:
    if request.state == "done":
        return [portrait(Path(request.result["portrait"]))]
    return [Figure(request.id, f"{request.payload['emotion']}: {request.state}", str(request.reason), (), (), large=True)]


def near(image: np.ndarray, box: Mapping[str, int]) -> np.ndarray:
    """The square around a face, as far as the picture (HWC uint8) reaches."""
    half = round(0.85 * max(box["right"] - box["left"], box["bottom"] - box["top"]))
    y, x = (box["top"] + box["bottom"]) // 2, (box["left"] + box["right"]) // 2
    return image[max(y - half, 0) : y + half, max(x - half, 0) : x + half]


def _resolved(expression: Mapping[str, Any] | None) -> str:
    if not expression:
        return ""
    labels = " and ".join(expression["labels"])
    return f'"{expression["word"]}" is shown by a face labelled {labels} ({expression["how"]}), one of {expression["among"]}. '


def _by(record: Mapping[str, Any]) -> str:
    version = record["model_version"]
    return f"by {version if not version.isdecimal() else f'version {version}'}"
