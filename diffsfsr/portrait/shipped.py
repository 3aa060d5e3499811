"""The model that comes with the package: where it lies, and how such a folder is written.

model_index.json unet/ vae/ tokens/ scheduler/    the saved pipeline, its weights in float16
dln/                                              the expression encoder, in float16 and without its frozen twin
preset.json                                       what it was trained by
glasses.safetensors                               what glasses do to an identity (diffsfsr.encoders.glasses); where the faces told it
brows.safetensors                                 where embeddings say that brows are (diffsfsr.encoders.brows); where the faces told it
words.parquet                                     labelled expressions, as that encoder sees them (diffsfsr.portrait.words)
evaluation.json README.md                         what was measured of it and what trained it, its words counted; and its model card

Light on purpose: `diffsfsr emotions` answers from here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsfsr import config
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady

if TYPE_CHECKING:
    import pyarrow as pa

    from diffsfsr.encoders.dln import Dln

NAME = "starter"  # what it is called where a model is named
PLACE = Path(__file__).parents[1] / NAME
LARGEST = 60_000_000  # bytes in all: more does not go into a package
_CARD, _EVALUATION, _PRESET = "README.md", "evaluation.json", "preset.json"
SAID = (_CARD, _EVALUATION)  # what is only said of a model
_NETWORKS = ("unet", "vae", "tokens", "dln")
_PARTS = frozenset(
    {*SAID, *_NETWORKS, _PRESET, "words.parquet", "glasses.safetensors", "brows.safetensors", "model_index.json", "scheduler"}
)


def folder() -> Path | None:
    """The shipped model's folder: the one that DIFFSFSR_STARTER names, else the package's own; None where there is none."""
    place = Path(os.environ.get("DIFFSFSR_STARTER") or PLACE)
    return place.resolve() if (place / _PRESET).is_file() and (place / _EVALUATION).is_file() else None


def need() -> Path:
    """`folder`. Raises NotReady where there is none."""
    found = folder()
    if found is None:
        raise NotReady(missing())
    return found


def missing() -> str:
    """Why there is none."""
    if named := os.environ.get("DIFFSFSR_STARTER"):
        return f"DIFFSFSR_STARTER={named} is no exported model (no {_PRESET} and {_EVALUATION} in it): name a folder of `diffsfsr export`"
    return f"no model comes with this package (no {_PRESET} in {PLACE}); `diffsfsr export` writes one"


def labels() -> dict[str, int]:
    """Label -> faces, of the shipped model's words, without reading them; {} where there is no such model."""
    found = folder()
    return evaluation(found)["words"] if found else {}


def evaluation(model: Path) -> dict[str, Any]:
    """What was measured of an exported model before it was. Raises InputError, naming the file, where it is broken."""
    file = model / _EVALUATION
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["words"] = {label: int(faces) for label, faces in dict(found["words"]).items()}
        return {**found, **{part: dict(found[part]) for part in ("words", "measured", "named", "trained_on")}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        do = "install the package again, or name a folder of `diffsfsr export`"
        raise InputError(f"{file} is broken ({type(error).__name__}): {do}") from error


def preset_of(model: Path) -> Preset:
    """The preset that a saved model was trained by. Raises InputError, naming the file, where the folder holds no model."""
    try:
        return config.from_dict(json.loads((model / _PRESET).read_text(encoding="utf-8")))
    except (InputError, ValueError) as error:
        raise InputError(f"{model / _PRESET} is not a saved model's: {error}") from error
    except OSError as error:
        raise InputError(
            f"{model} holds no model of this project ({error}): name a folder with preset.json and model_index.json"
        ) from error


def rounded_dln(model: Path) -> Dln:
    """The expression encoder of a saved model as it is shipped: what words must be embedded by."""
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.encoders.frozen import freeze

    return freeze(Dln.load(model / "dln").halved())


def check_whole(model: Path) -> None:
    """Raises InputError where a network of a saved model lacks its weights or a file of such is cut short: its head says how long it is."""
    from safetensors import SafetensorError, safe_open

    for name in _NETWORKS:
        if not any((model / name).glob("*.safetensors")):
            raise InputError(f"{model / name} has no weights")
    for file in sorted(model.glob("**/*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is not whole ({error})") from error


def is_exported(model: Path) -> bool:
    return (model / _EVALUATION).is_file()


def check_place(out: Path) -> None:
    """Raises InputError where a shipped model cannot be written without destroying something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and not (found <= _PARTS and {_EVALUATION, _PRESET} <= found):
        raise InputError(f"{out} holds something else than an exported model: name a new folder")


def write(out: Path, model: Path, words: pa.Table, record: dict[str, Any], card: str) -> int:
    """Write the folder, whole or not at all; returns its bytes. Raises InputError where these are more than LARGEST."""
    from diffsfsr import tables
    from diffsfsr.portrait.words import WORD_TABLE
    from diffsfsr.training.checkpoints import replace_folder

    def write_parts(part: Path) -> None:
        version = _networks(part, model)
        tables.write_json(part / _PRESET, config.to_dict(preset_of(model)))
        tables.write(part / WORD_TABLE, words, version)
        tables.write_json(part / _EVALUATION, record)
        tables.write_text(part / _CARD, card)
        if (size := _size(part)) > LARGEST:
            raise InputError(
                f"the model takes {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:.0f} that may be shipped: use a smaller one"
            )

    check_place(out)
    replace_folder(out, write_parts)
    return _size(out)


def _networks(part: Path, model: Path) -> str:
    """The networks in float16, without a word of where they were; returns the version of the expression encoder."""
    from diffsfsr.encoders import brows, glasses
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.pipeline import DiffSFSRPipeline
    from diffsfsr.model.unet import DiffSFSR

    autoencoder = LatentAutoencoder.from_pretrained(model / "vae")
    autoencoder.register_to_config(_name_or_path="")
    pipeline = DiffSFSRPipeline.from_model(DiffSFSR.from_folder(model).half(), autoencoder.half(), preset_of(model))
    pipeline.save_pretrained(part)
    Dln.load(model / "dln").save(part / "dln", half=True)
    glasses.save(glasses.load(model), part)
    brows.save(brows.load(model), part)
    return Dln.load(part / "dln").version  # refuses one whose frozen twin is not the published network


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
