"""Training on from a model: what it starts with, what fits, and homes that hold other models too."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from PIL import Image
from shell import answer, run
from synthetic import diffusion_inputs, faces, training_rows
from test_portraits import TINY, model  # noqa: F401
from test_shipped import exported, workspace  # noqa: F401

from assets import gates, tuning
from assets.experts import autoencoder, dln_model
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.shards import current_shards, shard_kind
from assets.stores.registry import Registry, content_hash
from assets.stores.workspace import Workspace
from diffsfsr import config, presets
from diffsfsr.encoders.dln import Dln
from diffsfsr.errors import InputError, NotReady
from diffsfsr.model.unet import DiffSFSR
from diffsfsr.portrait.words import beside
from diffsfsr.training.objectives import DiffusionObjective

ROOT = Path(__file__).resolve().parents[1]
TUNED = presets.preset("tiny-tuned")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return DiffSFSR.from_folder(folder).state_dict()


def test_a_tuning_is_its_basis_but_for_its_length() -> None:
    for name, basis in [(name, basis) for name, basis in presets.TUNED.items() if name.endswith("-tuned")]:
        row, base = presets.preset(name), presets.preset(basis)
        assert dataclasses.replace(row, name=base.name, training=base.training, objective=base.objective) == base
        assert row.objective == dataclasses.replace(base.objective, aux_from=0.0) and row.training.steps < base.training.steps
        assert presets.tuned(basis) == presets.tuned(name) == name and presets.embedded_by(row) == presets.embedded_by(base)
    assert gates.read("tiny-tuned") == gates.read("tiny") != gates.read("starter-tuned") == gates.read("starter")
    with pytest.raises(InputError, match="paper are not trained on"):
        presets.tuned("paper")


def test_it_starts_from_the_models_weights_and_centre(exported: Path, six_people: Path, tmp_path: Path) -> None:  # noqa: F811
    """Photographs of one person have that person for a mean, by which nobody can be told."""
    rows = training_rows(TUNED, 4, faces(six_people, TUNED.crop)[0].crop_landmarks, people=1)
    inputs = dataclasses.replace(diffusion_inputs(tmp_path, TUNED, rows), dln=str(exported / "dln"), start_from=str(exported))
    objective = DiffusionObjective(TUNED, inputs)
    want = weights_of(exported)
    assert all(torch.equal(value, want[name]) for name, value in objective.network.state_dict().items())
    centre = want["tokens.mean_dlib"]
    assert objective.means.keys() == {"dlib"}  # a recogniser of L_id alone has no mean but that of the photographs
    assert torch.equal(objective.means["dlib"], centre) and not torch.allclose(objective.data.means()["dlib"], centre)
    objective.save(tmp_path / "model")
    words = beside(tmp_path / "model")
    assert (
        words
        and words.labels == beside(exported).labels
        and Dln.load(tmp_path / "model" / "dln").version == Dln.load(exported / "dln").version
    )


def test_what_is_saved_lies_part_of_the_way_from_where_it_began(exported: Path, six_people: Path, tmp_path: Path) -> None:  # noqa: F811
    preset = config.override(TUNED, {"training.learned": 0.25})
    rows = training_rows(preset, 4, faces(six_people, preset.crop)[0].crop_landmarks)
    inputs = dataclasses.replace(diffusion_inputs(tmp_path, preset, rows), dln=str(exported / "dln"), start_from=str(exported))
    objective, began = DiffusionObjective(preset, inputs), weights_of(exported)
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter.add_(1)
    objective.save(tmp_path / "model")
    learned = dict(objective.network.named_parameters()).keys()
    assert learned and all(torch.allclose(weights_of(tmp_path / "model")[name], began[name] + 0.25, atol=1e-3) for name in learned)


def test_a_model_of_other_networks_is_refused(exported: Path) -> None:  # noqa: F811
    tuning.check_fits(TUNED, exported)
    for change in ({"unet.channels": [32, 32]}, {"conditioning.identity": ["dlib", "facenet"]}, {"autoencoder.channels": 8}):
        (name,) = change
        with pytest.raises(InputError, match=f"{name} is .* in that model, .* in preset tiny-tuned; it was made by preset tiny"):
            tuning.check_fits(config.override(TUNED, change), exported)


def test_the_names_of_models(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(NotReady, match="is no exported model"):
        tuning.basis("starter", registry)
    monkeypatch.setenv("DIFFSFSR_STARTER", str(exported))
    assert tuning.basis("starter", registry) == tuning.basis(str(exported), registry) == exported
    with pytest.raises(NotReady, match="no model 'champion'"):
        tuning.basis("champion", registry)
    with pytest.raises(InputError, match="--from startr is no model"):
        tuning.basis("startr", registry)


def test_a_home_keeps_what_it_trains_on_from(exported: Path, tmp_path: Path) -> None:  # noqa: F811
    source = tmp_path / "source"
    shutil.copytree(exported, source)
    found = Workspace(tmp_path / "home")
    with pytest.raises(NotReady, match="--preset tiny-tuned --from starter"):
        found.start(TUNED)
    assert found.start(TINY) is None
    found.set_network("dln", TINY, tmp_path, "own")  # a home with experts of its own
    start = tuning.begin(found, TUNED, source, "mine")
    shutil.rmtree(source)  # as a package that is brought up to date
    assert found.start(TUNED) == start and content_hash(start.folder) == start.version == content_hash(exported)
    assert found.network("dln", TINY) == (tmp_path, "own") and found.network("dln", TUNED) is None


def test_another_unet_keeps_the_latents(exported: Path, tmp_path: Path) -> None:  # noqa: F811
    """They are of the autoencoder and the DLN: a model trained on, or another beside the same two, encodes nothing anew."""
    other, kinds = tmp_path / "other", []
    shutil.copytree(exported, other)
    (other / "unet" / "config.json").write_text((other / "unet" / "config.json").read_text() + "\n")
    found = WorkspaceResource(home=str(tmp_path / "home"))
    registry = RegistryResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_root=str(tmp_path / "artifacts"))
    at_hand = {"settings": Settings(preset=TUNED.name), "workspace": found, "registry": registry, "trainer": dg.PipesSubprocessClient()}
    for folder in (exported, other):
        tuning.begin(found.open, TUNED, folder)
        done = dg.materialize([autoencoder, dln_model], resources=at_hand)
        assert done.success
        kinds.append(shard_kind(found.open, TUNED))
    assert content_hash(exported) != content_hash(other) and kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "evaluate", "--from", "starter"), "--from goes with `run train`"),
        (("run", "train", "--preset", "tiny", "--data", "."), "--data goes with `run prepare` and `run train --from`"),
        (("run", "train", "--preset", "paper", "--from", "starter"), "are not trained on"),
        (("run", "promote", "--model", "champion"), "trained or shipped"),
        (("run", "promote", "--model", "shipped", "--version", "1"), "trained or shipped"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], message: str) -> None:
    ran = run(*words)
    assert ran.code == 2 and message in ran.err


SMALL = ("--set", "training.steps=2", "--set", "sampling.steps=1", "--set", "evaluation.items=2")


@pytest.fixture(scope="module")
def home(exported: Path, tom_hanks: Path, astronaut: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:  # noqa: F811
    """A newcomer's: photographs without a label, the shipped model, and no weights but those of packages."""
    root = tmp_path_factory.mktemp("newcomer")
    for name, source in (("tom", tom_hanks), ("eileen", astronaut)):
        (root / "mine" / name).mkdir(parents=True)
        shutil.copy(source, root / "mine" / name / "1.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSFSR_STARTER", str(exported))
        patch.setenv("DIFFSFSR_HOME", str(root / "home"))
        for name in ("DAGSTER_HOME", "DIFFSFSR_WEIGHTS"):
            patch.delenv(name, raising=False)
        yield root / "home"


