"""What a report says, in the order it is read: plain words, tables of our model beside the other methods, parts of it, then the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffsfsr.evaluation.baselines import CEILING, FLOOR
from diffsfsr.evaluation.report import quoted
from diffsfsr.evaluation.report.columns import BY_NAME, COLUMNS, MAIN, SAME, SHORT, TITLES
from diffsfsr.evaluation.report.figures import Figure
from diffsfsr.evaluation.report.sheets import Cell, Entry, Line, Section, Sheet, number, written
from diffsfsr.evaluation.report.slices import FEW

Numbers = Mapping[str, Any]  # of one method on one task, as report.summary gives them
_BOUNDS = {FLOOR: "floor: the scene untouched", CEILING: "ceiling: another photograph of the person"}
_PAPER = {"id": "id_top1", "exp": "expression_distance", "pose": "pose_error", "mse": "mse"}  # the paper's column -> ours


def sections(report: Mapping[str, Any], figures: Sequence[Figure] = ()) -> list[Section]:
    """A report, in the order it is read; sections without anything in them are left out."""
    bad = [f for f in figures if f.file.startswith("worst")]
    made = [
        Section("look", "At a glance", _glance(report)),
        Section("methods", "Against other methods", _reading(report), _comparisons(report)),
        Section("worst", "Worst cases first", figures=bad),
        Section("pictures", "Pictures", figures=[f for f in figures if f not in bad]),
        Section("differences", "Differences, item by item", [_PAIRED], _differences(report)),
        Section("words", "By emotion word", [_WORDS], _words(report)),
        Section("slices", "By who and what is shown", [_SLICES], _slices(report)),
        Section(
            "paper", "Beside the paper's tables", [QUOTED], _paper(report), terms=[("Protocol", line) for line in quoted.PAPER_PROTOCOL]
        ),
        Section("meaning", "What the figures mean", terms=meanings(report)),
        Section("facts", "How this was measured", terms=[(str(k), str(v)) for k, v in report["facts"].items()]),
    ]
    return [s for s in made if s.sheets or s.figures or s.terms or (s.text and s.name == "look")]


# --- words --------------------------------------------------------------------------------------------------------------

_PAIRED = (
    "Our model less the other method, on the same items with the same seeds: an item that is hard is hard for both. Where the 95 % "
    "interval leaves out zero, the difference is marked better or worse."
)
_WORDS = (
    "Items by the label of their expression photograph. A word that no photograph is labelled with is served by its cluster or its "
    "family, as a request for it would be: those rows repeat the figures of the labels named."
)
_SLICES = (
    "The mean inside each slice, and in brackets its 95 % interval; marked where it differs from the items outside the slice by more than "
    "chance. Of twenty such marks one is expected by chance alone. A proxy is read off the photograph by a rule and is often wrong."
)
QUOTED = "Rows marked quoted are the paper's own figures, copied from it and not measured here. The two are not the same measurement:"


def _glance(report: Mapping[str, Any]) -> list[str]:
    said = []
    for task, numbers in report["tasks"].items():
        said += [_said(task, numbers, report["methods"][task])]
    return said or ["Nothing was evaluated."]


def _said(task: str, numbers: Numbers, methods: Mapping[str, Numbers]) -> str:
    failed = numbers["failure_rate"]["mean"]
    start = f"{TITLES[task]}: {counted(numbers['items'])}. "
    end = "Every output had a face." if not failed else f"In {number(failed)} % of the outputs no face was found."
    if task == "reconstruct":
        back = f"Given one photograph for everything, the pixels come back with a PSNR of {written(numbers['psnr'])} dB. "
        return start + (back if numbers["psnr"]["mean"] is not None else "") + end
    beside = [f"chance is {number(numbers['chance_top1'])} %"] if numbers["chance_top1"] else []
    known = {m: told for m, told in _BOUNDS.items() if m in methods and methods[m]["id_top1"]["mean"] is not None}
    beside += [f"{told.split(': ')[1]} {number(methods[m]['id_top1']['mean'])} %" for m, told in known.items()]
    shown = f"The judge took {written(numbers['id_top1'])} % of the outputs for the right person ({'; '.join(beside)}). "
    turned = f"The head is turned {written(numbers['pose_error'])} degrees away from the scene's. "
    return start + shown + (turned if numbers["pose_error"]["mean"] is not None else "") + end


def _reading(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the tables: intervals, judges, chance, and what is missing."""
    heads = report["tasks"]
    chance = [f"{TITLES[t].lower()} {number(n['chance_top1'])} % of {n['gallery']}" for t, n in heads.items() if n["gallery"]]
    short = [f"{TITLES[t].lower()} {n['not_distinct']}" for t, n in heads.items() if n["not_distinct"]]
    said = [
        "Means with 95 % bootstrap intervals over items. Every output was searched for its face again: where none was found, identity "
        "counts as wrong and the distances have no value."
    ]
    if any(not n["independent"] for n in heads.values()):
        said.append("The identity judge is NOT independent: it conditions or trains the model, which flatters identity.")
    said += [f"ID top-1 by chance, of so many source images: {', '.join(chance)}."] if chance else []
    said += [f"Items that lack enough different people: {', '.join(short)}."] if short else []
    return said


