"""Which held-out faces training may have seen after all: people under two names, or in two data sets. By the catalogue's embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.stores.workspace import Workspace, aligned
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.evaluation import leakage
from diffsfsr.presets import embedded_by

if TYPE_CHECKING:
    from assets.stores.catalogue import Catalogue

_SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every held-out face against every training face, whatever their data sets, by one recogniser. `rows`: split -> who and where."""

    encoder: str
    leaks: leakage.Leakage
    rows: dict[str, list[dict[str, Any]]]

    def people(self, split: str) -> list[str]:
        return _people(self.rows[split])


@dataclass(frozen=True)
class Suspicion:
    """Held-out faces that no evaluation should draw on, and why in words."""

    faces: frozenset[str]
    told: str

    def of(self, dataset: str) -> frozenset[str]:
        return frozenset(face for face in self.faces if face.startswith(f"{dataset}/"))


def suspicion(workspace: Workspace, preset: Preset) -> Suspicion:
    """Of all prepared data sets; looked for once, and again when the catalogue has changed."""
    files = [workspace.file(kind, s) for s in workspace.shards() for kind in (aligned(preset), f"catalogued-{preset.crop}")]
    return _suspicion(workspace, preset, tables.fingerprint([tables.mark_of(file) for file in files]))


@lru_cache(maxsize=4)
def _suspicion(workspace: Workspace, preset: Preset, state: str) -> Suspicion:
    from assets.stores.catalogue import Catalogue

    found = compare(Catalogue(workspace.catalogue or workspace.home / "catalogue"), preset)
    if found is None:
        return Suspicion(frozenset(), "none could be compared with the training faces, for want of embeddings")
    left_out = leakage.seen(found.leaks, found.people("test"))
    told = f"{found.encoder} finds them, or most faces of their people, as near to a training face as one of all pairs of strangers "
    told += f"would be by chance (cosine {found.leaks.threshold:.3f}), or their people have training faces"
    return Suspicion(frozenset(found.rows["test"][i]["face_id"] for i in left_out), told)


def compare(catalogue: Catalogue, preset: Preset) -> Comparison | None:
    """By the sharpest of the recognisers that the preset's faces are embedded by; None where no face of both splits has an embedding."""
    from assets.stores.lance import matrix

    known = catalogue.columns
    found = {}
    for name in embedded_by(preset):
        if (column := f"id_{name}") not in known:
            continue
        tables_of = {split: catalogue.faces(["face_id", "person", "path", column], split=split, size=preset.crop) for split in _SPLITS}
        # In one order, whatever the store's: pairs of strangers are drawn from them.
        parts = {split: table.filter(table[column].is_valid()).sort_by("face_id") for split, table in tables_of.items()}
        if all(len(part) for part in parts.values()):
            vectors = {split: matrix(part[column]) for split, part in parts.items()}
            found[name] = vectors, {split: part.select(["face_id", "person", "path"]).to_pylist() for split, part in parts.items()}
    if not found:
        return None
    encoder = max(found, key=lambda name: np.nan_to_num(_sharpness(*found[name])))
    vectors, rows = found[encoder]
    leaks = leakage.find(vectors["train"], _people(rows["train"]), vectors["test"], _people(rows["test"]))
    return Comparison(encoder, leaks, rows)


def _sharpness(vectors: dict[str, np.ndarray], rows: dict[str, list[dict[str, Any]]]) -> float:
    return leakage.sharpness(vectors["train"], _people(rows["train"]), len(rows["test"]))


def _people(rows: list[dict[str, Any]]) -> list[str]:
    return [row["person"] or "" for row in rows]
