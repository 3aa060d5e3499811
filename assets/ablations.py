"""What the method owes to each of its parts: models trained without one of them, measured on the same items by the same judges."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.evaluation import prepared_datasets
from assets.measuring import EVALUATION_VERSION, Bench, Tell, silent
from assets.pictures import picture
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import content_hash
from assets.stores.workspace import Workspace
from assets.training import trained_model
from diffsfsr import presets, tables
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady

if TYPE_CHECKING:  # they load torch
    from diffsfsr.evaluation.protocols import Result
    from diffsfsr.evaluation.report.sheets import Sheet

FULL = "full model"
_TASKS = ("all", "reconstruct")  # of the paper's Table 3: the first three columns, and the last
_SHOWN = ("id_top1", "id_cosine", "expression_distance", "blendshape_distance", "pose_error", "mse", "failure_rate")


@dg.asset(deps=[trained_model], kinds={"torch", "mlflow"}, group_name="release", pool="gpu")
def ablation_table(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.MaterializeResult:
    """One row per trained ablation of a preset, as the paper's Table 3, with each one's paired difference from the full model."""
    from diffsfsr.face.images import read

    folder = compare_ablations(workspace.open, settings.resolve(), context.log.info)
    run_id = registry.open.open_run(folder.name, kind="ablations")
    registry.open.log_folder(run_id, folder)
    registry.open.end_run(run_id)
    text = (folder / "report.md").read_text(encoding="utf-8")
    grid = picture(read(folder / "grid-ablations.png"))
    return dg.MaterializeResult(metadata={"table": dg.MetadataValue.md(text), "grid": grid, "mlflow_run": run_id})


def trained(workspace: Workspace, preset: Preset) -> dict[str, Path]:
    """The full model of a preset, then each of its ablations that has been trained. Raises NotReady where there are not two,
    InputError for a preset that has no ablations."""
    rows = [row for row in presets.PRESETS.values() if row.experts == preset.name and row.trains == "diffusion"]
    if not rows:
        known = ", ".join(sorted({row.experts for row in presets.PRESETS.values() if row.experts and row.trains == "diffusion"}))
        raise InputError(f"preset {preset.name} has no ablations; these have: {known}")
    found = {FULL: workspace.need_network("diffusion", preset)[0]}
    found |= {row.name.removeprefix(f"{preset.name}-"): made[0] for row in rows if (made := workspace.network("diffusion", row))}
    if len(found) < 2:
        names = ", ".join(row.name for row in rows)
        raise NotReady(f"no ablation of preset {preset.name} is trained yet; run `diffsfsr run train --preset` with one of: {names}")
    return found


def report_folder(workspace: Workspace, preset: Preset) -> Path:
    """Where the comparison of the present models lies."""
    models = {label: content_hash(folder) for label, folder in trained(workspace, preset).items()}
    bench = Bench.of(workspace, prepared_datasets(workspace, preset)[0], preset)
    lists = [bench.pairs(task).fingerprint for task in _TASKS]
    return workspace.home / "reports" / f"ablations-{tables.fingerprint(models, lists, preset.evaluation, EVALUATION_VERSION)[:10]}"


def compare_ablations(workspace: Workspace, preset: Preset, tell: Tell = silent) -> Path:
    """Measure every trained ablation on the first prepared data set, unless that has been done; returns the report's folder."""
    from diffsfsr.evaluation.report import figures
    from diffsfsr.evaluation.report.numbers import summary
    from diffsfsr.evaluation.report.page import page
    from diffsfsr.evaluation.report.sections import meanings
    from diffsfsr.evaluation.report.sheets import Section, markdown
    from diffsfsr.face.images import write_image

    folder = report_folder(workspace, preset)
    if tables.is_report(folder, ("models", "differences"), ("report.md", "grid-ablations.png")):
        return folder
    bench = Bench.of(workspace, prepared_datasets(workspace, preset)[0], preset)
    results = {label: _measured(bench, label, model, tell) for label, model in trained(workspace, preset).items()}
    numbers = {label: summary(list(each.values())) for label, each in results.items()}
    gaps = {label: _gaps(each, results[FULL]) for label, each in results.items() if label != FULL}
    title, grid = f"Ablations of {preset.name}", figures.side_by_side([each["all"] for each in results.values()])
    parts = [
        Section("ablations", "Table 3", _facts(bench, preset), _sheets(numbers, gaps), [grid]),
        Section("meaning", "What the figures mean", terms=meanings({"tasks": numbers[FULL]})),
    ]
    write_image(folder / "grid-ablations.png", grid.sheet())
    tables.write_text(folder / "report.md", markdown(title, parts))
    tables.write_text(folder / "report.html", page(title, parts))
    tables.write_json(folder / "report.json", {"models": numbers, "differences": gaps})
    return folder


def _measured(bench: Bench, label: str, model: Path, tell: Tell) -> "dict[str, Result]":
    """Task -> what a model gave; named as our model while it is measured, so that its own evaluation and this one share their work."""
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.portrait.compose import Studio

    ours = Ours(Studio(model), bench.faces, content_hash(model))
    return {task: replace(bench.measure(ours, bench.pairs(task), tell, ours=True), method=label) for task in _TASKS}


def _gaps(ablated: "Mapping[str, Result]", full: "Mapping[str, Result]") -> dict[str, Any]:
    """Metric -> what the ablation lacks or gains on the same items: {mean, low, high, count, better}."""
    from diffsfsr.evaluation.report.numbers import compare

    found = {task: compare(ablated[task], full[task]) for task in _TASKS}
    return {name: found["reconstruct" if name == "mse" else "all"][name] for name in _SHOWN}


def _sheets(numbers: Mapping[str, Any], gaps: Mapping[str, Any]) -> "list[Sheet]":
    from diffsfsr.evaluation.report.columns import BY_NAME
    from diffsfsr.evaluation.report.sections import table_3
    from diffsfsr.evaluation.report.sheets import Line, Sheet

    header = ["Without", *(BY_NAME[name].title for name in _SHOWN)]
    lines = [Line("", [label, *(each[name] for name in _SHOWN)]) for label, each in gaps.items()]
    note = "The ablation less the full model, on the same items with the same seeds; marked where the 95 % interval leaves out zero."
    return [table_3(numbers), Sheet("Paired differences from the full model", header, lines, note)]


def _facts(bench: Bench, preset: Preset) -> list[str]:
    judges = json.dumps(bench.references.judges.describe(), ensure_ascii=False)
    return [
        f"Data set {bench.held.dataset}, {bench.held.told}; {preset.evaluation.items} items, pair list {bench.pairs('all').fingerprint}.",
        f"Judges: {judges}",
    ]