def meanings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each metric that was measured, in plain words, with its judge; and what was not, and why."""
    judges: Mapping[str, str] = next((n["judges"] for n in report["tasks"].values()), {})
    shown = [c for c in COLUMNS if any(n[c.name]["mean"] is not None for n in report["tasks"].values())]
    told = [(f"{c.title} ({c.better} is better)", c.meaning + _by(judges, c.judge)) for c in shown]
    missing = [(f"Not measured: {role}", line) for role, line in judges.items() if line.startswith("missing")]
    return told + _fid(report) + missing


def _by(judges: Mapping[str, str], role: str) -> str:
    return f" Judge: {judges[role]}." if role in judges else ""


def _fid(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    meaning = (
        "How far the outputs as a whole are from photographs as a whole (Frechet inception distance); lower is better. It is of "
        "the whole list and has no interval."
    )
    notes = {n["fid_note"] for n in report["tasks"].values() if n["fid"] is not None}
    return [("FID", " ".join([meaning, *sorted(notes)]))] if notes else []


# --- measured -----------------------------------------------------------------------------------------------------------


def _comparisons(report: Mapping[str, Any]) -> list[Sheet]:
    found = []
    for task, methods in report["methods"].items():
        main = SAME if task == "reconstruct" else MAIN
        rest = [c.name for c in COLUMNS if c.name not in main]
        found += [
            _comparison(TITLES[task], methods, main, report["method"]),
            _comparison(f"{TITLES[task]}: further figures", methods, rest, report["method"], fid=True),
        ]
    return found


def _comparison(caption: str, methods: Mapping[str, Numbers], names: Sequence[str], ours: str, fid: bool = False) -> Sheet:
    shown = [BY_NAME[name] for name in names if any(n[name]["mean"] is not None for n in methods.values())]
    header = ["Method", *(f"{c.title}, {c.better} is better" for c in shown)]
    fid = fid and any(n["fid"] is not None for n in methods.values())
    lines = []
    for method in in_order(methods, ours):
        numbers = methods[method]
        distance = ["-" if numbers["fid"] is None else number(numbers["fid"])] if fid else []
        lines.append(Line(_kind(method, ours), [_named(method, numbers), *(numbers[c.name] for c in shown), *distance]))
    return Sheet(
        f"{caption}, {counted(max(n['items'] for n in methods.values()))}",
        [*header, *(["FID, lower is better"] if fid else [])],
        lines,
        bars=True,
    )


def in_order(methods: Iterable[str], ours: str) -> list[str]:
    """The ceiling, ours, the others by name, the floor."""
    rank = {CEILING: 0, ours: 1, FLOOR: 3}
    return sorted(methods, key=lambda m: (rank.get(m, 2), m))


def _kind(method: str, ours: str) -> str:
    return "ours" if method == ours else "bound" if method in _BOUNDS else ""


def _named(method: str, numbers: Numbers | None = None) -> str:
    """A method as it stands in a table; the ceiling with how many items it has a photograph for."""
    of = f", {counted(numbers['items'])}" if numbers and method == CEILING else ""
    return f"{method} ({_BOUNDS[method]}{of})" if method in _BOUNDS else method


def counted(items: int) -> str:
    return f"{items} item" if items == 1 else f"{items} items"


def _differences(report: Mapping[str, Any]) -> list[Sheet]:
    return [gaps_sheet(f"{TITLES[task]}: ours less the other", gaps) for task, gaps in report["differences"].items()]


def gaps_sheet(caption: str, gaps: Mapping[str, Mapping[str, Entry]]) -> Sheet:
    """Paired differences as `report.compare` gives them, a line for each other method."""
    shown = [c for c in COLUMNS if any(g[c.name]["mean"] is not None for g in gaps.values())]
    lines = [Line("bound" if other in _BOUNDS else "", [_named(other), *(g[c.name] for c in shown)]) for other, g in gaps.items()]
    return Sheet(caption, ["Less than", *(c.title for c in shown)], lines)


def _words(report: Mapping[str, Any]) -> list[Sheet]:
    return [_family(task, family, rows) for task, rows in report["words"].items() for family, rows in _families(rows).items()]


def _families(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["level"] == "family":
            found[row["name"]] = []
        found[list(found)[-1]].append(row)
    return found


def _family(task: str, family: str, rows: Sequence[Mapping[str, Any]]) -> Sheet:
    lines = []
    for row in rows:
        served = "" if row["level"] != "word" else f"{row['how']}: {', '.join(row['labels'])}" if row["how"] else "no label"
        figures = [row.get(name, "-") for name in SHORT]
        lines.append(Line("part" if row["level"] != "word" else "", [row["name"], served, str(row["items"]), *figures]))
    header = ["Word", "Served by", "n", *(BY_NAME[name].title for name in SHORT)]
    return Sheet(f"{family}, {TITLES[task].lower()}: {counted(rows[0]['items'])}", header, lines, shut=True)


def _slices(report: Mapping[str, Any]) -> list[Sheet]:
    found = []
    for task, rows in report["slices"].items():
        for title in dict.fromkeys(row["attribute"] for row in rows):
            part = [row for row in rows if row["attribute"] == title]
            lines = [Line("", [_value(row), str(row["items"]), *(_marked(row, name) for name in SHORT)]) for row in part]
            header = ["Slice", "n", *(BY_NAME[name].title for name in SHORT)]
            found.append(Sheet(f"{title[0].upper()}{title[1:]}, {TITLES[task].lower()}", header, lines, f"By {part[0]['how']}.", bars=True))
    return found


def _value(row: Mapping[str, Any]) -> str:
    return f"{row['value']} (few)" if row["items"] < FEW else row["value"]


def _marked(row: Mapping[str, Any], name: str) -> Entry:
    return {**row[name], "better": row["gaps"][name]["better"]}


# --- the paper's --------------------------------------------------------------------------------------------------------

_SETS, _FIGURES = ("CelebA-HQ", "FF++"), ("id", "exp", "pose")


def _paper(report: Mapping[str, Any]) -> list[Sheet]:
    data = str(report["facts"].get("data set", "this data set"))
    ours = report["method"]
    swaps = {task: methods for task, methods in report["methods"].items() if task != "reconstruct"}
    full = {ours: report["tasks"]} if "all" in report["tasks"] else {}
    return [table_1({data: swaps}, ours), table_3(full)] if report["tasks"] else [table_1({}, ours), table_3({})]


def table_1(measured: Mapping[str, Mapping[str, Mapping[str, Numbers]]], ours: str) -> Sheet:
    """The paper's Table 1 with what was measured (data set -> task -> method -> numbers) in columns of its own."""
    lines, none = [], ["-"] * (len(_FIGURES) * len(measured))
    for task in ("expression", "identity", "all"):
        printed = _printed_rows(task)
        lines.append(Line("part", [TITLES[task], *[""] * (len(_FIGURES) * (len(_SETS) + len(measured)))]))
        lines += [Line("quoted", [f"{method} (quoted)", *figures, *none]) for method, figures in printed.items()]
        for method in in_order({method for tasks in measured.values() for method in tasks.get(task, {})}, ours):
            figures = [_here(tasks.get(task, {}).get(method), name) for tasks in measured.values() for name in _FIGURES]
            lines.append(Line(_kind(method, ours), [_named(method), *["-"] * (len(_FIGURES) * len(_SETS)), *figures]))
    groups = [("", 1), *((f"{data}, quoted", 3) for data in _SETS), *((f"{data}, measured here", 3) for data in measured)]
    header = ["Method", *["ID, higher is better", "Exp, lower is better", "Pose, lower is better"] * (len(_SETS) + len(measured))]
    return Sheet("Table 1 of the paper, with ours", header, lines, "ID in %, Exp times 100, Pose in degrees.", groups)


