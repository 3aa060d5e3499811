"""Checks that compare two numbers obtained apart."""

from typing import Any

import dagster as dg

from assets import unseen
from assets.embeddings import catalogue, emotion_index
from assets.resources import CatalogueResource, Settings
from assets.stores.catalogue import Catalogue
from diffsfsr.config import Preset
from diffsfsr.evaluation import leakage

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
    """Leakage between the splits of a catalogue, by the sharpest of the preset's recognisers."""
    found = unseen.compare(catalogue, preset)
    if found is None:
        return dg.AssetCheckResult(passed=True, metadata={"compared": "no face of both splits has an embedding"})
    leaks, rows = found.leaks, found.rows
    pairs = [f"| {s.cosine:.3f} | {rows['test'][s.test]['path']} | {rows['train'][s.train]['path']} |" for s in leaks.suspects[:_SHOWN]]
    metadata: dict[str, Any] = {
        "train": leaks.train,
        "test": leaks.test,
        "people_in_both": len(leaks.shared),
        "test_faces_of_people_in_both": leaks.shared_faces,
        "suspects_by_embedding": len(leaks.suspects),
        "left_out_of_evaluations": len(leakage.seen(leaks, found.people("test"))),
        "threshold": leaks.threshold,
        "encoder": found.encoder,
        "pairs": dg.MetadataValue.md("\n".join(["| cosine | test | train |", "| --- | --- | --- |", *pairs])),
    }
    return dg.AssetCheckResult(passed=not leaks.shared, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)
