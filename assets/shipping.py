"""A model out of the state folder into one that stands alone (diffsfsr.portrait.shipped): what the stores know of it goes along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.stores.registry import content_hash
from assets.stores.workspace import Shard, Workspace, aligned
from assets.version import RECORD
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.evaluation.report.families import TASK as NAMED
from diffsfsr.portrait import shipped
from diffsfsr.portrait.card import Facts, card
from diffsfsr.portrait.words import WORD_TABLE, examples

_FINISHED = "finished_by"  # of an exported model's record
_HEAD = ("items", "gallery", "chance_top1", "independent")


def export(workspace: Workspace, model: Path, out: Path, by_eye: str = "") -> dict[str, Any]:
    """Write a saved model to `out`; returns what is in it. `by_eye` is Markdown for the card's known failures.

    Raises NotReady where the model has not been evaluated, or no labelled face is left to look words up by.
    """
    shipped.check_place(out)
    preset, measured, named = shipped.preset_of(model), evaluations(workspace, model), named_families(workspace, model)
    origin = _origin(workspace, model)
    words = _words(workspace, origin, model, preset)
    counts = {label: words["emotion"].to_pylist().count(label) for label in dict.fromkeys(words["emotion"].to_pylist())}
    trained_on = origin.before | _counts(workspace, origin.shards, preset)
    tuned_on = origin.before and not origin.finished_by
    own = tuple(sorted({shard.dataset for shard in origin.shards})) if tuned_on else ()
    told = Facts(preset, trained_on, counts, measured, named, own, origin.finished_by, by_eye)
    evaluation = {"model": content_hash(model), "preset": preset.name, "trained_on": trained_on, "words": counts}
    evaluation |= {"measured": measured, "named": named} | ({_FINISHED: origin.finished_by} if origin.finished_by else {})
    size = shipped.write(out, model, words, evaluation, card(told))
    on = {dataset: list(tasks) for dataset, tasks in measured.items()}
    return {"folder": str(out), "megabytes": round(size / 1e6, 1), "words": counts, "evaluated_on": on}


def evaluations(workspace: Workspace, model: Path) -> dict[str, dict[str, Any]]:
    """Data set -> task -> head and {mean, low, high, count} of each metric: of the reports that `run evaluate` wrote about this very
    model, that of most items of each task, the newest of those. Raises NotReady where there is none."""
    found = dict[str, dict[str, Any]]()
    for report in _reports(workspace, model):
        for task, columns in report["tasks"].items():
            if task != NAMED:
                best = found.setdefault(report["facts"]["data set"], {})
                best[task] = max(columns, best.get(task, columns), key=lambda one: one["items"])
    if not found:
        name = shipped.preset_of(model).name
        raise NotReady(f"the model in {model} has no evaluation report; run `diffsfsr run evaluate --preset {name}` first")
    return {dataset: {task: _figures(tasks[task]) for task in sorted(tasks)} for dataset, tasks in sorted(found.items())}


def named_families(workspace: Workspace, model: Path) -> dict[str, dict[str, Any]]:
    """Data set -> `classifier`, and of each word the share of pictures whose family it names, as `run evaluate --words` measured it of this
    very model: `<word>_output`, `<word>_photograph` and `<word>_ratio` -> {mean, low, high, count}. Empty where it was not."""
    found = {}
    for report in _reports(workspace, model):
        if NAMED in report["tasks"]:
            found[report["facts"]["data set"]] = {"classifier": report["facts"]["classifier"]} | report["tasks"][NAMED]
    return found


def _reports(workspace: Workspace, model: Path) -> Iterator[dict[str, Any]]:
    """Those about this very model, the newest last."""
    content = content_hash(model)
    for file in sorted(workspace.home.glob("reports/*/*/report.json"), key=lambda file: file.stat().st_mtime):
        report = json.loads(file.read_text(encoding="utf-8"))
        if report.get("facts", {}).get("model") == content:
            yield report


def _figures(columns: dict[str, Any]) -> dict[str, Any]:
    """A task's figures and who judged them, without what that machine lacked."""
    entries = {name: entry for name, entry in columns.items() if isinstance(entry, dict) and "mean" in entry}
    head = {name: columns[name] for name in _HEAD if name in columns}
    judges = {role: told for role, told in columns.get("judges", {}).items() if not told.startswith("missing")}
    return head | {"judges": judges} | entries


