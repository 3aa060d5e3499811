"""The files of a report.

write_report(folder, results)   report.json, report.md, report.html, items.parquet and grid*.png, our method first among the results
read_results(folder)            what was measured of our method, to be compared
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsfsr import tables
from diffsfsr.errors import NotReady
from diffsfsr.evaluation.protocols import ITEMS, Result
from diffsfsr.evaluation.report.figures import Figure, standard
from diffsfsr.evaluation.report.numbers import report_of


def write_report(
    directory: Path,
    results: Sequence[Result],
    title: str = "Evaluation",
    facts: Mapping[str, Any] | None = None,
    figures: Sequence[Figure] = (),
) -> dict[str, Any]:
    """Write report.md, report.html, items.parquet, grid*.png and report.json under `directory`; return what report.json holds.

    The method of the first result is ours, the others stand beside it. `facts` are named strings and numbers, `figures` pictures beyond
    those that every report shows. Each file appears whole, report.json last: where it stands, the report is complete.
    """
    from diffsfsr.evaluation.report.page import page
    from diffsfsr.evaluation.report.sections import sections
    from diffsfsr.evaluation.report.sheets import markdown
    from diffsfsr.face.images import write_image

    report = report_of(results, title, facts or {})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").unlink(missing_ok=True)
    shown = [*standard(results), *figures]
    parts = sections(report, shown)
    tables.write_text(directory / "report.md", markdown(title, parts))
    tables.write_text(directory / "report.html", page(title, parts))
    rows = tables.from_rows((row for r in results for row in r.rows), ITEMS)
    tables.write(directory / "items.parquet", rows, tables.fingerprint(title, facts, report["tasks"]))
    for figure in shown:
        write_image(directory / f"{figure.file}.png", figure.sheet())
    tables.write_json(directory / "report.json", report)
    return report


def read_report(directory: Path) -> dict[str, Any]:
    """What report.json holds. Raises NotReady where the report is not whole."""
    if not (directory / "report.json").exists():
        raise NotReady(f"no whole report in {directory}; run `diffsfsr run evaluate`")
    return json.loads((directory / "report.json").read_text(encoding="utf-8"))


def read_results(directory: Path) -> dict[str, Result]:
    """Task -> what was measured of our method, without pictures, to be compared. Raises NotReady where the report is not whole."""
    report = read_report(directory)
    rows = [row for row in tables.read(directory / "items.parquet").to_pylist() if row["method"] == report["method"]]
    found = {}
    for task, head in report["tasks"].items():
        judged = {name: head[name] for name in ("judges", "independent", "gallery", "fid", "fid_note")}
        found[task] = Result(method=report["method"], task=task, rows=[row for row in rows if row["task"] == task], **judged)
    return found
