"""A report as one HTML file that needs no other: text escaped, pictures inside as JPEG thumbnails, readable on a phone and offline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from diffsfsr.evaluation.report.figures import Figure, Shown
from diffsfsr.evaluation.report.sheets import Cell, Entry, Line, Section, Sheet, number
from diffsfsr.face.images import encode_jpeg, resize

SIDE, QUALITY = 160, 80  # of a thumbnail: twice the pixels that a phone lays it out in
LARGE = 448  # pixels: the longer side of a picture in a large figure
_SHELL = Path(__file__).with_name("page.html")


def page(title: str, parts: Sequence[Section]) -> str:
    """The whole page, which says its own size."""
    body = "".join(map(_section, parts))
    links = "".join(f'<li><a href="#{escape(part.name)}">{escape(part.heading)}</a></li>' for part in parts)
    shell = Template(_SHELL.read_text(encoding="utf-8"))
    size = f"{(len(body) + 8192) / 1e6:.1f} MB"
    return shell.substitute(title=escape(title), links=links, body=body, size=size)


def _section(part: Section) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in part.text)
    terms = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(what)}</dd></div>" for term, what in part.terms)
    inside = text + "".join(map(_sheet, part.sheets)) + "".join(map(_figure, part.figures)) + (f"<dl>{terms}</dl>" if terms else "")
    return f'<section id="{escape(part.name)}"><h2>{escape(part.heading)}</h2>{inside}</section>'


# --- tables -------------------------------------------------------------------------------------------------------------


def _sheet(sheet: Sheet) -> str:
    caption = escape(sheet.caption)
    groups = "".join(f'<th colspan="{span}" scope="colgroup">{escape(text)}</th>' for text, span in sheet.groups)
    header = "".join(f'<th scope="col">{_heading(text)}</th>' for text in sheet.header)
    scales = [_scale([line.cells[i] for line in sheet.lines]) if sheet.bars else None for i in range(len(sheet.header))]
    lines = "".join(_line(line, scales) for line in sheet.lines)
    head = (f"<tr>{groups}</tr>" if groups else "") + f"<tr>{header}</tr>"
    table = f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{lines}</tbody></table>"
    inside = _scrolled(table, caption) + (f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else "")
    return f"<details><summary>{caption}</summary>{inside}</details>" if sheet.shut else inside


def _scrolled(table: str, name: str) -> str:
    """What is wider than a phone scrolls by itself; a region that scrolls must be reachable by the keyboard."""
    return f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">{table}</div>'


def _heading(text: str) -> str:
    """A metric's name, and an arrow for which way is better."""
    name, _, way = text.rpartition(", ")
    arrow = {"higher is better": "&uarr;", "lower is better": "&darr;"}.get(way)
    return f'{escape(name)} <abbr title="{way}">{arrow}</abbr>' if arrow else escape(text)


def _line(line: Line, scales: Sequence[tuple[float, float] | None]) -> str:
    first, *rest = line.cells
    cells = "".join(_cell(cell, scale) for cell, scale in zip(rest, scales[1:], strict=True))
    name, _, more = (first if isinstance(first, str) else number(first["mean"])).partition(" (")
    aside = f" <small>({escape(more)}</small>" if more else ""
    return f'<tr class="{line.kind or "other"}"><th scope="row">{escape(name)}{aside}</th>{cells}</tr>'


def _cell(cell: Cell, scale: tuple[float, float] | None) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    if cell["mean"] is None:
        return '<td><span class="none" title="no value">-</span></td>'
    verdict = {True: "better", False: "worse"}.get(cell.get("better"), "")  # type: ignore[arg-type]
    said = f' <em class="{verdict}">{verdict}</em>' if verdict else ""
    interval = f"<small>[{number(cell['low'])}, {number(cell['high'])}]</small>"
    return f"<td><b>{number(cell['mean'])}</b>{said} {interval}{_bar(cell, scale)}</td>"


def _scale(cells: Sequence[Cell]) -> tuple[float, float] | None:
    """The range of a column's intervals; None where nothing can be drawn on it."""
    entries = [cell for cell in cells if not isinstance(cell, str) and cell["mean"] is not None]
    low, high = min((e["low"] for e in entries), default=0.0), max((e["high"] for e in entries), default=0.0)
    return (low, high) if high > low else None


def _bar(entry: Entry, scale: tuple[float, float] | None) -> str:
    """The interval as a line and the mean as a dot, on the column's scale."""
    if scale is None:
        return ""
    left, middle, right = (100 * (entry[k] - scale[0]) / (scale[1] - scale[0]) for k in ("low", "mean", "high"))
    return f'<i class="bar" aria-hidden="true" style="--l:{left:.1f}%;--m:{middle:.1f}%;--w:{max(right - left, 1):.1f}%"></i>'


# --- pictures -----------------------------------------------------------------------------------------------------------


def _figure(figure: Figure) -> str:
    title = escape(figure.title)
    inside = "".join(map(_flow, figure.rows)) if figure.large else _scrolled(_grid(figure), title)
    return f'<div class="figure"><h3>{title}</h3><p class="note">{escape(figure.note)}</p>{inside}</div>'


def _grid(figure: Figure) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in figure.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_shown(shown, SIDE)}</td>" for shown in row) + "</tr>" for row in figure.rows)
    return f'<table class="pictures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _flow(row: Sequence[Shown]) -> str:
    return f'<div class="flow">{"".join(_shown(shown, LARGE) for shown in row)}</div>'


def _shown(shown: Shown, side: int) -> str:
    caption = f"<figcaption>{escape(shown.caption)}</figcaption>" if shown.caption else ""
    if shown.picture is None:
        return f'<figure><span class="nothing">{escape("no picture" if shown.alt else "")}</span>{caption}</figure>'
    small = thumbnail(shown.picture, side)
    source, (height, width) = base64.b64encode(encode_jpeg(small, QUALITY)).decode(), small.shape[:2]
    picture = f'<img alt="{escape(shown.alt)}" width="{width}" height="{height}" loading="lazy" src="data:image/jpeg;base64,{source}">'
    return f"<figure>{picture}{caption}</figure>"


def thumbnail(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """HWC uint8, its longer side `side` pixels at most."""
    scale = min(1.0, side / max(picture.shape[:2]))
    return resize(picture, (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))))
