"""Which estimate of z_0 the losses should look at: the comparison of the midpoints on a trained model."""

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg

from assets.evaluation import Model, model_folder
from assets.pictures import picture
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.shards import current_shards
from assets.stores.registry import content_hash
from assets.stores.workspace import Workspace
from assets.training import trained_model
from diffsfsr import tables, weights
from diffsfsr.config import Preset
from diffsfsr.errors import InputError

MIDPOINTS_VERSION = 1


@dg.asset(deps=[trained_model], kinds={"torch", "mlflow"}, group_name="release", pool="gpu")
def midpoint_study(
    context: dg.AssetExecutionContext, config: Model, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.MaterializeResult:
    """One report per model and state of its faces: each midpoint's error against the true z_0 over t, with intervals."""
    from diffsfsr.face.images import read, resize

    preset = settings.resolve()
    model, name = model_folder(workspace.open, registry.open, preset, config.model)
    folder = compare_midpoints(workspace.open, model, preset)
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    run_id = registry.open.open_run(folder.name, kind="midpoints")
    registry.open.log_stats(run_id, curves(figures))
    registry.open.log_folder(run_id, folder)
    registry.open.end_run(run_id)
    plot = read(folder / "midpoints.png")
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "plot": picture(resize(plot, (plot.shape[0] // 2, plot.shape[1] // 2))),
            "table": dg.MetadataValue.md((folder / "report.md").read_text(encoding="utf-8").replace("![over t](midpoints.png)\n", "")),
            "report": dg.MetadataValue.path(str(folder / "report.md")),
            "mlflow_run": run_id,
        }
    )


def compare_midpoints(workspace: Workspace, model: Path, preset: Preset) -> Path:
    """Study a saved model on the held-out faces of its training shards, unless that has been done; returns the report's folder."""
    import torch

    from diffsfsr.evaluation import midpoints
    from diffsfsr.portrait.compose import Studio

    folder, e = report_folder(workspace, model, preset), preset.evaluation
    if tables.is_report(folder, ("facts", "measures", midpoints.TRUE), ("report.md", "midpoints.png")):
        return folder
    studio = Studio(model)
    data, whose = _faces(workspace, studio, preset)
    schedule = studio.pipeline.model.schedule
    items = midpoints.batches(studio, data, e.items, e.batch)
    found = midpoints.study(items, schedule, midpoints.grid(schedule.steps), torch.Generator().manual_seed(e.seed))
    facts = {"model": model, "faces": f"{min(e.items, len(data))} of {len(data)}, {whose}", "seed": e.seed}
    facts |= {"identity": ", ".join(studio.identity.present)} | ({"absent": ", ".join(studio.absent)} if studio.absent else {})
    midpoints.write_report(folder, found, f"Midpoint estimates, preset {preset.name}", facts)
    return folder


def report_folder(workspace: Workspace, model: Path, preset: Preset) -> Path:
    e, names = preset.evaluation, preset.conditioning.identity
    here = [name for name in names if all(weights.find(file) for file in weights.files_of(name))]
    made_from = (content_hash(model), current_shards(workspace, preset).data_version, preset.name, here, e.items, e.batch, e.seed)
    return workspace.home / "reports" / f"midpoints-{tables.fingerprint(made_from, MIDPOINTS_VERSION)[:10]}"


def _faces(workspace: Workspace, studio: Any, preset: Preset) -> tuple[Any, str]:
    """Held-out faces as the model's own latents, or all where none are held out, and which of the two. InputError for other latents."""
    import torch

    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.training.data import Triplets, read_shards

    inputs, own = current_shards(workspace, preset), studio.preset
    theirs, ours = LatentAutoencoder.from_pretrained(inputs.autoencoder).state_dict(), studio.pipeline.vae.state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(value, ours[name].cpu()) for name, value in theirs.items()):
        raise InputError(f"the model was trained on the latents of another autoencoder than preset {preset.name} has now: train it again")
    held_out = "test" in read_shards(list(inputs.shards), None, ["split"])["split"].to_pylist()
    shape = (own.autoencoder.channels, own.latent, own.conditioning.identity)
    data = Triplets(list(inputs.shards), *shape, split="test" if held_out else None)
    return data, "held out from training" if held_out else "ALL of them seen in training: none are held out"


def curves(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for MLflow, whose step is t: {step, <measure>_<estimator>: mean}."""
    rows: dict[int, dict[str, Any]] = {}
    for measure, estimators in figures["measures"].items():
        for name, entries in estimators.items():
            for entry in (e for e in entries if e["mean"] is not None):
                key = f"{measure}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}"
                rows.setdefault(entry["t"], {"step": entry["t"]})[key] = entry["mean"]
    return list(rows.values())
