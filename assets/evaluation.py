"""Evaluation: what a model makes of held-out people, measured item by item."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from assets import partitions
from assets.pictures import picture
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import Registry, content_hash
from assets.stores.workspace import Shard, Workspace, aligned
from assets.training import trained_model
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady

EVALUATION_VERSION = 1
_HELD_OUT = 3  # people: a triplet of task `all` is of three


class Model(dg.Config):
    """Which model to evaluate: `trained`, the preset's newest, or an alias of the registry such as `champion`."""

    model: str = "trained"


@dg.asset(partitions_def=partitions.evaluations, deps=[trained_model], kinds={"torch", "mlflow"}, group_name="release", pool="gpu")
def evaluation_report(
    context: dg.AssetExecutionContext, config: Model, settings: Settings, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.MaterializeResult:
    """One report per task and data set: ID, Exp, Pose and MSE with intervals, a table and a grid of pictures."""
    from diffsfsr.face.images import read

    preset = settings.resolve()
    keys = context.partition_key.keys_by_dimension  # type: ignore[attr-defined]
    folder, name = model_folder(workspace.open, registry.open, preset, config.model)
    report = evaluate_model(workspace.open, folder, keys["dataset"], keys["task"], preset)
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    run_id = registry.open.open_run(f"evaluation-{report.parent.name}-{report.name}", kind="evaluation")
    registry.open.log_stats(run_id, [{"step": 0} | flat(numbers)])
    registry.open.log_folder(run_id, report)
    registry.open.end_run(run_id)
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "table": dg.MetadataValue.md((report / "report.md").read_text(encoding="utf-8")),
            "grid": picture(_small(read(report / "grid.png"))),
            "report": dg.MetadataValue.path(str(report / "report.html")),
            "mlflow_run": run_id,
            **flat(numbers),
        }
    )


def model_folder(workspace: Workspace, registry: Registry, preset: Preset, model: str) -> tuple[Path, str]:
    """(folder, name) of the preset's newest model, or of the one behind an alias."""
    if model == "trained":
        folder, version = workspace.need_network("diffusion", preset)
        return folder, version
    found = registry.resolve(model)
    return found.folder, f"version {found.version}"


def report_folder(workspace: Workspace, model: Path, dataset: str, task: str, preset: Preset) -> Path:
    """Where the report of a model on a task lies; the same model, items and protocol find it again."""
    return workspace.home / "reports" / _mark(workspace, model, dataset, preset)[:10] / f"{dataset}-{task}"


def _mark(workspace: Workspace, model: Path, dataset: str, preset: Preset) -> str:
    """What the measurements of a model on a data set are made from."""
    e = preset.evaluation
    marks = [tables.mark_of(workspace.file(aligned(preset), shard)) for shard in _shards(workspace, dataset, preset)]
    return tables.fingerprint(content_hash(model), marks, e.items, e.judge, e.seed, preset.crop, EVALUATION_VERSION)


def prepared_datasets(workspace: Workspace, preset: Preset) -> list[str]:
    """Data sets with faces of the preset's size. Raises NotReady where there is none."""
    found = [
        name for name in workspace.datasets() if any(_rows(workspace, shard, preset) for shard in _aligned_shards(workspace, name, preset))
    ]
    if not found:
        raise NotReady(f"no faces of {preset.crop} pixels are prepared yet; run `diffsfsr run prepare --preset {preset.name} --data DIR`")
    return found


def _rows(workspace: Workspace, shard: Shard, preset: Preset) -> int:
    return tables.read(workspace.file(aligned(preset), shard), ["face_id"]).num_rows


def _aligned_shards(workspace: Workspace, dataset: str, preset: Preset) -> list[Shard]:
    return [s for s in workspace.shards(dataset) if workspace.file(aligned(preset), s).exists()]


