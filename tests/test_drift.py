"""Drift: the statistic against scipy's and against brute force, and the check on embeddings of real faces."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import energy_distance

from assets import drift as room
from assets.resources import CatalogueResource, RegistryResource, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.registry import ModelVersion, Registry
from assets.stores.served import Served
from diffsfsr import tables
from diffsfsr.evaluation import drift

REQUESTS, TRAINING = 40, 90

# --- the statistic ----------------------------------------------------------------------------------------------------


def test_the_distance_is_scipys_in_one_dimension() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(1.0, 2.0, size=45)
    points = np.concatenate([a, b])[:, None]
    member = np.zeros((75, 1))
    member[:30] = 1
    squared = energy_distance(a, b) ** 2  # scipy gives the square root
    between = 2 * np.abs(a[:, None] - b[None, :]).mean()
    assert drift._shares(drift._distances(points), member)[0] == pytest.approx(squared / between, rel=1e-9)


def test_distances_are_euclidean() -> None:
    points = np.random.default_rng(0).normal(size=(20, 7))
    brute = np.array([[np.linalg.norm(p - q) for q in points] for p in points])
    np.testing.assert_allclose(drift._distances(points), brute, atol=1e-7)


def test_one_row_that_is_not_finite_hides_no_drift() -> None:
    rng = np.random.default_rng(0)
    shifted, training = rng.normal(3.0, size=(40, 8)), rng.normal(size=(90, 8))
    shifted[7] = np.nan
    found = drift.compare(shifted, training, permutations=199)
    assert found.warns and found.counts == (39, 90)


def test_p_is_level_where_nothing_has_shifted_and_small_where_it_has() -> None:
    rng = np.random.default_rng(0)
    same = [drift.compare(rng.normal(size=(30, 8)), rng.normal(size=(60, 8)), 99, seed) for seed in range(100)]
    assert 0.02 < np.mean([gap.p <= 0.1 for gap in same]) < 0.2 and not any(gap.warns for gap in same)
    assert abs(np.mean([gap.share for gap in same])) < 0.003  # unbiased, though the raw distance of two samples never is
    moved = drift.compare(rng.normal(size=(30, 8)) + 0.7, rng.normal(size=(60, 8)))
    wider = drift.compare(rng.normal(size=(60, 8)) * 3, rng.normal(size=(60, 8)))  # of the same mean
    assert moved.warns and wider.warns and moved.p == wider.p == 1 / 1000
    assert drift.compare(np.ones((30, 8)), np.ones((60, 8))).share == 0 and not drift.compare(np.ones((30, 8)), np.ones((60, 8))).warns
    with pytest.raises(ValueError, match="one width"):
        drift.compare(np.ones((3, 8)), np.ones((3, 7)))


# --- real faces -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(faces_dir: Path) -> dict[str, np.ndarray]:
    """(n, 128) dlib embeddings of faces of as many people: as they are, and of the same crops as a bad camera shows them."""
    import cv2

    from diffsfsr.config import Data
    from diffsfsr.encoders import load_encoder
    from diffsfsr.face.alignment import align
    from diffsfsr.face.images import Rejected, read, to_tensor

    crops, landmarks = [], []
    for folder in sorted(p for p in (faces_dir / "lfw").iterdir() if p.is_dir())[::7]:
        try:
            face = align(read(sorted(folder.glob("*.jpg"))[0]), 128, Data(face="largest"))
        except (Rejected, IndexError):
            continue
        crops.append(face.crop)
        landmarks.append(face.crop_landmarks)
        if len(crops) == REQUESTS + TRAINING:
            break
    else:
        pytest.skip(f"{faces_dir}/lfw has fewer than {REQUESTS + TRAINING} people to take every seventh of")
    poor = [cv2.resize(cv2.resize(crop, (18, 18), interpolation=cv2.INTER_AREA), (128, 128)) for crop in crops[:REQUESTS]]
    encoder = load_encoder("dlib")

    def embed(pictures: list[np.ndarray]) -> np.ndarray:
        points = torch.from_numpy(np.stack(landmarks[: len(pictures)]).astype(np.float32))
        with torch.inference_mode():
            return encoder(to_tensor(np.stack(pictures)), points).numpy()

    found = embed(crops)
    return {"requests": found[:REQUESTS], "training": found[REQUESTS:], "poor": embed(poor)}


@pytest.fixture
def home(tmp_path: Path, faces: dict[str, np.ndarray]) -> Path:
    """A state folder with those training faces in its catalogue and a champion."""
    folder = tmp_path / "model"
    tables.write_json(folder / "dln" / "dln.json", {"version": "dln-1"})
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlartifacts")
    registry.register(folder, registry.open_run("train", "diffusion"))
    registry.promote(1, "ann", "the first")
    training = faces["training"]
    ids = [f"lfw/{i:04d}/0" for i in range(len(training))]
    columns = {"face_id": ids, "split": ["train"] * len(ids), "id_dlib": pa.FixedSizeListArray.from_arrays(training.reshape(-1), 128)}
    Catalogue(tmp_path / "catalogue").upsert_faces(pa.table(columns))
    return tmp_path


def keep(home: Path, vectors: np.ndarray, version: str = "1") -> Served:
    served = Served(home / "served")
    for i, vector in enumerate(vectors):
        served.keep(f"portrait{i}", version, {"id_dlib": (vector, [f"sha{i}"])})
    return served


def checked(home: Path) -> dg.AssetCheckResult:
    registry = RegistryResource(tracking_uri=f"sqlite:///{home}/mlflow.db", artifact_root=str(home / "mlartifacts"))
    return room.requests_like_training(WorkspaceResource(home=str(home)), CatalogueResource(uri=str(home / "catalogue")), registry)  # type: ignore[return-value]


def test_requests_of_people_like_those_of_training_pass(home: Path, faces: dict[str, np.ndarray]) -> None:
    keep(home, faces["requests"])
    result = checked(home)
    assert result.passed and f"| id_dlib | {REQUESTS} | {TRAINING} |" in str(result.metadata["comparison"].value)


def test_requests_from_a_bad_camera_warn(home: Path, faces: dict[str, np.ndarray]) -> None:
    keep(home, faces["poor"])
    result = checked(home)
    assert not result.passed and result.severity is dg.AssetCheckSeverity.WARN
    assert "DRIFT" in str(result.metadata["comparison"].value) and "id_dlib" in (result.description or "")


def test_few_requests_and_those_of_another_version_say_nothing(home: Path, faces: dict[str, np.ndarray]) -> None:
    keep(home, faces["poor"], version="7")
    assert checked(home).passed
    keep(home, faces["poor"][: drift.LEAST - 1])
    result = checked(home)
    assert result.passed and "too few" in str(result.metadata["comparison"].value)


def test_the_same_photograph_many_times_is_one(home: Path, faces: dict[str, np.ndarray]) -> None:
    served = Served(home / "served")
    for i in range(drift.LEAST + 1):
        served.keep(f"portrait{i}", "1", {"id_dlib": (faces["requests"][0], ["the same"])})
    (row,) = room.compare(served, Catalogue(home / "catalogue"), version_of(home))
    assert row["requests"] == 1 and not row["drift"]


def version_of(home: Path) -> ModelVersion:
    return Registry(f"sqlite:///{home}/mlflow.db").resolve("champion")
