"""The report on words: how each of the 135 resolves for a model, and whether its outputs look like what was asked for to a classifier."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from assets import heldout, partitions
from assets.evaluation import flat, model_folder
from assets.measuring import EVALUATION_VERSION, Tell, silent
from assets.pictures import picture
from assets.resources import CatalogueResource, RegistryResource, Settings, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.registry import content_hash
from assets.stores.workspace import Workspace, aligned
from assets.training import trained_model
from diffsfsr import tables, weights
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.portrait.words import Vocabulary, beside, vocabulary

ITEMS = 40  # outputs a word
_CLASSIFIER = "mini_xception"


class Asked(dg.Config):
    """Which model to ask for words, as `evaluation.Model` names it, and how many outputs of each."""

    model: str = "trained"
    items: int = ITEMS


@dg.asset(partitions_def=partitions.datasets, deps=[trained_model], kinds={"torch", "mlflow"}, group_name="release", pool="gpu")
def words_report(
    context: dg.AssetExecutionContext,
    config: Asked,
    settings: Settings,
    workspace: WorkspaceResource,
    catalogue: CatalogueResource,
    registry: RegistryResource,
) -> dg.MaterializeResult:
    """One report per data set: what a model makes of words, named by a classifier beside labelled photographs; and how words resolve."""
    from diffsfsr.face.images import read

    preset = settings.resolve()
    model, name = model_folder(workspace.open, registry.open, preset, config.model)
    report = measure(workspace.open, catalogue.open, model, context.partition_key, preset, config.items, context.log.info)
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    run_id = registry.open.open_run(f"{report.parent.name}-{report.name}", kind="evaluation")
    registry.open.log_stats(run_id, [{"step": 0} | flat(numbers)])
    registry.open.log_folder(run_id, report)
    registry.open.end_run(run_id)
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "table": dg.MetadataValue.md((report / "report.md").read_text(encoding="utf-8")),
            "grid": picture(read(report / "grid-words.png")),
            "report": dg.MetadataValue.path(str(report / "report.html")),
            "mlflow_run": run_id,
            **flat(numbers),
        }
    )


def measure(
    workspace: Workspace, catalogue: Catalogue, model: Path, dataset: str, preset: Preset, items: int = ITEMS, tell: Tell = silent
) -> Path:
    """Ask a saved model for the words, unless that has been done; returns the report's folder. A run that was killed goes on.

    Raises NotReady without prepared faces, labelled faces that the model knows, or the classifier's weights.
    """
    from diffsfsr.encoders.mini_xception import MiniXception
    from diffsfsr.evaluation import families
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.evaluation.report.families import write_report
    from diffsfsr.face.alignment import align_all
    from diffsfsr.portrait.compose import Studio

    folder, vocabulary = report_folder(workspace, catalogue, model, dataset, preset, items), vocabulary_of(model, catalogue)
    if tables.is_report(folder, ("facts", "tasks", "resolution"), ("report.md", "report.html", "items.parquet", "grid-words.png")):
        return folder
    held, batch = heldout.held_out(workspace, dataset, preset), preset.evaluation.batch
    classifier = families.Classifier(MiniXception(), align_all)
    ours = Ours(Studio(model), held.faces, content_hash(model))
    asked = families.ask(ours, vocabulary, items, preset.evaluation.seed, workspace.outputs(dataset))
    at_hand = _photographs(workspace, preset, {facts["reference"] for each in asked for facts in each.chosen})
    photographs, rows = heldout.labelled(workspace, dataset, preset), []
    for each in asked:
        rows += classifier.outputs(each, batch, lambda done, of, word=each.word: tell(f"{word}: {done} of {of} outputs"))  # type: ignore[misc]
        rows += [*classifier.photographs(each, photographs, batch), *classifier.references(each, at_hand.get)]
    facts = {
        "data set": dataset,
        "people": held.told,
        "classifier": f"{_CLASSIFIER} (neither conditions nor trains the model; weights {classifier.judge.version[:12]})",
        "labelled photographs": f"{len(photographs.ids)}, no more than {heldout.MOST} of a label; the classifier learned from none",
        "labelled faces that words are looked up in": ", ".join(f"{label} {n}" for label, n in vocabulary.labels.items()),
        "model": content_hash(model),
        "outputs a word": items,
    }
    write_report(folder, rows, asked, families.resolutions(vocabulary.labels), f"DiffSFSR, words, on {dataset}", facts)
    return folder


def report_folder(workspace: Workspace, catalogue: Catalogue, model: Path, dataset: str, preset: Preset, items: int) -> Path:
    """Where the report lies; the same model, faces, words and classifier find it again."""
    labels, faces_of = vocabulary_of(model, catalogue)
    known = [(label, faces_of(label)[0]) for label in sorted(labels)]
    made_from = (content_hash(model), heldout.state(workspace, dataset, preset), known, weights.ZOO[_CLASSIFIER].sha256)
    mark = tables.fingerprint(made_from, items, preset.evaluation.seed, preset.crop, heldout.MOST, EVALUATION_VERSION)
    return workspace.home / "reports" / f"words-{mark[:10]}" / dataset


def vocabulary_of(model: Path, catalogue: Catalogue) -> Vocabulary:
    """As portraits by the model look words up. Raises NotReady where neither the model nor the catalogue has a labelled face."""
    version = json.loads((model / "dln" / "dln.json").read_text(encoding="utf-8"))["version"]
    found = vocabulary(beside(model), catalogue.vocabulary(version))
    if not found.labels:
        raise NotReady("the catalogue has no labelled face of this model's expression encoder; run `diffsfsr run train` with its preset")
    return found


def labelled(workspace: Workspace, names: Iterable[str], preset: Preset) -> list[str]:
    """The data sets whose held-out faces have emotion labels; all of them where none have."""
    every = list(names)
    return [name for name in every if any(row.get("emotion") for row in heldout.held_out(workspace, name, preset).faces.labels)] or every


def _photographs(workspace: Workspace, preset: Preset, faces: set[str]) -> dict[str, Any]:
    """Face id -> crop and landmarks, of those that are prepared here: a model that came from elsewhere knows others."""
    import numpy as np

    from diffsfsr.face.images import decode

    found = {}
    for file in (workspace.file(aligned(preset), shard) for shard in workspace.shards()):
        if not file.exists() or not faces.intersection(tables.read(file, ["face_id"])["face_id"].to_pylist()):
            continue
        table = tables.read(file, ["face_id", "crop", "landmarks"])
        for row in table.filter(pc.is_in(table["face_id"], pa.array(sorted(faces)))).to_pylist():
            found[row["face_id"]] = decode(row["crop"]), np.float32(row["landmarks"]).reshape(68, 2)
    return found