def _printed_rows(task: str) -> dict[str, list[str]]:
    """Method -> what Table 1 prints of it on one data set after the other."""
    rows: dict[str, list[str]] = {}
    for row in quoted.TABLE_1:
        if row.task == task:
            rows.setdefault(row.method, []).extend(_printed(row, name) for name in _FIGURES)
    return rows


def table_3(measured: Mapping[str, Mapping[str, Numbers]]) -> Sheet:
    """The paper's Table 3 above ours (model -> task -> numbers): identity, expression and pose of task `all`, MSE of reconstructing."""
    lines = [Line("quoted", [f"{q.method} (quoted)", *(_printed(q, name) for name in _PAPER)]) for q in quoted.TABLE_3]
    for i, (model, tasks) in enumerate(measured.items()):
        figures = [_here(tasks.get("reconstruct" if name == "mse" else "all"), name) for name in _PAPER]
        lines.append(Line("ours" if i == 0 else "", [f"{model} (measured here)", *figures]))
    header = ["Model", "ID, higher is better", "Exp, lower is better", "Pose, lower is better", "MSE, lower is better"]
    return Sheet("Table 3 of the paper, with ours", header, lines, "ID in %, Exp times 100, Pose in degrees, MSE on the scale 0 to 255.")


def _printed(row: quoted.Quoted, name: str) -> str:
    value = getattr(row, name)
    return "-" if value is None else f"{value:.1f}" if name == "id" else f"{value:.2f}"


def _here(numbers: Numbers | None, name: str) -> Cell:
    return numbers[_PAPER[name]] if numbers else "-"
