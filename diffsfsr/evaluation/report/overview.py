"""The paper's Table 1 over several reports of one model: every task and data set that has been measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffsfsr import tables
from diffsfsr.evaluation.report import quoted
from diffsfsr.evaluation.report.files import read_report
from diffsfsr.evaluation.report.page import page
from diffsfsr.evaluation.report.sections import QUOTED, meanings, table_1
from diffsfsr.evaluation.report.sheets import Section, markdown


def write_overview(directory: Path, folders: Sequence[Path], title: str = "DiffSFSR beside the paper") -> None:
    """Write overview.md and overview.html under `directory` from the folders of whole reports, one or more, all of one model.

    Raises NotReady where a report is not whole.
    """
    reports = [read_report(folder) for folder in folders]
    measured: dict[str, dict[str, Any]] = {}
    for report in reports:
        measured.setdefault(str(report["facts"].get("data set", "this data set")), {}).update(report["methods"])
    sheets = [table_1(measured, reports[0]["method"])]
    read = [(f"Report {i}", str(folder.name)) for i, folder in enumerate(folders, 1)]
    parts = [
        Section("paper", "The paper's Table 1", [QUOTED], sheets, terms=[("Protocol", line) for line in quoted.PAPER_PROTOCOL]),
        Section("meaning", "What the figures mean", terms=meanings(reports[0])),
        Section("facts", "What was read", terms=read),
    ]
    tables.write_text(directory / "overview.md", markdown(title, parts))
    tables.write_text(directory / "overview.html", page(title, parts))
