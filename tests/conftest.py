"""What every test has: no network, few threads, a state folder of its own; and the photographs that the packages ship.

DIFFSFSR_DATA and DIFFSFSR_WEIGHTS name folders that some tests need; without them those tests skip, saying so.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# Before anything imports torch, transformers or mlflow; subprocesses inherit it.
_THREADS = "1"  # threads that wait for a core which another worker holds make everything ten times slower
os.environ.update(
    {
        "DIFFSFSR_CORES": _THREADS,
        "OMP_NUM_THREADS": _THREADS,
        "MKL_NUM_THREADS": _THREADS,
        "OPENBLAS_NUM_THREADS": _THREADS,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DAGSTER_DISABLE_TELEMETRY": "true",
        "MPLBACKEND": "Agg",
    }
)
_KEPT = {"DIFFSFSR_DATA", "DIFFSFSR_WEIGHTS", "DIFFSFSR_CORES"}
for _name in _KEPT:
    if not os.environ.get(_name):  # set but empty means unset, for the code under test too
        os.environ.pop(_name, None)
_FOREIGN_STATE = {"DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's state, nor another test's."""
    for name in list(os.environ):
        if name in _FOREIGN_STATE or (name.startswith("DIFFSFSR_") and name not in _KEPT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DIFFSFSR_HOME", str(tmp_path / "diffsfsr-home"))
    monkeypatch.setenv("DIFFSFSR_STARTER", str(tmp_path / "no-starter"))  # what a test says must not hang on what comes with the package


@pytest.fixture(scope="session")
def faces_dir() -> Path:
    """The folder of face photographs named by DIFFSFSR_DATA."""
    return _folder("DIFFSFSR_DATA", "photographs")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """The folder of published weights named by DIFFSFSR_WEIGHTS."""
    return _folder("DIFFSFSR_WEIGHTS", "weights")


@pytest.fixture(scope="session")
def six_people() -> Path:
    """A group photograph with six faces."""
    return _shipped("insightface", "data/images/t1.jpg")


@pytest.fixture(scope="session")
def tom_hanks() -> Path:
    """A portrait of one man."""
    return _shipped("insightface", "data/images/Tom_Hanks_54745.png")


@pytest.fixture(scope="session")
def astronaut() -> Path:
    """A photograph of one woman, 512 x 512."""
    return _shipped("skimage", "data/astronaut.png")


def _folder(variable: str, what: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set: no folder of {what} to test with")
    if not Path(named).is_dir():
        pytest.skip(f"{variable}={named} is not a folder")
    return Path(named).resolve()


def _shipped(package: str, name: str) -> Path:
    """A data file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    found = [Path(folder, name) for folder in (spec.submodule_search_locations or [])] if spec else []
    return next(path for path in found if path.is_file())
