"""Evaluation: what a model makes of held-out people, measured item by item, beside every other method that was given the same items."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets import heldout, partitions, version
from assets.measuring import EVALUATION_VERSION, Bench, Tell, expression_judge, silent
from assets.pictures import picture
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import Registry, content_hash
from assets.stores.workspace import Workspace, aligned
from assets.training import trained_model
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.portrait import shipped

if TYPE_CHECKING:  # they load torch
    from diffsfsr.evaluation.items import Faces, PairList
    from diffsfsr.evaluation.methods import Method
    from diffsfsr.evaluation.protocols import Result


class Model(dg.Config):
    """Which model to evaluate: `trained`, the preset's newest, `shipped`, the one that comes with the package, or an alias of the
    registry such as `champion`, or a version's number."""

    model: str = "trained"


@dg.asset(partitions_def=partitions.evaluations, deps=[trained_model], kinds={"torch", "mlflow"}, group_name="release", pool="gpu")
def evaluation_report(
    context: dg.AssetExecutionContext, config: Model, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.MaterializeResult:
    """One report per task and data set: our model between floor and ceiling and beside other methods, with intervals and pictures."""
    from diffsfsr.face.images import read

    preset = settings.resolve()
    keys = context.partition_key.keys_by_dimension  # type: ignore[attr-defined]
    folder, name = model_folder(workspace.open, registry.open, preset, config.model)
    report = evaluate_model(workspace.open, folder, keys["dataset"], keys["task"], preset, context.log.info)
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    told = logged(registry.open, report)
    registry.open.note_content(content_hash(folder), **version.evaluation_tags({report.name: told}))
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "table": dg.MetadataValue.md((report / "report.md").read_text(encoding="utf-8")),
            "grid": picture(_small(read(report / "grid.png"))),
            "report": dg.MetadataValue.path(str(report / "report.html")),
            "overview": dg.MetadataValue.path(str(report.parent / "overview.html")),
            "mlflow_run": told["run"],
            **flat(numbers),
        }
    )


def logged(registry: Registry, report: Path) -> dict[str, Any]:
    """A report in MLflow, once: its run there, its place here, and the fingerprints of the pair lists that it is about."""
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    run_id = registry.open_run(f"evaluation-{report.parent.name}-{report.name}", kind="evaluation")
    registry.log_stats(run_id, [{"step": 0} | flat(numbers)])
    registry.log_folder(run_id, report)
    registry.end_run(run_id)
    return {"run": run_id, "report": f"{report.parent.name}/{report.name}", "pairs": pair_lists(report)}


def pair_lists(report: Path) -> dict[str, str]:
    """Task -> fingerprint of the pair list (evaluation.items.PairList) that a report was measured on."""
    from diffsfsr.evaluation.items import ROLES
    from diffsfsr.evaluation.report.files import read_results

    results = read_results(report).items()
    return {t: tables.fingerprint(t, [[*(row[role] for role in ROLES), row["seed"]] for row in r.rows]) for t, r in results}


def model_folder(workspace: Workspace, registry: Registry, preset: Preset, model: str) -> tuple[Path, str]:
    """(folder, name) of the preset's newest model, of the shipped one, or of the one behind an alias."""
    if model == "trained":
        return workspace.need_network("diffusion", preset)
    if model == "shipped":
        return shipped.need(), model
    found = registry.resolve(model)
    return found.folder, f"version {found.version}"


def prepared_datasets(workspace: Workspace, preset: Preset) -> list[str]:
    """Data sets with faces of the preset's size. Raises NotReady where there is none."""
    found = [name for name in workspace.datasets() if _has_faces(workspace, name, preset)]
    if not found:
        raise NotReady(f"no faces of {preset.crop} pixels are prepared yet; run `diffsfsr run prepare --preset {preset.name} --data DIR`")
    return found


def _has_faces(workspace: Workspace, dataset: str, preset: Preset) -> bool:
    files = [workspace.file(aligned(preset), shard) for shard in workspace.shards(dataset)]
    return any(tables.read(file, ["face_id"]).num_rows for file in files if file.exists())


