"""The report on the experts: agreement against brute force, and what is not there is said, not left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import face_shard, faces, small

from assets import assessment
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Shard, Workspace
from diffsfsr import tables
from diffsfsr.evaluation import experts
from diffsfsr.evaluation.metrics import Interval
from diffsfsr.evaluation.verification import Verification, gains

PRESET = small({"evaluation.judge": "dlib"})


def test_overlap_is_intersection_over_union() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 20, 9, 9)) < 0.4
    a[0], b[0], b[1] = False, False, False  # both empty, one empty
    found = experts.overlap(a, b)
    for i in range(20):
        pixels = [{tuple(p) for p in np.argwhere(m[i])} for m in (a, b)]
        union = pixels[0] | pixels[1]
        assert found[i] == pytest.approx(len(pixels[0] & pixels[1]) / len(union) if union else 1.0)


def test_pose_agreement_leaves_out_a_constant_difference_and_wraps() -> None:
    rng = np.random.default_rng(1)
    one = rng.uniform(-30, 30, (50, 3))
    other = one + (5, -7, 360)
    other[:, 0] += np.where(np.arange(50) % 2, 1.0, -1.0)
    found = experts.pose_agreement({"a": one, "b": other})
    assert found["a, b: yaw, mean difference"].mean == pytest.approx(-5)
    assert found["a, b: yaw"].mean == pytest.approx(1)
    assert found["a, b: pitch"].mean == pytest.approx(0, abs=1e-9) and found["a, b: pitch, mean difference"].mean == pytest.approx(7)
    assert found["a, b: roll, mean difference"].mean == pytest.approx(0, abs=1e-9)


def test_gains_are_paired_with_the_best_member() -> None:
    def folds(name: str, *accuracy: float) -> Verification:
        return Verification(name, np.zeros(2), np.array(accuracy) / 2, np.array(accuracy))

    found = gains([folds("weak", 0.5, 0.6), folds("strong", 0.7, 0.9), folds("compound", 0.8, 1.0), folds("judge", 0.1, 0.1)])
    assert {name: round(value.mean, 6) for name, value in found.items()} == {
        "compound above strong: auc": 0.05,
        "compound above strong: accuracy": 0.1,
    }
    assert found["compound above strong: accuracy"].low == pytest.approx(0.1)  # paired: the folds' own spread does not count
    assert gains([folds("alone", 0.5)]) == {}


def test_a_report_says_what_could_not_be_measured(tmp_path: Path, six_people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    workspace, catalogue = Workspace(tmp_path / "home"), Catalogue(str(tmp_path / "catalogue"))
    tables.write_json(workspace.dataset("six") / "folder.json", {"folder": str(tmp_path)})
    for kind in ("sources", f"aligned-{PRESET.crop}"):
        face_shard(workspace.file(kind, Shard("six", 0)), faces(six_people, PRESET.crop), ["neutral"] * 6)

    folder = assessment.assess(workspace, catalogue, PRESET)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(report["absent"]) == {"identity", "expression", "masks", "pose"}
    assert "diffsfsr run train" in report["absent"]["expression"] and "weights" in report["absent"]["pose"]
    assert report["facts"]["faces"] == 6
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"- {topic}: " in text for topic in report["absent"])
    written = (folder / "report.json").stat().st_mtime_ns
    assert assessment.assess(workspace, catalogue, PRESET) == folder
    assert (folder / "report.json").stat().st_mtime_ns == written  # found, not made again

    for broken in ('{"facts": ', "{}", "[]", ""):
        (folder / "report.json").write_text(broken, encoding="utf-8")
        assert assessment.assess(workspace, catalogue, PRESET) == folder
        assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report  # broken, so made again
    (folder / "report.md").unlink()
    assert assessment.assess(workspace, catalogue, PRESET) == folder and (folder / "report.md").read_text(encoding="utf-8") == text


def test_a_report_is_of_one_preset_and_of_the_weights_at_hand(tmp_path: Path, six_people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    workspace = Workspace(tmp_path / "home")
    tables.write_json(workspace.dataset("six") / "folder.json", {"folder": str(tmp_path)})
    for kind in ("sources", f"aligned-{PRESET.crop}"):
        face_shard(workspace.file(kind, Shard("six", 0)), faces(six_people, PRESET.crop), ["neutral"] * 6)
    here = assessment.report_folder(workspace, PRESET)
    assert assessment.report_folder(workspace, PRESET) == here
    assert assessment.report_folder(workspace, replace(PRESET, name="other")) != here  # its title would say the wrong one
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "face_unet.onnx").write_bytes(b"one more parser to compare")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path / "weights"))
    assert assessment.report_folder(workspace, PRESET) != here


def test_figures_reach_the_report_and_mlflow_by_name(tmp_path: Path) -> None:
    figures = {"masks": {"hull, face_unet": Interval(0.8, 0.7, 0.9, 5)}, "pose": {"a, b: yaw": Interval(float("nan"), 0, 0, 0)}}
    findings = experts.Findings(figures, {}, {"a sheet": np.zeros((4, 4, 3), np.uint8)})
    experts.write_report(tmp_path, findings, "Title", {"faces": 3})
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["masks"]["hull, face_unet"] == {"mean": 0.8, "low": 0.7, "high": 0.9, "count": 5}
    assert report["pose"]["a, b: yaw"]["mean"] is None  # JSON has no NaN
    assert assessment.flat(report) == {"masks_hull_face_unet": 0.8}
    assert "| hull, face_unet | 0.8 | 0.7 to 0.9 | 5 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "a-sheet.png").is_file()
