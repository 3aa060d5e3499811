"""Training runs: launched as a process of their own, watched through Dagster Pipes, tracked in MLflow."""

import os
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError

from assets.pictures import curve, picture
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.shards import current_shards, training_shards
from assets.stores.registry import Registry
from assets.stores.workspace import Workspace
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.training.run import Inputs, RunDirectory

if TYPE_CHECKING:  # it loads torch
    from diffsfsr.training.loop import Stats


def run_training(
    context: dg.AssetExecutionContext,
    trainer: dg.PipesSubprocessClient,
    workspace: Workspace,
    registry: Registry,
    preset: Preset,
    inputs: Inputs,
) -> "tuple[RunDirectory, list[Stats]]":
    """Train, or go on, or find it done: the run directory decides. One process at a time works on a run."""
    from diffsfsr.training import launch

    run = RunDirectory.open(workspace.runs, preset, inputs)
    with workspace.lock(f"run-{run.path.name}"):
        if not run.done:
            tracked = registry.open_run(run.path.name, kind=preset.trains)
            context.log.info(f"{run.path.name}: {preset.training.steps} steps; MLflow run {tracked}")
            env = {
                "DIFFSFSR_MLFLOW_URI": registry.tracking_uri,
                "DIFFSFSR_ARTIFACTS": registry.artifact_root or "",
                "DIFFSFSR_MLFLOW_RUN": tracked,
            }
            ended = "FAILED"
            try:
                trainer.run(context=context, command=launch.command(run, "assets.trainer"), env={**os.environ, **env})
                registry.log_folder(tracked, run.config_file)
                ended = "FINISHED"
            except dg.DagsterExecutionInterruptedError:
                ended = "KILLED"
                raise
            except DagsterPipesExecutionError:
                run.raise_failure()  # says more than an exit code
                raise
            finally:
                registry.end_run(tracked, ended)
    return run, run.stats()


def final(lines: "list[Stats]", **names: str) -> dict[str, float]:
    """Of a run's last line of statistics, the values by those names as metadata; what was lost of it is left out."""
    last = lines[-1] if lines else {}
    return {shown: last[name] for shown, name in names.items() if name in last}


@dg.asset(deps=[training_shards, "loss_decoder"], kinds={"torch", "deepspeed", "mlflow"}, group_name="model", pool="gpu")
def trained_model(
    context: dg.AssetExecutionContext,
    settings: Settings,
    workspace: WorkspaceResource,
    registry: RegistryResource,
    trainer: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """One network: the denoising UNet with its condition tokens, saved as a pipeline that stands alone."""
    preset = settings.resolve()
    run, lines = run_training(context, trainer, workspace.open, registry.open, preset, current_shards(workspace.open, preset))
    version = tables.fingerprint(run.path.name)
    workspace.open.set_network("diffusion", preset, run.model, version)
    return dg.MaterializeResult(
        metadata={
            "run": run.path.name,
            "steps": preset.training.steps,
            **final(lines, images_per_second="images_per_second", loss="loss"),
            "curve": curve(lines, ("loss_dm", "loss_id", "loss_exp", "loss_perceptual", "val_loss_dm", "val_id", "val_exp")),
            **_validated(run),
        },
        data_version=dg.DataVersion(version),
    )


def _validated(run: RunDirectory) -> dict[str, dg.MarkdownMetadataValue]:
    """The last validation sheet of a run that made any; the full-sized ones are with its MLflow run."""
    from diffsfsr.face.images import read, resize

    sheets = sorted(run.validation.glob("step-*.png"))
    if not sheets:
        return {}
    sheet = read(sheets[-1])
    scale = min(1.0, 800 / sheet.shape[1])
    return {"validation": picture(resize(sheet, (round(sheet.shape[0] * scale), round(sheet.shape[1] * scale))))}
