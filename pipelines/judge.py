"""`run evaluate` and its flags: our model, another method, pairs for another program, a study with people, the ablations side by side."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.partitions import TASKS
from diffsfsr.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pipelines.operate import Operator

_MODELS = ("trained", "shipped", "champion", "challenger")
_ASKED = "all"  # the task that people are asked about: it changes who and how at once


def check(args: Namespace) -> None:
    """Raises InputError for flags that do not go together, before anything runs."""
    flags = ("method", "outputs", "export_pairs", "study", "answers", "ablations", "words", "out")
    given = [f"--{name.replace('_', '-')}" for name in flags if getattr(args, name) not in (None, "", [], False)]
    if given and args.job != "evaluate":
        raise InputError(f"{given[0]} goes with `run evaluate`, not with `run {args.job}`")
    kinds = [flag for flag in given if flag in ("--export-pairs", "--study", "--answers", "--ablations", "--words")]
    if len(kinds) > 1 or (kinds and kinds[0] != "--export-pairs" and args.method):
        raise InputError(f"{' and '.join(kinds if len(kinds) > 1 else ['--method', *kinds])} are different things: give one of them")
    if args.outputs and not args.method:
        raise InputError("--outputs needs --method NAME: what the method is called in the tables")
    if args.outputs and not Path(args.outputs).is_dir():
        raise InputError(f"--outputs {args.outputs} is no folder: it holds DATASET-TASK/manifest.csv and the pictures that they name")
    if args.study is not None and args.study < 1:
        raise InputError(f"--study {args.study} is no number of items: give 1 or more")
    if args.words is not None and args.words < 1:
        raise InputError(f"--words {args.words} is no number of outputs: give 1 or more")
    if bool(args.study) != bool(args.out):
        raise InputError("--study N and --out FILE.html go together: how many items, and where to write the page")
    check_model(args.model)


def check_model(name: str) -> None:
    """Raises InputError for what names no model."""
    if name not in _MODELS and not name.isdecimal():
        raise InputError(f"--model {name}{did_you_mean(name, _MODELS)}: one of {', '.join(_MODELS)}, or a version's number")


def evaluate(args: Namespace, operator: Operator) -> Any:
    """What the flags ask for; without one, our model on every prepared data set and task."""
    if args.export_pairs:
        return export(operator, Path(args.export_pairs), args.method, args.outputs)
    if args.method:
        return compare(operator, args.method, args.outputs)
    if args.study:
        return study(operator, args.model, args.study, args.out)
    if args.answers:
        return opinions(args)
    if args.ablations:
        return ablations(args, operator)
    if args.words:
        return operator.words(args.model, args.words)
    return operator.evaluate(args.model)


def compare(operator: Operator, name: str, outputs: str = "") -> dict[str, Any]:
    """Measure another method on every pair list that it answers; returns the figures."""
    from assets.methods import answered, answers, maker

    folder, preset = Path(outputs).resolve() if outputs else None, operator.preset
    figures = {}
    for dataset, task, pairs in _lists(operator):
        maker(name, folder, dataset, preset)  # refuses a wrong name before anything runs
        if folder and answers(folder, dataset, pairs) is None:
            continue
        config = {"method": name, "outputs": str(folder or "")}
        result = operator.run("compare", f"{dataset}|{task}", ops={"method_rows": {"config": config}})
        told = result.asset_materializations_for_node("method_rows")[0].metadata
        figures[f"{dataset}/{task}"] = {key: value.value for key, value in told.items() if isinstance(value.value, int | float)}
    if folder and not figures:
        dataset, _, pairs = next(_lists(operator))
        answered(folder, dataset, pairs)  # raises, saying what is looked for
    return {"method": name, **figures, "next": f"`diffsfsr run evaluate --preset {operator.preset_name}` shows it beside the model"}


def export(operator: Operator, directory: Path, name: str = "", outputs: str = "") -> dict[str, Any]:
    """Write every pair list for another program, a folder each."""
    from assets import methods

    if any(place.exists() and not place.is_dir() for place in (directory, *directory.absolute().parents)):
        raise InputError(f"--export-pairs {directory} is a file, or lies below one: name a folder")
    first = Path(outputs).resolve() if outputs else None
    found = {}
    for dataset, task, pairs in _lists(operator):
        if first and methods.answers(first, dataset, pairs) is None:
            continue
        target = directory / f"{dataset}-{task}"
        found[str(target)] = methods.export(operator.workspace, target, dataset, task, operator.preset, name, first)
    return found


def study(operator: Operator, model: str, count: int, out: str) -> dict[str, Any]:
    """Write the page of a study on the first prepared data set."""
    from assets import methods
    from assets.evaluation import model_folder, prepared_datasets

    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm") or not page.absolute().parent.is_dir() or page.is_dir():
        raise InputError(f"--out {out} must be the name of a page (.html) in a folder that exists")
    preset, workspace = operator.preset, operator.workspace
    folder, _ = model_folder(workspace, operator.registry(), preset, model)
    return methods.study(workspace, folder, page, count, prepared_datasets(workspace, preset)[0], _ASKED, preset)


def opinions(args: Namespace) -> Any:
    """What people answered: figures, or tables to read."""
    from diffsfsr.evaluation.study.answers import find_key
    from diffsfsr.evaluation.study.results import markdown, study_report

    files = [Path(name) for name in args.answers]
    for file in files:
        if not file.is_file():
            raise InputError(f"--answers {file} is not there: give the files that the study's page saved")
    report = study_report(files, find_key(files, list(dict.fromkeys([*(file.absolute().parent for file in files), Path.cwd()]))))
    return report if args.json else markdown(report)


def _lists(operator: Operator) -> Iterator[tuple[str, str, Any]]:
    """(data set, task, its pair list), of all that are prepared."""
    from assets import heldout
    from assets.evaluation import prepared_datasets

    for dataset in prepared_datasets(operator.workspace, operator.preset):
        held = heldout.held_out(operator.workspace, dataset, operator.preset)
        for task in TASKS:
            yield dataset, task, heldout.pair_list(operator.workspace, held, task, operator.preset)


def ablations(args: Namespace, operator: Operator) -> Any:
    """The preset's trained ablations side by side: figures, or tables to read."""
    import json

    from assets.ablations import report_folder

    operator.run("ablations")
    folder = report_folder(operator.workspace, operator.preset)
    if not args.json:
        return (folder / "report.md").read_text(encoding="utf-8")
    return {"report": str(folder / "report.md"), **json.loads((folder / "report.json").read_text(encoding="utf-8"))}
