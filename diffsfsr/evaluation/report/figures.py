"""The pictures of a report: the worst items first, then the first of the list by every method, laid out as the paper's Fig. 5 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsfsr.emotions import word_of
from diffsfsr.evaluation.items import Faces, Item, Picture
from diffsfsr.evaluation.protocols import Result
from diffsfsr.evaluation.report.columns import BY_NAME, ROLES_OF, TITLES

if TYPE_CHECKING:
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.evaluation.methods import Method

WORST, FIRST = 6, 8  # items shown
_UNDER = {
    "id_cosine": "ID\N{NO-BREAK SPACE}{:.2f}",
    "expression_distance": "Exp\N{NO-BREAK SPACE}{:.0f}",
    "blendshape_distance": "bl\N{NO-BREAK SPACE}{:.2f}",
    "mse": "MSE\N{NO-BREAK SPACE}{:.0f}",
    "pose_error": "pose\N{NO-BREAK SPACE}{:.0f}\N{DEGREE SIGN}",
}


@dataclass(frozen=True)
class Shown:
    """A picture with what stands under it and what is read out in its stead; None where there is none."""

    picture: Picture | None = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """Pictures in rows under named columns. `file` is the name of its PNG, without the ending. Those of a `large` one are there to be
    looked at, not compared: as many beside each other as fit, without columns, in whatever shape they have."""

    file: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Shown]]
    large: bool = False

    def sheet(self, cell: int = 96) -> Picture:
        """All of it as one picture without words; grey where there is none."""
        from diffsfsr.face.images import contact_sheet

        none = np.full((cell, cell, 3), 200, np.uint8)
        return contact_sheet([[none if shown.picture is None else shown.picture for shown in row] for row in self.rows], cell)


def standard(results: Sequence[Result]) -> list[Figure]:
    """The figures of every report: what our method (the first) did worst, and for each task a grid of all methods."""
    seen = [r for r in results if r.outputs is not None and r.rows]
    figures, tasks = [], list(dict.fromkeys(r.task for r in seen))
    for task in tasks:
        here = [r for r in seen if r.task == task]
        if task != "reconstruct" and here[0].method == results[0].method:
            figures += worst(here[0])
        figures.append(grid(here, "grid" if task == tasks[0] else f"grid-{task}"))
    return figures


# --- which items --------------------------------------------------------------------------------------------------------


def worst(result: Result, n: int = WORST) -> list[Figure]:
    """The items without a face, those least like their person, those furthest from their expression; each kind only where it has any."""
    found = result.column("found") > 0
    kinds = {
        "worst-failures": ("No face found", "Outputs in which no face was found again", np.flatnonzero(~found)),
        "worst-identity": ("Worst identity", "The outputs least like the person they should show", _order(result, "id_cosine", 1)),
        "worst-expression": (
            "Worst expression",
            "The outputs furthest from the expression asked for",
            _order(result, "expression_distance", -1),
        ),
    }
    figures = []
    for file, (title, note, places) in kinds.items():
        if len(places):
            counted = f"{note}: {min(n, len(places))} of {len(places)}." if file == "worst-failures" else f"{note}, the worst first."
            figures.append(_figure([result], places[:n], f"{file}-{result.task}", f"{title}, {TITLES[result.task].lower()}", counted))
    return figures


def _order(result: Result, name: str, sign: int) -> np.ndarray:
    values = sign * result.column(name)
    return np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]


def grid(results: Sequence[Result], file: str = "grid", n: int = FIRST) -> Figure:
    """The first items of one task's list, not chosen by anybody, as every method made them."""
    task = results[0].task
    like = {"all": "7", "identity": "9", "expression": "8"}.get(task)
    note = "The first items of the list, which no one has chosen." + (f" Laid out as the paper's Fig. {like}." if like else "")
    return _figure(results, range(min(n, len(results[0].rows))), file, TITLES[task], note)


def _figure(results: Sequence[Result], places: Sequence[int] | np.ndarray, file: str, title: str, note: str) -> Figure:
    roles = ROLES_OF[results[0].task]
    rows = []
    for i in map(int, places):
        item, faces = results[0].outputs.pairs.items[i], results[0].outputs.faces  # type: ignore[union-attr]
        given = [_photograph(faces, getattr(item, role), called, i) for role, called in roles.items()]
        rows.append(given + [_output(result, i) for result in results])
    return Figure(file, title, note, [*roles.values(), *(result.method for result in results)], rows)


