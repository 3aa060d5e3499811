"""The doctor finds what is planted, changes nothing, and keeps passwords to itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffsfsr import weights
from diffsfsr.errors import InputError, NotReady
from pipelines import doctor


@pytest.fixture(autouse=True)
def free_disk(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How much disk the doctor finds: enough, whatever the machine of the tests has left, until a test says less."""
    free = [100e9]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free[0]))
    return free


def gaps(found: dict[str, Any]) -> str:
    return "\n".join(f"{gap['what']} -> {gap['do']}" for gap in found["gaps"])


def plant(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """Let packages seem installed in other versions, or not at all."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = versions.get(name, "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def champion(home: Path, version: int | None) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    file = home / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE registered_model_aliases (alias TEXT, version INTEGER, name TEXT)")
        rows = [("challenger", 9, "diffsfsr"), ("champion", 8, "another")] + ([("champion", version, "diffsfsr")] if version else [])
        connection.executemany("INSERT INTO registered_model_aliases VALUES (?, ?, ?)", rows)
    connection.close()
    return file


def test_an_empty_machine_is_described_and_left_empty(tmp_path: Path) -> None:
    found = json.loads(json.dumps(doctor.doctor(Namespace(json=True))))
    home = tmp_path / "diffsfsr-home"
    assert not home.exists()
    assert found["state"] == {**found["state"], "home": str(home), "exists": False, "writable": True, "data_sets": [], "networks": {}}
    assert "mlflow.db is absent" in found["state"]["champion"]
    assert "no data set is known" in gaps(found) and "no model yet" in gaps(found)
    assert all(gap["what"] and gap["do"] for gap in found["gaps"])
    text = doctor.doctor(Namespace(json=False))
    assert str(home) in text and "licences accepted for pulling: none" in text


def test_little_disk_is_a_gap(free_disk: list[float], tmp_path: Path) -> None:
    assert "GB are free" not in gaps(doctor.examine())
    free_disk[0] = 1.5e9
    found = doctor.examine()
    assert f"1.5 GB are free at {tmp_path} -> free some disk" in gaps(found) and found["state"]["free_gb"] == 1.5


def test_packages_are_those_of_pyproject() -> None:
    found = {row["name"]: row for row in doctor.examine()["packages"]}
    assert {"torch", "dagster", "lancedb", "opencv-python", "sqlalchemy"} <= found.keys()
    assert found["torch"]["found"] == importlib.metadata.version("torch") and found["sqlalchemy"]["wanted"] == ">=2.0.58,<2.1"


def test_a_missing_package_is_named_after_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plant(monkeypatch, {"lancedb": None, "filelock": None})
    with pytest.raises(NotReady, match="lancedb, filelock"):
        doctor.doctor(Namespace(json=True))
    said = capsys.readouterr()
    assert said.out == "" and "package lancedb is missing" in said.err


def test_clashes_twins_and_wrong_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, {"opencv-python-headless": "5.0", "pyarrow": "26.0.0", "dlib-bin": None, "dlib": "20.0.1"})
    found = doctor.examine()
    assert "opencv-python and opencv-python-headless are both installed" in gaps(found)
    assert "package pyarrow is 26.0.0, not >=25,<26" in gaps(found)
    assert "dlib" not in gaps(found)  # built from source is as good
    plant(monkeypatch, {"opencv-python-headless": None})
    assert "opencv" not in gaps(doctor.examine())


def test_the_champion_is_read_from_the_database(tmp_path: Path) -> None:
    file = champion(tmp_path / "diffsfsr-home", 7)
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    found = doctor.examine()
    assert found["state"]["champion"] == "version 7" and "champion" not in gaps(found)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_no_champion_and_a_damaged_database(tmp_path: Path) -> None:
    file = champion(tmp_path / "diffsfsr-home", None)
    assert doctor.examine()["state"]["champion"] == "none"
    file.write_bytes(b"not a database" * 100)
    found = doctor.examine()
    assert found["state"]["champion"].startswith("unknown") and "cannot be read" in gaps(found)


def test_the_champion_of_a_real_registry(tmp_path: Path) -> None:
    """The query still fits MLflow's own tables."""
    from assets.stores.registry import Registry

    home = tmp_path / "diffsfsr-home"
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts")
    registry.prepare_store()
    assert doctor.examine()["state"]["champion"] == "none"
    client = registry._client
    client.create_registered_model("diffsfsr")
    version = client.create_model_version("diffsfsr", str(tmp_path)).version
    client.set_registered_model_alias("diffsfsr", "champion", version)
    assert doctor.examine()["state"]["champion"] == f"version {version}"


def test_data_sets_and_networks(tmp_path: Path) -> None:
    home = tmp_path / "diffsfsr-home"
    for name in ("data/lfw/folder.json", "data/half/sources/0000.parquet", "models/tiny/dln.json", "models/labels.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    state = doctor.examine()["state"]
    assert state["data_sets"] == ["lfw"] and state["networks"] == {"tiny": ["dln"]}


def test_settings_hide_passwords_and_name_mistakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSFSR_QUEUE_URL", "postgresql+psycopg2://studio:s3cret@db:5432/queue")
    monkeypatch.setenv("DIFFSFSR_MLFLOW_URI", "http://me:s3cret@mlflow:5000")
    monkeypatch.setenv("DIFFSFSR_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("DIFFSFSR_QUEU_URL", "s3cret")
    monkeypatch.setenv("DIFFSFSR_MLFLOW_RUN", "1")
    found = doctor.examine()
    assert "s3cret" not in json.dumps(found) + doctor._text(found)
    rows = {row["name"]: row for row in found["settings"]}
    assert rows["DIFFSFSR_QUEUE_URL"]["holds"] == "postgresql+psycopg2://studio:***@db:5432/queue"
    assert rows["DIFFSFSR_HOME"]["holds"] == str(tmp_path / "diffsfsr-home") and rows["DIFFSFSR_ARTIFACTS"]["set"] is None
    assert found["state"]["champion"] == "not asked: MLflow is at http://me:***@mlflow:5000"
    assert "nowhere is not a folder" in gaps(found)
    assert "DIFFSFSR_QUEU_URL is set, which nothing reads (did you mean DIFFSFSR_QUEUE_URL?)" in gaps(found)
    assert "DIFFSFSR_MLFLOW_RUN" not in gaps(found)


def test_a_state_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFSFSR_HOME", str(tmp_path / "file"))
    found = doctor.examine()
    assert not found["state"]["writable"] and "is not a folder" in gaps(found)


def test_weights_are_found_missing_or_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reid0095.onnx").write_bytes(b"short")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    found = doctor.examine()
    rows = {row["name"]: row for row in found["weights"]}
    assert rows.keys() == weights.ZOO.keys()
    assert rows["dlib-face"]["found"] and rows["dlib-face"]["commercial"] and not rows["dlib-landmarks-68"]["commercial"]
    assert rows["sd-1.4-vae"]["found"] is None and "weights pull sd-1.4-vae" in rows["sd-1.4-vae"]["do"]
    assert "the file of reid0095 is not the right one" in gaps(found) and "replace it" in rows["reid0095"]["do"]


def test_damaged_records_are_gaps_among_others(tmp_path: Path) -> None:
    folder = tmp_path / "diffsfsr-home/weights"
    folder.mkdir(parents=True)
    (folder / "licences.json").write_text("[" * 10**5)
    (folder / "lock.json").write_text("{")
    found = doctor.examine()
    assert f"accepted licences cannot be read -> {folder / 'licences.json'} is not JSON" in gaps(found)
    assert f"first pulls cannot be read -> {folder / 'lock.json'} is not JSON" in gaps(found)
    assert {row["name"] for row in found["weights"]} == set(weights.ZOO) and found["state"]["exists"]


def test_without_the_dlib_files_no_face_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(weights.ZOO["dlib-face"], file="elsewhere.dat")
    monkeypatch.setitem(weights.ZOO, "dlib-face", absent)
    found = doctor.examine()
    assert "dlib-face (identity) is missing, without which no face is found or recognised" in gaps(found)
    assert "pip install face_recognition_models" in gaps(found) and "dlib-landmarks-68 (" not in gaps(found)


def test_what_is_not_for_commercial_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the files that are here, pulled or not; and the licences that were accepted, with the day."""
    from diffsfsr.weights.records import accept

    entry = dataclasses.replace(weights.ZOO["mobilefacenet_arcface"], size=3)
    monkeypatch.setitem(weights.ZOO, "mobilefacenet_arcface", entry)
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / entry.file).write_bytes(b"net")
    accept(["w600k_r50"])
    found = doctor.examine()
    day = {row["name"]: row["accepted"] for row in found["weights"]}
    assert day["w600k_r50"].startswith("20") and day["mobilefacenet_arcface"] is None
    text = doctor._text(found)
    here = next(line for line in text.splitlines() if "not for commercial use" in line)
    assert "dlib-landmarks-68 (CC0-1.0; 300-W terms)" in here and "mobilefacenet_arcface (none stated)" in here and "w600k" not in here
    assert f"w600k_r50 ({weights.ZOO['w600k_r50'].licence}, {day['w600k_r50']})" in text


def test_as_a_command(tmp_path: Path) -> None:
    """One JSON value on standard output, exit 0 with gaps, and nothing written."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "doctor", "--json"],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "DIFFSFSR_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gaps"] and not (tmp_path / "state").exists()


def test_a_damaged_database_is_one_line_for_other_commands_too(tmp_path: Path) -> None:
    file = champion(tmp_path / "diffsfsr-home", None)
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="mlflow.db cannot be read"):
        doctor.champion(f"sqlite:///{file}")