def _words(workspace: Workspace, origin: _Origin, model: Path, preset: Preset) -> pa.Table:
    """Of its training faces; those that the model brings from the one it was trained on from where not all of their data sets are here."""
    here = {shard.dataset for shard in origin.shards}
    if (model / WORD_TABLE).is_file() and not origin.before.keys() <= here:
        return tables.read(model / WORD_TABLE).replace_schema_metadata()
    return labelled(workspace, origin.shards, model, preset)


def labelled(workspace: Workspace, shards: list[Shard], model: Path, preset: Preset) -> pa.Table:
    """WORDS of the training faces that have a label, as the shipped encoder sees them. Raises NotReady where there is none."""
    labels, vectors, done = [], [], []
    encoder = shipped.rounded_dln(model)
    for part, embeddings, shown in _embedded(workspace, shards, encoder, preset):
        labels += part
        vectors.append(embeddings)
        done.append(shown)
    words = examples(labels, np.concatenate(vectors), np.concatenate(done)) if labels else None
    if words is None or not len(words):
        raise NotReady("no training face has an emotion label, by which words are looked up: prepare photographs with a labels.csv")
    return words


def _embedded(
    workspace: Workspace, shards: list[Shard], encoder: Any, preset: Preset
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """A shard's labels, embeddings and gestures, of its labelled training faces."""
    from assets.embeddings import encode_all
    from diffsfsr.face.gestures import gestures
    from diffsfsr.training.data import column

    for shard in shards:
        faces = tables.read(workspace.file(aligned(preset), shard), ["emotion", "split", "crop", "landmarks"])
        faces = faces.filter(pc.and_(pc.equal(faces["split"], "train"), pc.not_equal(pc.fill_null(faces["emotion"], ""), "")))
        if len(faces):
            done = gestures(column(faces, "landmarks", (68, 2)))
            yield faces["emotion"].to_pylist(), np.concatenate(list(encode_all(encoder, faces))), done


class _Origin(NamedTuple):
    """What trained a model: the shards that its run read, data set -> (faces, people) of what it was trained on from, and the preset of
    that run where it but finished the other's decoder."""

    shards: list[Shard]
    before: dict[str, tuple[int, int]]
    finished_by: str = ""


def _origin(workspace: Workspace, model: Path) -> _Origin:
    """By the record of the model's run. Raises NotReady where that, or the record of the model it was trained on from, is not here."""
    if shipped.is_exported(model):
        return _Origin([], _recorded(model), shipped.evaluation(model).get(_FINISHED, ""))
    run = _run(workspace, model)
    inputs, trained_by = run.get("inputs", {}), run.get("preset", {})
    read = {(Path(file).parent.parent.name, Path(file).stem) for file in inputs.get("shards", [])}
    shards = [shard for shard in workspace.shards() if (shard.dataset, f"{shard.number:04d}") in read]
    if not shards or len(shards) < len(read):
        raise NotReady(f"{model} learned from shards that are no longer here, so that nobody could say from whom")
    start = inputs.get("start_from")
    if start and not shipped.is_exported(Path(start)):
        raise NotReady(f"{model} was trained on from {start}, which does not say from whom it learned: train on from an exported model")
    finished_by = trained_by["name"] if trained_by.get("trains") == "finish" else ""
    return _Origin(shards, _recorded(Path(start)) if start else {}, finished_by)


def _recorded(model: Path) -> dict[str, tuple[int, int]]:
    return {name: (faces, people) for name, (faces, people) in shipped.evaluation(model)["trained_on"].items()}


def _run(workspace: Workspace, model: Path) -> dict[str, Any]:
    """config.json of the run that made a model: the folder is the run's own, or of a registered version, whose record names it."""
    files, record = [model.parent / "config.json"], model.parent / RECORD
    if record.is_file() and (name := json.loads(record.read_text(encoding="utf-8")).get("training_run")):
        files.append(workspace.runs / name / "config.json")
    for file in filter(Path.is_file, files):
        return json.loads(file.read_text(encoding="utf-8"))
    raise NotReady(f"the training run that made {model} is not here: its config.json says from whom the model learned")


def _counts(workspace: Workspace, shards: list[Shard], preset: Preset) -> dict[str, tuple[int, int]]:
    """Data set -> (faces, people) of its training split."""
    found: dict[str, tuple[int, int]] = {}
    for name in sorted({shard.dataset for shard in shards}):
        mine = [shard for shard in shards if shard.dataset == name]
        rows = workspace.table(aligned(preset), mine, ["split", "person"])
        people = rows.filter(pc.equal(rows["split"], "train"))["person"].to_pylist()
        found[name] = len(people), len(set(people))
    return found
