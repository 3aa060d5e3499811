"""Checks that compare two numbers obtained apart."""

from typing import Any

import dagster as dg
import numpy as np

from assets.embeddings import catalogue, emotion_index
from assets.resources import CatalogueResource, Settings
from assets.stores.catalogue import Catalogue
from diffsfsr.config import Preset

_SHOWN = 30  # suspicious pairs


@dg.asset_check(asset=catalogue, blocking=True)
def one_row_per_face(catalogue: CatalogueResource) -> dg.AssetCheckResult:
    """No key stands twice in any table of the catalogue."""
    duplicates = catalogue.open.duplicates()
    return dg.AssetCheckResult(passed=duplicates == 0, metadata={"duplicates": duplicates, **catalogue.open.counts()})


@dg.asset_check(asset=emotion_index)  # of the whole catalogue, once before a training; the catalogue's own checks run with each shard
def no_test_face_in_training(settings: Settings, catalogue: CatalogueResource) -> dg.AssetCheckResult:
    """Nobody is in both splits, by name; who may be, by embedding, is listed. It warns only: the paper's own split has both."""
    return leakage_check(catalogue.open, settings.resolve())


def leakage_check(catalogue: Catalogue, preset: Preset) -> dg.AssetCheckResult:
    """Leakage between the splits of a catalogue, by the preset's first identity encoder."""
    from assets.stores.lance import matrix
    from diffsfsr.evaluation import leakage

    encoder = preset.conditioning.identity[0]
    columns = {split: catalogue.faces(["person", "path", f"id_{encoder}"], split=split, size=preset.crop) for split in ("train", "test")}
    found, rows = {}, {}
    for split, table in columns.items():
        table = table.filter(table[f"id_{encoder}"].is_valid())
        rows[split] = table.select(["person", "path"]).to_pylist()
        found[split] = matrix(table[f"id_{encoder}"]) if len(table) else np.zeros((0, 1), np.float32)
    people = {split: [row["person"] or "" for row in those] for split, those in rows.items()}
    leaks = leakage.find(found["train"], people["train"], found["test"], people["test"])
    pairs = [f"| {s.cosine:.3f} | {rows['test'][s.test]['path']} | {rows['train'][s.train]['path']} |" for s in leaks.suspects[:_SHOWN]]
    metadata: dict[str, Any] = {
        "train": leaks.train,
        "test": leaks.test,
        "people_in_both": len(leaks.shared),
        "test_faces_of_people_in_both": leaks.shared_faces,
        "suspects_by_embedding": len(leaks.suspects),
        "threshold": leaks.threshold,
        "encoder": encoder,
        "pairs": dg.MetadataValue.md("\n".join(["| cosine | test | train |", "| --- | --- | --- |", *pairs])),
    }
    return dg.AssetCheckResult(passed=not leaks.shared, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)
