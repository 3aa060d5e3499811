"""What a registered version is made of: its weights, and the record that goes with them into the registry."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assets.stores.catalogue import Catalogue
from assets.stores.registry import content_hash
from diffsfsr import config, tables, weights
from diffsfsr.config import Preset
from diffsfsr.portrait.words import WORD_TABLE, WORDS, WordTable, vocabulary

RECORD = "version.json"
_EVALUATION, _PINNED = "evaluation.", "pinned."  # tags of a version, each followed by <data set>-<task>


def record(folder: Path, evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """What the model of a training run is made of, and how it was measured; null for what its folder does not tell."""
    run = _read(folder.parent / "config.json")
    preset = _read(folder / "preset.json")
    return {
        "model": content_hash(folder),
        "preset": preset,
        "config": tables.fingerprint(preset),
        "data_version": run.get("inputs", {}).get("data_version"),
        "files": _files(config.from_dict(preset)),
        "dln": _read(folder / "dln" / "dln.json").get("version"),
        "training_run": folder.parent.name if run else None,
        "git": run.get("git"),
        "packages": run.get("packages"),
        "evaluations": dict(evaluations),
    }


def _files(preset: Preset) -> dict[str, str | None]:
    """sha256 of every published file that the model was trained with: encoders, landmarks, what its networks started from."""
    return {name: weights.ZOO[name].sha256 for name in weights.used_by(preset, judged=False)}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def tags(told: Mapping[str, Any]) -> dict[str, str]:
    """The record as MLflow's page shows it: a tag a part, the hashes of files short."""
    found = {name: told[name] for name in ("config", "data_version", "dln", "training_run", "git") if told[name]}
    files = {f"sha256.{name}": sha256[:16] for name, sha256 in told["files"].items() if sha256}
    return {"preset": told["preset"]["name"], **found, **files, **evaluation_tags(told["evaluations"])}


def evaluation_tags(evaluations: Mapping[str, Any]) -> dict[str, str]:
    """evaluation.<data set>-<task> -> which MLflow run measured which pair lists."""
    return {evaluation_tag(name): json.dumps(told) for name, told in evaluations.items()}


def evaluation_tag(name: str) -> str:
    """The tag of a version's newest evaluation on '<data set>-<task>'."""
    return _EVALUATION + name


def pinned(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that keep, of a version that is promoted, by which evaluations."""
    return {_PINNED + name.removeprefix(_EVALUATION): told for name, told in tags.items() if name.startswith(_EVALUATION)}


def pins(tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """'<data set>-<task>' -> the evaluation that a version was promoted by (assets.registry.logged)."""
    return {name.removeprefix(_PINNED): json.loads(told) for name, told in tags.items() if name.startswith(_PINNED)}


@contextmanager
def beside(told: Mapping[str, Any], catalogue: Catalogue, folder: Path) -> Iterator[Path]:
    """What is stored next to the model in `folder`: the record, and the labelled expressions that words are looked up in, the catalogue's
    for the model's DLN with those that the model brings itself."""
    own = WordTable(folder / WORD_TABLE) if (folder / WORD_TABLE).is_file() else None
    words = vocabulary(own, catalogue.vocabulary(told["dln"]) if told["dln"] else None)
    found = ((label, *words.faces_of(label)) for label in words.labels)
    rows = [
        {"face_id": face, "emotion": label, "expression": vector}
        for label, faces, vectors in found
        for face, vector in zip(faces, vectors, strict=True)
    ]
    with TemporaryDirectory() as made:
        tables.write_json(Path(made) / RECORD, told)
        tables.write(Path(made) / WORD_TABLE, tables.from_rows(rows, WORDS).sort_by("face_id"), told["dln"] or "")
        yield Path(made)
