"""The answers of a human study read back: whose they are, and which of them can be used.

Files are what the page saved, JSON or CSV, of as many participants as there are. What cannot be used is left out, counted and named:
damaged files and lines, another study's, the same answer twice.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.evaluation.study.page import QUESTIONS, Question

_LARGEST = 20_000_000  # bytes of a file of answers


@dataclass(frozen=True)
class Key:
    """What a study's key file says: token -> (method or check, item)."""

    study: str
    task: str
    ours: str
    methods: tuple[str, ...]
    owners: Mapping[str, tuple[str, int]]
    made_nothing: Mapping[str, int]


@dataclass(frozen=True)
class Answer:
    """What one participant said of one picture: question -> 1 to 5, or 1 for yes and 0 for no; without those left open."""

    participant: str
    picture: str
    at: str
    values: Mapping[str, float]


@dataclass
class Reading:
    """The answers of all files, one a participant and picture, and what was left out."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("read", "damaged", "foreign"), 0))
    lines: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("read", "damaged", "unknown picture", "repeated", "replaced"), 0))
    notes: list[str] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Of several answers to one picture the latest counts."""
        place = answer.participant, answer.picture
        before = self.answers.get(place)
        if before is not None:
            self.lines["repeated" if before.values == answer.values else "replaced"] += 1
        if before is None or answer.at >= before.at:
            self.answers[place] = answer


# --- reading --------------------------------------------------------------------------------------------------------------


def read_key(path: Path) -> Key:
    """A study's key file. Raises InputError where it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        owners = {token: (str(entry["whose"]), int(entry["item"])) for token, entry in data["pictures"].items()}
        methods = tuple(map(str, dict.fromkeys(data["methods"])))
        if data["ours"] not in methods:
            raise ValueError("its own method is not among the methods")
        return Key(str(data["study"]), str(data["task"]), data["ours"], methods, owners, dict(data["made_nothing"]))
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not the key of a study ({type(error).__name__}): give the .key.json written beside its page"
        ) from error


def find_key(files: Sequence[Path], folders: Sequence[Path]) -> Path:
    """The key, among the *.key.json of some folders, of the study that the first readable file of answers is of.

    Other programs' files of that ending are passed over. Raises InputError where no file can be read, or no key fits.
    """
    studies = dict.fromkeys(str(line.get("study")) for file in files for line in _try_lines(file)[:1])
    unfit: list[InputError] = []
    for path in sorted({path.resolve() for folder in folders for path in folder.glob("*.key.json")}):
        try:
            if read_key(path).study in studies:
                return path
        except InputError as error:
            unfit.append(error)
    if unfit:
        raise unfit[0]
    where = ", ".join(map(str, folders))
    raise InputError(
        f"no key of study {', '.join(studies) or '(no file of answers can be read)'} lies in {where}: put it beside the answers"
    )


def read_answers(files: Sequence[Path], key: Key) -> Reading:
    """The answers in some files. None of them can stop it: what is wrong with each is counted and noted."""
    reading = Reading()
    for path in files:
        try:
            lines = list(_lines(path))
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            reading.files["damaged"] += 1
            reading.notes.append(f"{path.name}: damaged: {' '.join(str(error).split())[:120]}")
            continue
        if not any(line.get("study") == key.study for line in lines):
            reading.files["foreign" if lines else "damaged"] += 1
            reading.notes.append(f"{path.name}: {'of another study' if lines else 'damaged: it holds no answer'}")
            continue
        reading.files["read"] += 1
        for number, line in enumerate(lines, 1):
            _take(reading, line, key, f"{path.name}, answer {number}")
    return reading


def _try_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return list(_lines(path))
    except (OSError, ValueError, RecursionError, csv.Error):
        return []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A file's answers as raw rows with study and participant, whatever its form is. Raises ValueError and others where it has none."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"larger than {_LARGEST // 1_000_000} MB")
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("{"):
        delimiter = ";" if ";" in text.partition("\n")[0] else ","  # as some spreadsheets save it again
        rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
        columns = set(rows.fieldnames or ())
        if not {"study", "participant", "picture"} <= columns:
            raise ValueError("neither JSON nor a CSV with columns study, participant and picture")
        if lost := _left_out(columns):
            raise ValueError(f"a CSV without the column {lost}{did_you_mean(lost, columns)}")
        yield from rows
        return
    data = json.loads(text)
    if not isinstance(data.get("answers"), list):
        raise ValueError("JSON without a list of answers")
    for row in data["answers"]:
        yield {"study": data.get("study"), "participant": data.get("participant"), **(row if isinstance(row, dict) else {})}


def _left_out(names: Container[str]) -> str | None:
    """The first question that is not among some names: with it would go, perhaps, a check of attention."""
    return next((q.name for q in QUESTIONS if q.name not in names), None)


def _take(reading: Reading, line: Mapping[str, Any], key: Key, where: str) -> None:
    participant, picture = line.get("participant"), line.get("picture")
    try:
        if line.get("study") != key.study or not isinstance(participant, str) or not participant or not isinstance(picture, str):
            raise ValueError("it names no participant and picture of this study")
        if lost := _left_out(line):
            raise ValueError(f"it leaves out {lost}: a question left open is null")
        values = {q.name: v for q in QUESTIONS if (v := _value(q, line.get(q.name))) is not None}
    except ValueError as error:
        reading.lines["damaged"] += 1
        reading.notes.append(f"{where}: damaged: {error}")
        return
    if picture not in key.owners:
        reading.lines["unknown picture"] += 1
        reading.notes.append(f"{where}: the study has no picture {picture[:40]!r}")
        return
    reading.lines["read"] += 1
    reading.add(Answer(participant, picture, str(line.get("at") or ""), values))


def _value(question: Question, raw: Any) -> float | None:
    """An answer as a number, None where it was left open. Raises ValueError for one that the page cannot give."""
    if raw is None or raw == "":
        return None
    allowed = {"yes": 1.0, "no": 0.0} if question.kind == "yes" else {str(mark): float(mark) for mark in range(1, 6)}
    text = str(raw).strip().removesuffix(".0")
    if text not in allowed:
        raise ValueError(f"{question.name} is {text[:40]!r}, not one of {', '.join(allowed)}")
    return allowed[text]
