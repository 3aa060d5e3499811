"""Versions of the model in MLflow's registry: a new one enters as challenger, and takes over by alias when it has passed the gates."""

import getpass
import json
from pathlib import Path
from typing import Any

import dagster as dg

from assets import gates, version
from assets.evaluation import evaluate_model, evaluation_report, flat, logged, model_folder, prepared_datasets
from assets.partitions import TASKS
from assets.resources import CatalogueResource, RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import ModelVersion, Registry
from assets.stores.workspace import Workspace
from assets.training import trained_model
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady

_VERDICT = "verdict"  # a version's tag: against which champion it was judged, and how that went
_TOLD = 5  # refusals in that tag: MLflow takes no long ones
ROLLBACK = "rollback"  # the job. A setting in its place would need a job with a config of its own, which keeps the stores of its loading


class Candidate(dg.Config):
    """Which version is put forward: 0 registers `model`, the preset's newest trained one or the `shipped` one; another number names
    one that is registered."""

    version: int = 0
    model: str = "trained"


class Change(dg.Config):
    """Who wants the champion changed, and why. Without `who` it is the user that the process runs as."""

    who: str = ""
    why: str = ""


@dg.asset(deps=[trained_model, evaluation_report], kinds={"mlflow"}, group_name="release", pool="registry")
def registered_model(
    context: dg.AssetExecutionContext,
    config: Candidate,
    settings: Settings,
    workspace: WorkspaceResource,
    catalogue: CatalogueResource,
    registry: RegistryResource,
) -> dg.MaterializeResult:
    """One version in MLflow's registry, as challenger: weights, settings, encoders, data and figures, under one number."""
    found = registry.open.resolve(config.version) if config.version else None
    preset = preset_of(found, settings)
    folder = found.folder if found else model_folder(workspace.open, registry.open, preset, config.model)[0]
    reports = _reports(workspace.open, folder, preset)
    evaluations = {report.name: logged(registry.open, report) for report in reports.values()}
    if found:
        registry.open.note(found.version, **version.evaluation_tags(evaluations))
        number, shown = registry.open.challenge(found.version).version, registry.open.resolve(found.version).tags
    else:
        told = version.record(folder, evaluations)
        shown = version.tags(told) | {k: f"{v:.5g}" for report in reports.values() for k, v in flat(_numbers(report)).items()}
        run_id = registry.open.open_run(told["training_run"] or folder.name, kind="diffusion")
        with version.beside(told, catalogue.open, folder) as files:
            number = registry.open.register(folder, run_id, shown, files)
        registry.open.end_run(run_id)
    return dg.MaterializeResult(metadata={"version": number, "alias": "challenger", "run": shown.get("training_run", folder.name), **shown})


def preset_of(found: ModelVersion | None, settings: Settings) -> Preset:
    """The preset that a version was made with, with the run's changes; the run's own where there is no version."""
    return Settings(preset=found.tags.get("preset", settings.preset) if found else settings.preset, changes=settings.changes).resolve()


def _reports(workspace: Workspace, folder: Path, preset: Preset) -> dict[str, Path]:
    """'<data set> <task>' -> report of this model, evaluated now where it has not been."""
    names = prepared_datasets(workspace, preset)
    return {f"{name} {task}": evaluate_model(workspace, folder, name, task, preset) for name in names for task in TASKS}


def _numbers(report: Path) -> dict[str, Any]:
    return json.loads((report / "report.json").read_text(encoding="utf-8"))


# --- the gates --------------------------------------------------------------------------------------------------------


