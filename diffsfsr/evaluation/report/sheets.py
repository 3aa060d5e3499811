"""The forms that a report is laid out in, before they become Markdown (here) or HTML (page.py).

A sheet's cell is text, or an entry {mean, low, high, count} with its interval. `kind` tells rows apart: ours, bound (floor and ceiling),
quoted (the paper's figures, never measured here), part (a heading within the table), or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffsfsr.evaluation.report.figures import Figure

Entry = Mapping[str, Any]
Cell = str | Entry


class Line(NamedTuple):
    kind: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Sheet:
    caption: str
    header: Sequence[str]
    lines: Sequence[Line]
    note: str = ""
    groups: Sequence[tuple[str, int]] = ()  # a row above the header: text and how many columns it spans
    shut: bool = False  # folded away until asked for
    bars: bool = False  # draw each entry on its column's scale


@dataclass(frozen=True)
class Section:
    name: str
    heading: str
    text: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    figures: Sequence[Figure] = ()
    terms: Sequence[tuple[str, str]] = field(default=())


# --- as Markdown --------------------------------------------------------------------------------------------------------


def markdown(title: str, parts: Sequence[Section]) -> str:
    """The sections without their pictures."""
    lines = [f"# {plain(title)}", ""]
    for part in parts:
        if not (part.text or part.sheets or part.terms):
            continue
        lines += [f"## {part.heading}", "", *(f"{plain(text)}\n" for text in part.text)]
        for sheet in part.sheets:
            lines += [f"### {plain(sheet.caption)}", "", *_table(sheet), "", *([plain(sheet.note), ""] if sheet.note else [])]
        lines += [*(f"- {plain(term)}: {plain(what)}" for term, what in part.terms), ""]
    return "\n".join(lines)


def _table(sheet: Sheet) -> list[str]:
    names = [text for text, span in sheet.groups for _ in range(span)] or [""] * len(sheet.header)
    header = [plain(f"{group}: {text}" if group else text) for group, text in zip(names, sheet.header, strict=True)]
    rows = [[plain(cell) if isinstance(cell, str) else written(cell) for cell in line.cells] for line in sheet.lines]
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def plain(text: Any) -> str:
    """One line of Markdown text: nothing in it opens a tag, a link, a heading or a cell."""
    flat = " ".join(str(text).split())
    return "".join("\\" + c if c in "\\`*_<>[]#|" else c for c in flat)


def written(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if cell["mean"] is None:
        return "-"
    verdict = {True: " better", False: " worse"}.get(cell.get("better"), "")  # type: ignore[arg-type]
    return f"{number(cell['mean'])} [{number(cell['low'])}, {number(cell['high'])}]{verdict}"


def number(value: float | None) -> str:
    """Three digits, at most four behind the point, no exponent."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{round(value, 4) + 0.0:.3g}"  # + 0.0: no minus before a zero
