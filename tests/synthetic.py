"""Small training inputs for tests: shards of random embeddings around real faces, and untrained networks beside them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffsfsr import config, presets, tables
from diffsfsr.config import Preset
from diffsfsr.face.alignment import AlignedFace, align_all
from diffsfsr.face.images import encode_png, read
from diffsfsr.training.run import Inputs


def small(changes: dict[str, Any] | None = None, name: str = "tiny") -> Preset:
    """The `tiny` preset (or another of its size), a little smaller still."""
    basis = {"unet.channels": [32, 32], "conditioning.token_width": 32, "training.warmup": 0}
    return config.override(presets.preset(name), basis | (changes or {}))


@cache
def faces(picture: Path, size: int) -> list[AlignedFace]:
    return align_all(read(picture), size)


def face_shard(path: Path, aligned: list[AlignedFace], emotions: list[str], people: list[str] | None = None) -> Path:
    """A shard of schema FACES with those crops."""
    rows = [
        {
            "face_id": f"s/{i}/0",
            "path": f"{i}.png",
            "person": (people or [f"p{i}" for i in range(len(aligned))])[i],
            "emotion": emotions[i],
            "split": "train",
        }
        | {"landmarks": face.crop_landmarks.reshape(-1), "crop": encode_png(face.crop)}
        for i, face in enumerate(aligned)
    ]
    tables.write(path, tables.from_rows(rows, tables.FACES), "synthetic")
    return path


def training_rows(preset: Preset, count: int, landmarks: np.ndarray, people: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of training_schema: smooth random latents, a face mask in the middle, one random identity a person."""
    rng = np.random.default_rng(seed)
    c, h = preset.autoencoder.channels, preset.latent
    mask = np.zeros((h, h), np.uint8)
    mask[h // 4 : -(h // 4), h // 4 : -(h // 4)] = 1
    who = rng.normal(size=(people, 128)).astype(np.float32) / 10
    taught = {f"id_{name}": rng.normal(size=width).astype(np.float32) for name, width in _teachers(preset).items()}
    rows = []
    for i in range(count):
        latent = np.repeat(np.repeat(rng.normal(size=(c, h // 2, h // 2)), 2, 1), 2, 2)
        expression = rng.normal(size=16)
        rows.append(
            {"face_id": f"s/{i}/0", "person": f"p{i % people}", "emotion": "", "split": "train", "mask": mask.tobytes()}
            | {"latent": latent.astype(np.float16).reshape(-1), "masked_latent": (latent * (1 - mask)).astype(np.float16).reshape(-1)}
            | {"landmarks": landmarks.reshape(-1).astype(np.float32), "id_dlib": who[i % people]}
            | {"expression": (expression / np.linalg.norm(expression)).astype(np.float32)}
            | taught
        )
    return rows


def _teachers(preset: Preset) -> dict[str, int]:
    """Recognisers that only L_id looks through, and their widths."""
    from diffsfsr.encoders import load_encoder

    return {name: load_encoder(name).dim for name in preset.objective.identity}


def training_shard(path: Path, preset: Preset, rows: list[dict[str, Any]]) -> Path:
    schema = tables.training_schema(preset.autoencoder.channels, preset.latent, {"dlib": 128} | _teachers(preset), preset.dln.dim)
    tables.write(path, tables.from_rows(rows, schema), "synthetic")
    return path


def networks(folder: Path, preset: Preset) -> dict[str, str]:
    """An untrained autoencoder and DLN, saved; as the keyword arguments of Inputs that name them."""
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.weights import resolve

    torch.manual_seed(0)
    LatentAutoencoder.from_config_row(preset.autoencoder).save_pretrained(folder / "autoencoder")
    Dln.from_identity(resolve("dlib-face"), preset.dln.dim).save(folder / "dln")
    return {"autoencoder": str(folder / "autoencoder"), "dln": str(folder / "dln")}


def diffusion_inputs(folder: Path, preset: Preset, rows: list[dict[str, Any]]) -> Inputs:
    """Everything a diffusion run reads, written into `folder`."""
    shard = training_shard(folder / "shard.parquet", preset, rows)
    return Inputs(shards=(str(shard),), data_version="synthetic", **networks(folder, preset))