@pytest.fixture
def tuned(home: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:  # noqa: F811
    """The command, in that home."""
    monkeypatch.setenv("DIFFSFSR_STARTER", str(exported))
    monkeypatch.setenv("DIFFSFSR_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    data = ("--data", str(home.parent / "mine"))
    return lambda: answer("run", "train", "--preset", "tiny", "--from", "starter", *data, *SMALL)


def test_a_folder_without_a_face_is_refused_before_training(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("DIFFSFSR_STARTER", str(exported))
    monkeypatch.setenv("DIFFSFSR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    (tmp_path / "nobody").mkdir()
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "nobody" / "wall.png")
    ran = run("run", "train", "--preset", "tiny", "--from", "starter", "--data", str(tmp_path / "nobody"), *SMALL)
    assert ran.code == 2 and "data set nobody: no photograph shows a usable face (no face 1)" in ran.err
    ran = run("run", "train", "--preset", "tiny", *SMALL)  # its shard is there, and empty
    assert ran.code == 1 and "no faces of 64 pixels are prepared yet" in ran.err


def test_a_newcomer_tunes_the_shipped_model_on_a_folder(home: Path, exported: Path, tuned: Callable[[], dict[str, Any]]) -> None:  # noqa: F811
    done = tuned()
    assert done["preset"] == "tiny-tuned" and done["data_sets"] == ["mine"] and done["steps"] == 2
    folder = Path(done["folder"])
    assert sorted(p.name for p in (home / "runs").iterdir()) == [folder.parent.name] and folder.parent.name.startswith("tiny-tuned-")
    told = json.loads((folder.parent / "config.json").read_text())
    assert told["inputs"]["start_from"].endswith(f"start-{content_hash(exported)[:8]}")
    assert [Path(shard).parent.parent.name for shard in current_shards(Workspace(home), TUNED).shards] == ["mine"]
    before, after = weights_of(exported), weights_of(folder)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.1  # two steps from there, not a new network
    assert tuned()["folder"] == str(folder)  # the same command finds the same run
    ran = run("run", "evaluate", "--preset", "tiny")
    assert ran.code == 1 and "preset tiny has no trained model" in ran.err  # what was tuned is not what would be trained


@pytest.mark.slow
def test_two_tunings_at_once_learn_each_its_own_photographs(home: Path, exported: Path, tuned: Callable[[], dict[str, Any]]) -> None:  # noqa: F811
    """One preset begins from one model on one data set: the second waits until the first is done."""
    names = ("first", "second")
    folders = [shutil.copytree(home.parent / "mine" / "eileen", home.parent / name) for name in names]
    with Image.open(folders[1] / "1.png") as picture:  # of the same photograph it would be the same run
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folders[1] / "1.png")
    command = [sys.executable, "-m", "pipelines.cli", "run", "train", "--json", "--preset", "tiny", "--from", "starter", *SMALL]
    both = [subprocess.Popen([*command, "--data", str(data)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for data in folders]
    done = [json.loads(process.communicate(timeout=600)[0]) for process in both]
    for name, one in zip(names, done, strict=True):
        told = json.loads((Path(one["folder"]).parent / "config.json").read_text())
        assert one["data_sets"] == [name] and {Path(s).parent.parent.name for s in told["inputs"]["shards"]} == {name}


@pytest.mark.slow
def test_what_is_tuned_stands_up_to_what_is_shipped(
    tuned: Callable[[], dict[str, Any]],
    tom_hanks: Path,
    astronaut: Path,
    exported: Path,  # noqa: F811
) -> None:
    tuned()
    for command in (("--preset", "tiny", "--model", "shipped"), ("--preset", "tiny-tuned")):
        assert answer("run", "promote", *command, *SMALL)["promoted"]
    made = answer("portrait", "--selfie", str(tom_hanks), "--scene", str(astronaut), "--emotion", "delight")
    assert made["model_version"] == "2" and made["expression"]["labels"] == ["happiness"]
