"""The gates on results with known answers: hand-made rows, and plants of a worse and of a better challenger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets import gates
from diffsfsr.errors import InputError
from diffsfsr.evaluation.protocols import ITEMS, Result

N = 60
Change = Callable[[dict[str, Any], int], dict[str, Any]]


def result(change: Change = lambda row, i: {}, task: str = "all", n: int = N) -> Result:
    """n items of one task with plausible figures, some of them changed."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        row: dict[str, Any] = dict.fromkeys(ITEMS.names)
        row |= {"method": "ours", "task": task, "item": i, "seed": i, "distinct": True, "found": True, "background": 0.0}
        row |= {"scene": f"s{i}", "identity": f"i{i}", "expression": f"e{i}", "id_top1": float(rng.random() < 0.3), "id_top5": 1.0}
        row |= {"id_cosine": rng.normal(0.3, 0.1), "expression_distance": rng.normal(0.6, 0.1), "pose_error": rng.normal(5, 1)}
        rows.append(row | change(row, i))
    return Result("ours", task, rows, {"identity": "a judge"}, True, n)  # type: ignore[arg-type]


def better_faces(row: dict[str, Any], i: int) -> dict[str, Any]:
    return {"id_cosine": row["id_cosine"] + 0.05}


def worse_pose(row: dict[str, Any], i: int) -> dict[str, Any]:
    return better_faces(row, i) | {"pose_error": row["pose_error"] + 0.5}


def refused(new: Result, old: Result | None, wanted: gates.Gates | None = None) -> list[str]:
    """Which gates refuse, by name."""
    verdicts = gates.judge({"lfw, all": new}, None if old is None else {"lfw, all": old}, wanted or gates.read("lab"))
    return [v.gate for v in verdicts if not v.passed]


def test_a_better_challenger_passes_and_a_worse_one_does_not() -> None:
    old = result()
    assert refused(result(better_faces), old) == []
    assert refused(result(worse_pose), old) == ["pose_error: not worse"]
    (name,) = refused(result(), old)  # as good, and no better
    assert name.endswith("better")


def test_the_first_champion_passes_by_itself_or_not_at_all() -> None:
    assert refused(result(), None) == []
    assert refused(result(n=49), None) == ["items"]
    assert refused(result(lambda row, i: {"found": i % 3 > 0}), None) == ["failure_rate"]
    assert refused(result(lambda row, i: {"background": float(i == 7)}), None) == ["background"]
    assert refused(result(lambda row, i: {"background": None}), None) == ["background"]  # not measured is not passed


def test_a_better_figure_on_another_task_is_no_reason_to_take_over() -> None:
    verdicts = gates.judge(
        {"lfw, all": result(), "lfw, identity": result(better_faces, "identity")},
        {"lfw, all": result(), "lfw, identity": result(task="identity")},
        gates.read("lab"),
    )
    assert [v.passed for v in verdicts if v.gate.endswith(": better")] == [False]
    assert all(v.passed for v in verdicts if not v.gate.endswith(": better"))


def test_other_items_and_other_judges_are_no_comparison() -> None:
    moved = result(lambda row, i: better_faces(row, i) | {"seed": i + 1})
    assert "not worse" in refused(moved, result())
    verdicts = gates.judge({"lfw, all": result(), "new, all": result()}, {"lfw, all": result()}, gates.read("demo"))
    (missing,) = [v for v in verdicts if not v.passed]
    assert missing.where == "new, all" and "was not measured there" in missing.reason


def test_every_verdict_stands_in_the_table_with_its_reason_refusals_first() -> None:
    verdicts = gates.judge({"lfw, all": result(worse_pose)}, {"lfw, all": result()}, gates.read("lab"))
    lines = gates.table(verdicts).splitlines()
    assert len(lines) == 2 + len(verdicts) and "| REFUSED | WORSE |" in lines[2] and "+0.5 [+0.5, +0.5]" in lines[2]
    assert all("| passed |" in line for line in lines[3:])
    assert gates.refusals(verdicts) == ["lfw, all, pose_error: not worse: +0.5 [+0.5, +0.5] (WORSE)"]


# --- the file ---------------------------------------------------------------------------------------------------------


def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> Path:
    """The shipped file with some of its text replaced, in its place."""
    text = gates.gates_file().read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    monkeypatch.setenv("DIFFSFSR_GATES", str(path))
    return path


def test_a_team_sets_its_own_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(tmp_path, monkeypatch, ("pose_error = 0.0", "pose_error = 0.6"), ("items = 50", "items = 61"))
    assert refused(result(worse_pose), result()) == ["items"]  # half a degree is tolerated now
    assert gates.read("demo").items == 1 and gates.read("demo").not_worse["pose_error"] == 0.6  # a preset's table adds to the default


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("failure_rate = 25.0", "failure_rat = 25.0", "no gate 'failure_rat' .did you mean failure_rate"),
        ("items = 50", 'items = "many"', "items = 'many' is not a number"),
        ("items = 50", "items = -1", "items = -1 is not a number from 0"),
        ("pose_error = 0.0", "pose_eror = 0.0", "no figure is called 'pose_eror' .did you mean pose_error"),
        ('better_on = ["all"]', "", "lacks better_on"),
        ('without_comparison = "refuse"', 'without_comparison = "yes"', "'refuse' or 'by-itself'"),
        ("\n[default]", "\n[default", "cannot be read"),
        ("\n[default]", "\nitems = 3\n[default]", "items stands outside of a table"),
        ("items = 50", "items = " + 5000 * "9", "cannot be read"),
        ('better_on = ["all"]', 'better_on = ["al"]', "better_on names no task 'al' .did you mean all"),
        ("\n[demo]", "\n[labb]", "labb. is neither .default. nor a preset .did you mean lab"),
    ],
)
def test_a_gate_that_is_none_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str) -> None:
    path = edited(tmp_path, monkeypatch, (old, new))
    with pytest.raises(InputError, match=told) as error:
        gates.read("lab")
    assert str(path) in str(error.value)


def test_a_missing_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_GATES", "/nowhere/gates.toml")
    with pytest.raises(InputError, match="/nowhere/gates.toml cannot be read"):
        gates.read("lab")