def _shards(workspace: Workspace, dataset: str, preset: Preset) -> list[Shard]:
    ready = _aligned_shards(workspace, dataset, preset)
    if not ready:
        raise NotReady(f"data set {dataset!r} has no aligned faces of {preset.crop} pixels; run `diffsfsr run prepare --data DIR`")
    return ready


def evaluate_model(workspace: Workspace, model: Path, dataset: str, task: str, preset: Preset) -> Path:
    """Evaluate a saved model on one task, unless that has been done; returns the report's folder."""
    from diffsfsr.evaluation import report

    target = report_folder(workspace, model, dataset, task, preset)
    if (target / "report.json").exists():
        return target
    bench = _Bench(workspace, model, dataset, preset, _mark(workspace, model, dataset, preset))
    results = [_measured(bench, each) for each in (task, "reconstruct")]
    report.write_report(target, results, f"DiffSFSR, task {task}, on {dataset}", _loaded(bench).facts)
    return target


@dataclass(frozen=True)
class _Bench:
    """A model and the faces it is measured on; `mark` tells apart what lay in the same places at another time."""

    workspace: Workspace
    model: Path
    dataset: str
    preset: Preset
    mark: str


@dataclass(frozen=True)
class _Loaded:
    studio: Any
    faces: Any
    splits: list[str]
    use: str | None  # the split to take items from; None for all
    judge: Any
    facts: dict[str, Any]


@lru_cache(maxsize=1)
def _loaded(bench: _Bench) -> _Loaded:
    from diffsfsr.evaluation.judges import pick_identity_judge
    from diffsfsr.portrait.compose import Studio

    studio, preset = Studio(bench.model), bench.preset
    faces, splits = _faces(bench.workspace, bench.dataset, preset)
    use = "test" if len({p for p, s in zip(faces.people, splits, strict=True) if s == "test"}) >= _HELD_OUT else None
    facts = {
        "data set": bench.dataset,
        "people": "held out from training" if use else f"ALL, training people too: fewer than {_HELD_OUT} are held out",
        "preset": preset.name,
        "training steps": studio.preset.training.steps,
        "model": content_hash(bench.model),
    }
    judge = pick_identity_judge(preset.evaluation.judge, studio.preset.conditioning.identity)
    return _Loaded(studio, faces, splits, use, judge, facts)


@lru_cache(maxsize=2)
def _measured(bench: _Bench, task: Any) -> Any:
    """What the model made of a task's items. The reconstructions stand in every task's report, and are made once a process."""
    from diffsfsr.evaluation import protocols
    from diffsfsr.evaluation.generation import crop_generator

    e, it = bench.preset.evaluation, _loaded(bench)
    items = protocols.make_items(it.faces.ids, it.faces.people, it.splits, task, e.items, e.seed, it.use)
    generate = crop_generator(it.studio, it.faces)
    return protocols.evaluate(items, it.faces, generate, it.judge, it.studio.dln, task=task, seed=e.seed, batch=e.batch)


def _faces(workspace: Workspace, dataset: str, preset: Preset) -> tuple[Any, list[str]]:
    """A data set's aligned faces as evaluation.protocols.Faces, and their splits."""
    from diffsfsr.evaluation.protocols import Faces
    from diffsfsr.face.images import decode

    columns = ["face_id", "person", "split", "landmarks", "crop"]
    table = workspace.table(aligned(preset), _shards(workspace, dataset, preset), columns)
    if "test" in (splits := table["split"].to_pylist()):
        held_out = [i for i, split in enumerate(splits) if split == "test"]
        if len({table["person"][i].as_py() for i in held_out}) >= _HELD_OUT:  # the others need not be decoded
            table, splits = table.take(held_out), ["test"] * len(held_out)
    crops = [decode(png) for png in table["crop"].to_pylist()]
    landmarks = np.array(table["landmarks"].to_pylist(), np.float32).reshape(-1, 68, 2)
    return Faces(table["face_id"].to_pylist(), table["person"].to_pylist(), crops, landmarks), splits


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
