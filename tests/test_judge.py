"""`run evaluate` and its flags on six prepared people: pairs out, another program's answers in, baselines, and what is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from assets import methods
from assets.ablations import trained
from diffsfsr import presets, tables, weights
from diffsfsr.encoders.dln import Dln
from diffsfsr.errors import InputError, NotReady
from pipelines import judge
from pipelines.cli import parser
from pipelines.environments import Environment
from pipelines.operate import Operator

LABELS = "file,person,face,split\n" + "".join(f"six.jpg,person {i},{i},test\n" for i in range(6))


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory, six_people: Path) -> Iterator[Operator]:
    """Six people prepared by the graph, and an expression encoder that was never trained."""
    root = tmp_path_factory.mktemp("judged")
    (root / "six").mkdir()
    shutil.copy(six_people, root / "six" / "six.jpg")
    (root / "six" / "labels.csv").write_text(LABELS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSFSR_HOME", str(root / "home"))
        for name in ("DAGSTER_HOME", "DIFFSFSR_WEIGHTS"):
            patch.delenv(name, raising=False)
        made = Operator(Environment.current(), "tiny", {"evaluation.items": "5"})
        made.prepare(root / "six")
        dln = Dln.from_identity(weights.resolve("dlib-face"))
        dln.save(root / "dln")
        made.workspace.set_network("dln", made.preset, root / "dln", "untrained")
        yield made


@pytest.fixture(scope="module")
def sent(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sent")
    assert set(judge.export(operator, folder)) == {str(folder / f"six-{task}") for task in ("all", "identity", "expression")}
    return folder


def answer(sent: Path, folder: Path, role: str) -> Path:
    """A program that returns an image of each item as it got it, and nothing for the first item."""
    folder.mkdir(parents=True)
    with open(sent / "pairs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[1:]:
        shutil.copy(sent / row[role], folder / f"{int(row['item']):05d}.png")
    text = (sent / "manifest.csv").read_text(encoding="utf-8").replace("00000.png", "")
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


def test_who_returns_the_identity_image_has_its_identity_and_the_missing_one_counts(operator: Operator, sent: Path, tmp_path: Path) -> None:
    answer(sent / "six-all", tmp_path / "six-all", "identity")
    found = judge.compare(operator, "copier", str(tmp_path))
    assert set(found) == {"method", "six/all", "next"}  # of the other two lists it made nothing
    figures = found["six/all"]
    assert figures["items"] == 5 and figures["all_failure_rate"] == pytest.approx(20)
    assert figures["all_id_top1"] == pytest.approx(80) and figures["all_id_cosine"] > 0.98
    rows = tables.read(next(operator.environment.home.glob("reports/methods/*/copier/items.parquet"))).to_pylist()
    assert [row["found"] for row in rows] == [False, True, True, True, True] and rows[0]["id_cosine"] is None
    assert {row["method"] for row in rows} == {"copier"}


def test_a_flat_folder_is_known_by_its_fingerprint(operator: Operator, sent: Path, tmp_path: Path) -> None:
    flat = answer(sent / "six-expression", tmp_path / "flat", "scene")
    found = judge.compare(operator, "flat", str(flat))
    assert set(found) == {"method", "six/expression", "next"}
    assert found["six/expression"]["expression_id_top1"] == pytest.approx(80)  # the scene's person is the one wanted
    (flat / "manifest.csv").write_text((flat / "manifest.csv").read_text(encoding="utf-8").replace(",", ";x", 2), encoding="utf-8")
    with pytest.raises(InputError, match="manifest.csv has the columns"):
        judge.compare(operator, "flat", str(flat))


def test_answers_to_other_questions_are_refused(operator: Operator, sent: Path, tmp_path: Path) -> None:
    misplaced = answer(sent / "six-identity", tmp_path / "six-all", "scene")
    with pytest.raises(InputError, match=r"manifest.csv, line 2: it is of the pair list \w{16}, not of \w{16}"):
        judge.compare(operator, "misplaced", str(tmp_path))
    shutil.rmtree(misplaced)
    with pytest.raises(InputError, match="does not answer the pair list .* six-all/manifest.csv"):
        judge.compare(operator, "nobody", str(tmp_path))
    for name in ("alpha-paste", "ours", "../up"):
        with pytest.raises(InputError, match="cannot name another program's outputs"):
            judge.compare(operator, name, str(tmp_path))


def test_a_baseline_runs_here_and_is_measured_once(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffsfsr.evaluation import baselines

    first = judge.compare(operator, "alpha-paste")
    assert {f"six/{task}" for task in ("all", "identity", "expression")} < set(first)
    assert first["six/all"]["all_background"] == 0 and first["six/all"]["all_id_top1"] > 50
    assert first["six/all"]["reconstruct_mse"] < 1  # a face pasted over itself
    monkeypatch.setattr(baselines.AlphaPaste, "painted", lambda *_: pytest.fail("made again"))
    assert judge.compare(operator, "alpha-paste") == first


def test_a_second_stage_gets_the_first_ones_pictures(operator: Operator, sent: Path, tmp_path: Path) -> None:
    answer(sent / "six-all", tmp_path / "first" / "six-all", "identity")
    found = judge.export(operator, tmp_path / "second", "copier", str(tmp_path / "first"))
    assert found == {str(tmp_path / "second" / "six-all"): {"items": 5, "of_faces": 6, "without_scene": 1}}
    with open(tmp_path / "second" / "six-all" / "pairs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == ["1", "2", "3", "4"]
    first = (tmp_path / "second" / "six-all" / rows[0]["scene"]).read_bytes()
    assert first == (tmp_path / "second" / "six-all" / rows[0]["identity"]).read_bytes()  # what the first stage returned


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --study 3", "--study goes with `run evaluate`, not with `run train`"),
        ("promote --method x", "--method goes with `run evaluate`"),
        ("evaluate --study 3", "--study N and --out FILE.html go together"),
        ("evaluate --out page.html", "go together"),
        ("evaluate --study -2 --out page.html", "--study -2 is no number of items"),
        ("evaluate --study 0", "--study 0 is no number of items"),
        ("evaluate --model chmpion", "--model chmpion.*did you mean champion.*or a version's number"),
        ("evaluate --outputs .", "--outputs needs --method NAME"),
        ("evaluate --method x --outputs nowhere", "--outputs nowhere is no folder"),
        ("evaluate --study 3 --out a.html --ablations", "--study and --ablations are different things"),
        ("evaluate --words 0", "--words 0 is no number of outputs"),
        ("train --words", "--words goes with `run evaluate`"),
        ("evaluate --words --ablations", "--ablations and --words are different things"),
        ("evaluate --method x --answers a.csv", "--method and --answers are different things"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_runs(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge.check(parser().parse_args(["run", *line.split()]))


@pytest.mark.parametrize(
    "line",
    [
        "evaluate",
        "evaluate --method a+b",
        "evaluate --method x --export-pairs d",
        "evaluate --study 3 --out a.html",
        "evaluate --words",
        "evaluate --words 7 --model 3",
    ],
)
def test_flags_that_go_together_pass(line: str) -> None:
    judge.check(parser().parse_args(["run", *line.split()]))


def test_a_study_wants_a_page_and_answers_want_files(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for name in ("page.pdf", "folder.html"):
        with pytest.raises(InputError, match="must be the name of a page"):
            judge.study(operator, "trained", 3, str(tmp_path / name))
    with pytest.raises(InputError, match="is a file, or lies below one"):
        judge.export(operator, Path(__file__) / "pairs")
    args = parser().parse_args(["run", "evaluate", "--answers", str(tmp_path / "none.csv")])
    with pytest.raises(InputError, match=r"none.csv is not there"):
        judge.evaluate(args, operator)
    with pytest.raises(NotReady, match="trained model"):
        judge.study(operator, "trained", 3, str(tmp_path / "page.html"))


def test_gates_that_are_wrong_are_told_before_anything_is_evaluated(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_GATES", "/nowhere/gates.toml")
    with pytest.raises(InputError, match="/nowhere/gates.toml cannot be read"):
        operator.promote()


def test_ablations_are_those_of_the_preset_that_are_trained(operator: Operator, tmp_path: Path) -> None:
    workspace = operator.workspace
    with pytest.raises(InputError, match="preset tiny has no ablations; these have: lab, paper"):
        workspace.set_network("diffusion", operator.preset, tmp_path, "1")
        trained(workspace, operator.preset)
    lab = presets.preset("lab")
    workspace.set_network("diffusion", lab, tmp_path, "1")
    with pytest.raises(NotReady, match="lab-no-background"):
        trained(workspace, lab)
    workspace.set_network("diffusion", presets.preset("lab-no-slot-3"), tmp_path, "2")
    assert list(trained(workspace, lab)) == ["full model", "no-slot-3"]


def test_names_of_folders_are_exact(operator: Operator, tmp_path: Path) -> None:
    """A folder of another data set's answers is none of this one's."""
    from assets import heldout

    held = heldout.held_out(operator.workspace, "six", operator.preset)
    pairs = heldout.pair_list(operator.workspace, held, "all", operator.preset)
    assert np.isfinite(held.faces.landmarks).all()
    (tmp_path / "sixty-all").mkdir()
    assert methods.answers(tmp_path, "six", pairs) is None
    (tmp_path / "six-all").mkdir()
    assert methods.answers(tmp_path, "six", pairs) == tmp_path / "six-all"
