"""Versions of the model in MLflow's registry: a new one enters as challenger, and takes over by alias when it has earned it."""

import getpass
import json
from pathlib import Path
from typing import Any

import dagster as dg

from assets.evaluation import evaluate_model, evaluation_report, flat, model_folder, prepared_datasets
from assets.partitions import TASKS
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import Registry
from assets.stores.workspace import Workspace
from assets.training import trained_model
from diffsfsr.config import Preset

# A challenger must not be worse than the champion in any of these by more than chance would have it.
GUARDED = ("id_cosine", "expression_distance", "pose_error", "mse", "failure_rate")


@dg.asset(deps=[trained_model, evaluation_report], kinds={"mlflow"}, group_name="release", pool="registry")
def registered_model(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.MaterializeResult:
    """One version in MLflow's registry, as challenger: the preset's newest model with its figures."""
    preset = settings.resolve()
    folder, _ = model_folder(workspace.open, registry.open, preset, "trained")
    figures = {task: flat(_numbers(report)) for task, report in _reports(workspace.open, folder, preset).items()}
    run_id = registry.open.open_run(folder.parent.name, kind="diffusion")
    tags = {"preset": preset.name, **{k: f"{v:.5g}" for f in figures.values() for k, v in f.items()}}
    version = registry.open.register(folder, run_id, tags)
    registry.open.end_run(run_id)
    return dg.MaterializeResult(metadata={"version": version, "alias": "challenger", "run": folder.parent.name, **tags})


def _reports(workspace: Workspace, folder: Path, preset: Preset) -> dict[str, Path]:
    """'<data set> <task>' -> report of this model, evaluated now where it has not been."""
    names = prepared_datasets(workspace, preset)
    return {f"{name} {task}": evaluate_model(workspace, folder, name, task, preset) for name in names for task in TASKS}


def _numbers(report: Path) -> dict[str, Any]:
    return json.loads((report / "report.json").read_text(encoding="utf-8"))


@dg.asset_check(asset=registered_model, blocking=True)
def not_worse_than_champion(
    context: dg.AssetCheckExecutionContext, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.AssetCheckResult:
    """The challenger against the champion on the same items: no guarded figure may be worse beyond its 95 % interval."""
    passed, table = contest(workspace.open, registry.open, settings.resolve())
    return dg.AssetCheckResult(passed=passed, metadata={"comparison": dg.MetadataValue.md(table)})


def contest(workspace: Workspace, registry: Registry, preset: Preset) -> tuple[bool, str]:
    """(whether the challenger may become champion, the comparison as a Markdown table)."""
    from diffsfsr.evaluation import report

    challenger = registry.resolve("challenger")
    if not any("champion" in version.aliases for version in registry.versions()):
        return True, "There is no champion yet: the challenger stands alone."
    champion = registry.resolve("champion")
    if champion.version == challenger.version:
        return True, f"Version {champion.version} is champion and challenger."
    ours, theirs = _reports(workspace, challenger.folder, preset), _reports(workspace, champion.folder, preset)
    lines = ["| data set, task | figure | challenger - champion | verdict |", "| --- | --- | --- | --- |"]
    passed = True
    for name in ours:
        old = report.read_results(theirs[name])
        for task, result in report.read_results(ours[name]).items():
            for figure, gap in report.compare(result, old[task]).items():
                if figure in GUARDED and gap["mean"] is not None:
                    worse = gap["better"] is False
                    passed &= not worse
                    shown = f"{gap['mean']:.3g} [{gap['low']:.3g}, {gap['high']:.3g}]"
                    verdict = "WORSE" if worse else "better" if gap["better"] else "no difference"
                    lines.append(f"| {name}, {task} | {figure} | {shown} | {verdict} |")
    return passed, "\n".join(lines)


@dg.asset(deps=[registered_model], kinds={"mlflow"}, group_name="release", pool="registry")
def champion(context: dg.AssetExecutionContext, registry: RegistryResource) -> dg.MaterializeResult:
    """One alias: the version that portraits are made with. The challenger takes it once the check on it has passed."""
    challenger = registry.open.resolve("challenger")
    registry.open.promote(challenger.version, who=getpass.getuser(), why=f"passed not_worse_than_champion in run {context.run_id}")
    return dg.MaterializeResult(metadata={"version": challenger.version, "folder": dg.MetadataValue.path(str(challenger.folder))})