@dg.asset_check(asset=registered_model, blocking=True)
def not_worse_than_champion(
    context: dg.AssetCheckExecutionContext, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.AssetCheckResult:
    """The challenger before the gates (gates.toml): by itself, and against the champion on the same items."""
    passed, table = contest(workspace.open, registry.open, settings)
    return dg.AssetCheckResult(passed=passed, metadata={"comparison": dg.MetadataValue.md(table), "gates": str(gates.gates_file())})


def contest(workspace: Workspace, registry: Registry, settings: Settings) -> tuple[bool, str]:
    """(whether the challenger may become champion, the verdicts as a Markdown table); the challenger keeps a note of it."""
    challenger, number = registry.resolve("challenger"), registry.champion
    if number == challenger.version:
        return True, f"Version {number} is champion and challenger."
    preset = preset_of(challenger, settings)
    verdicts = _verdicts(workspace, challenger, registry.resolve(number) if number else None, preset)
    refused = gates.refusals(verdicts)
    note = {
        "champion": number,
        "passed": not refused,
        "refused": refused[:_TOLD],
        "gates": tables.fingerprint(gates.read(preset.name).__dict__),
    }
    registry.note(challenger.version, **{_VERDICT: json.dumps(note)})
    head = f"Version {challenger.version} against {f'champion {number}' if number else 'no champion: by itself'}.\n\n"
    return not refused, head + gates.table(verdicts)


def _verdicts(workspace: Workspace, challenger: ModelVersion, champion: ModelVersion | None, preset: Preset) -> list[gates.Verdict]:
    wanted, new = gates.read(preset.name), _results(workspace, challenger.folder, preset)
    if champion is None:
        return gates.judge(new, None, wanted)
    if (side := _crop(champion.folder)) != preset.crop:
        told = f"the champion makes crops of {side} pixels, this version of {preset.crop}"
        passed = wanted.without_comparison == "by-itself"
        return [*gates.judge(new, None, wanted), gates.Verdict("all data sets", "without_comparison", told, passed, "no item in common")]
    return gates.judge(new, _results(workspace, champion.folder, preset), wanted)


def _results(workspace: Workspace, folder: Path, preset: Preset) -> dict[str, Any]:
    """'<data set>, <task>' -> what was measured of a model there."""
    from diffsfsr.evaluation.report.files import read_results

    found: dict[str, Any] = {}
    for name, report in _reports(workspace, folder, preset).items():
        found |= {f"{name.rpartition(' ')[0]}, {task}": result for task, result in read_results(report).items()}
    return found


def _crop(folder: Path) -> int:
    return json.loads((folder / "preset.json").read_text(encoding="utf-8"))["crop"]


# --- the champion -----------------------------------------------------------------------------------------------------


@dg.asset(deps=[registered_model], kinds={"mlflow"}, group_name="release", pool="registry")
def champion(context: dg.AssetExecutionContext, config: Change, registry: RegistryResource) -> dg.MaterializeResult:
    """One alias: the version that portraits are made with. The challenger takes it when it has passed the gates; in the job `rollback`
    it goes back to the version before."""
    who, before = config.who or getpass.getuser(), registry.open.champion
    if context.run.job_name == ROLLBACK:
        found = registry.open.rollback(who, config.why or f"rolled back in run {context.run_id}")
    else:
        found = _promoted(registry.open, who, config.why or f"passed the gates in run {context.run_id}")
    told = {"version": found.version, "before": before, "folder": dg.MetadataValue.path(str(found.folder))}
    return dg.MaterializeResult(metadata=told | {"history": dg.MetadataValue.md(told_as_table(registry.open))})


def _promoted(registry: Registry, who: str, why: str) -> ModelVersion:
    """The challenger, made champion in place of the version that it was compared with. Raises NotReady where it has not passed."""
    challenger = registry.resolve("challenger")
    if challenger.version == registry.champion:
        return challenger
    verdict = json.loads(challenger.tags.get(_VERDICT, "{}"))
    if not verdict.get("passed"):
        raise NotReady(f"version {challenger.version} has not passed the gates; run `diffsfsr run promote`")
    registry.note(challenger.version, **version.pinned(challenger.tags))
    return registry.promote(challenger.version, who, why, instead_of=verdict["champion"])


def told_as_table(registry: Registry) -> str:
    """The history of the champion as Markdown, newest first."""
    lines = ["| when | who | what | from | to | why |", "| --- | --- | --- | --- | --- | --- |"]
    for e in reversed(registry.history()):
        what = e.action if e.happened else f"{e.action}, which came to nothing"
        lines.append(f"| {e.at} | {e.who} | {what} | {e.before or '-'} | {e.after} | {' '.join(e.why.split()).replace('|', '/')} |")
    return "\n".join(lines)