# --- one model ----------------------------------------------------------------------------------------------------------


def report_folder(workspace: Workspace, model: Path, dataset: str, task: str, preset: Preset) -> Path:
    """Where the report of a model on a task lies; the same model, items, judges and protocol find it again."""
    from diffsfsr.evaluation.judges import chosen

    e, faces = preset.evaluation, heldout.state(workspace, dataset, preset)
    judges = chosen(preset), expression_judge(workspace, preset)[1]
    mark = tables.fingerprint(content_hash(model), faces, e.items, e.seed, preset.crop, judges, EVALUATION_VERSION)
    return workspace.home / "reports" / mark[:10] / f"{dataset}-{task}"


def evaluate_model(workspace: Workspace, model: Path, dataset: str, task: str, preset: Preset, tell: Tell = silent) -> Path:
    """Evaluate a saved model on one task, unless that has been done beside the same other methods; returns the report's folder.

    What was made and measured before a kill, for another task or for another report is not made or measured again.
    """
    from diffsfsr.evaluation.report import figures
    from diffsfsr.evaluation.report.files import write_report
    from diffsfsr.evaluation.report.overview import write_overview

    target = report_folder(workspace, model, dataset, task, preset)
    bench = Bench.of(workspace, dataset, preset)
    lists = [bench.pairs(each) for each in (task, "reconstruct")]
    if _beside(target) == bench.others(lists):
        return target
    ours = _ours(bench, model, content_hash(model))
    results = [bench.measure(ours, pairs, tell, ours=True) for pairs in lists]
    others = [result for pairs in lists for result in (*bench.bounds(pairs, tell), *bench.stored(pairs, tell))]
    facts = {
        "data set": dataset,
        "people": bench.held.told,
        "preset": preset.name,
        "training steps": ours.studio.preset.training.steps,
        "model": content_hash(model),
        "pair lists": ", ".join(f"{pairs.task} {pairs.fingerprint}" for pairs in lists),
    }
    shown = figures.showcase(ours, lists[0].items) if task == "all" else []
    with workspace.lock(f"reports-{target.parent.name}"):  # the overview reads the reports of the other tasks
        write_report(target, [*results, *others], f"DiffSFSR, task {task}, on {dataset}", facts, shown)
        write_overview(target.parent, sorted(file.parent for file in target.parent.glob("*/report.json")))
        tables.write_json(target / "beside.json", bench.others(lists))  # last: it says that the report is done
    return target


def _beside(target: Path) -> Any:
    """The methods that the report was written beside; None where there is no whole one."""
    try:
        return json.loads((target / "beside.json").read_text(encoding="utf-8")) if (target / "report.json").exists() else None
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def _ours(bench: Bench, model: Path, weights: str) -> Any:
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.portrait.compose import Studio

    return Ours(Studio(model), bench.faces, weights)


# --- any method ---------------------------------------------------------------------------------------------------------


def evaluate_method(
    workspace: Workspace,
    make: "Callable[[Faces, PairList], Method]",
    dataset: str,
    task: str,
    preset: Preset,
    tell: Tell = silent,
) -> "Result":
    """Measure another method on a task's pair list and store its rows: every later report on that list shows them.

    `make` gives the method over the data set's faces and the list.
    """
    bench = Bench.of(workspace, dataset, preset)
    pairs = bench.pairs(task)
    return bench.measure(make(bench.faces, pairs), pairs, tell)


def flat(numbers: dict[str, Any]) -> dict[str, float]:
    """{task}_{metric} -> mean, for those that could be computed."""
    found = {}
    for task, columns in numbers.get("tasks", numbers).items():
        for name, entry in columns.items() if isinstance(columns, dict) else ():
            if isinstance(entry, dict) and entry.get("mean") is not None:
                found[f"{task}_{name}"] = float(entry["mean"])
    return found


def _small(image: np.ndarray, side: int = 640) -> np.ndarray:
    from diffsfsr.face.images import resize

    scale = min(1.0, side / max(image.shape[:2]))
    return resize(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))