def _photograph(faces: Faces, i: int, called: str, number: int) -> Shown:
    emotion = faces.label(i, "emotion") if called == "Expression" else ""
    return Shown(faces.crops[i], f"{called} photograph of item {number}" + (f", labelled {emotion}" if emotion else ""), emotion)


def _output(result: Result, i: int) -> Shown:
    values = described(result.rows[i])
    picture = result.outputs.picture(i) if result.outputs else None
    return Shown(picture, f"{result.method}, item {i}: {values}", "" if picture is None else values)


def described(row: dict[str, Any]) -> str:
    """What was measured of an item, as it stands under its picture."""
    if not row["found"]:
        return "no face found"
    shown = [text.format(row[name] * BY_NAME[name].scale) for name, text in _UNDER.items() if row[name] is not None]
    return ", ".join(shown)


# --- pictures that no list asks for -------------------------------------------------------------------------------------


def words(method: Method, faces: Faces, scene: int, people: Sequence[int], expressions: dict[str, int], seed: int = 0) -> Figure:
    """Fig. 5: one scene, every person (faces) with every word's expression (word -> face), all from one noise."""
    shown = [[Shown(faces.crops[i], f"Reference photograph for {word}", "reference") for word, i in expressions.items()]]
    for person in people:
        items = [Item(scene, person, i) for i in expressions.values()]
        made = method(items, [seed] * len(items))
        shown.append([Shown(p, f"{method.name}: the same person, {word}") for word, p in zip(expressions, made, strict=True)])
    given = [Shown(None, ""), *(Shown(faces.crops[i], "Identity photograph", "identity") for i in people)]
    rows = [[first, *row] for first, row in zip(given, shown, strict=True)]
    note = (
        "One person and one scene, one word after another; the first row is the photograph each word was looked up as (the paper's Fig. 5)."
    )
    return Figure("grid-words", "One person, many words", note, ["", *expressions], rows)


def travel(ours: Ours, item: Item, through: dict[str, int], frames: int = 7, seed: int = 0) -> Figure:
    """The expression moves from station to station (word -> face), in even steps; scene, person and noise stay (the paper's Fig. 6)."""
    import torch

    from diffsfsr.model import sampling

    with torch.inference_mode():
        way, near = sampling.travel(ours.expressions(list(through.values())), frames)
        made = ours.painted([item] * frames, way, [seed] * frames)
    names = dict(zip(near, through, strict=True))
    steps = [names.get(i, f"step {i + 1}") for i in range(frames)]
    row = [Shown(picture, f"{ours.name}: travel, {step}") for picture, step in zip(made, steps, strict=True)]
    return Figure("grid-travel", "Expression travel", f"From {' to '.join(through)}, in steps of equal angle.", steps, [row])


def showcase(ours: Ours, items: Sequence[Item], most: int = 8) -> list[Figure]:
    """Words and travel on the first items of a list, with the data set's commonest words; nothing where its labels know fewer than two."""
    faces, found = ours.faces, dict[str, list[int]]()
    for i in range(len(faces.ids)):
        if place := word_of(faces.label(i, "emotion")):
            found.setdefault(place.word, []).append(i)
    common = sorted(found, key=lambda word: (-len(found[word]), word))[:most]
    if len(common) < 2 or not items:
        return []
    chosen = {word: found[word][0] for word in common}
    people = list(dict.fromkeys(item.identity for item in items))[:2]
    first = items[0]
    return [words(ours, faces, first.scene, people, chosen), travel(ours, first, {word: chosen[word] for word in common[:3]})]


def side_by_side(results: Sequence[Result]) -> Figure:
    """Fig. 10: the full model (first) and its ablations on the first items of task `all`."""
    note = (
        "The first items of the list, by the full model and by models trained for as long without one of its parts (the paper's Fig. 10)."
    )
    return _figure(results, range(min(FIRST, len(results[0].rows))), "grid-ablations", "Ablations side by side", note)
