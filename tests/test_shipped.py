"""A model exported to a folder that stands alone: what is in it, what it makes in an empty home, and when none is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shell import answer, run
from synthetic import face_shard, faces
from test_portraits import TINY, model  # noqa: F401

from assets import shipping
from assets.portraits import Serving
from assets.stores.registry import content_hash
from assets.stores.workspace import Workspace
from diffsfsr import config, tables
from diffsfsr.encoders.dln import Dln
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.gestures import GESTURES
from diffsfsr.face.images import decode, read, to_tensor
from diffsfsr.model.pipeline import DiffSFSRPipeline
from diffsfsr.portrait import shipped
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.words import WORDS, WordTable, beside, examples, reference

ROOT = Path(__file__).resolve().parents[1]
ENTRY = {"mean": 41.5, "low": 35.25, "high": 48.0, "count": 200}
LABELS = ["happiness", "neutral", "happiness", "neutral", "happiness", ""]


def report(home: Path, model: Path, name: str = "faces-all", **changes: Any) -> Path:  # noqa: F811
    """A report as `run evaluate` leaves it, cut short."""
    figures = {"items": 200, "gallery": 250, "chance_top1": 0.4, "judges": {"identity": "reid0095", "fid": "missing: /home/x"}}
    figures |= {"independent": True, "id_top1": ENTRY, "pose_error": {"mean": None, "low": None, "high": None, "count": 0}}
    facts = {"data set": "faces", "model": content_hash(model)}
    file = home / "reports" / "0123456789" / name / "report.json"
    tables.write_json(file, {"facts": facts, "tasks": {"all": figures}, "slices": {"who": "Ann"}} | changes)
    return file


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, model: Path, six_people: Path) -> Workspace:  # noqa: F811
    """A home with six prepared faces, one of them held out, the record of the model's run, and reports about it. It learned nothing of
    the second data set."""
    home = tmp_path_factory.mktemp("export") / "home"
    found = Workspace(home)
    for name in ("faces", "strangers"):
        tables.write_json(home / "data" / name / "folder.json", {"folder": str(home)})
        (home / "data" / name / "sources").mkdir()
        (home / "data" / name / "sources" / "0000.parquet").touch()
        file = face_shard(home / "data" / name / f"aligned-{TINY.crop}" / "0000.parquet", faces(six_people, TINY.crop), LABELS)
        rows = tables.read(file).to_pylist()
        tables.write(file, tables.from_rows([rows[0] | {"split": "test"}, *rows[1:]], tables.FACES), "one held out")
    tables.write_json(model.parent / "config.json", {"inputs": {"shards": [str(home / "data" / "faces" / "training-x" / "0000.parquet")]}})
    report(home, model)
    report(home, model, "a-few", tasks={"all": {"items": 6, "judges": {}}})  # newer, of fewer items
    words = {"joy_output": ENTRY | {"mean": 36.5}, "joy_photograph": ENTRY | {"mean": 46.0}}
    words |= {"joy_ratio": {"mean": 0.83, "low": 0.71, "high": 0.95, "count": 40}}
    facts = {"data set": "faces", "model": content_hash(model), "classifier": "mini_xception"}
    report(home, model, "words", facts=facts, tasks={"words": words})
    return found


@pytest.fixture(scope="module")
def exported(workspace: Workspace, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("out") / "starter"
    shipping.export(workspace, model, out, by_eye="Of 50 portraits 9 were broken.")
    return out


@pytest.fixture
def newcomer(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, and a package that a model comes with."""
    monkeypatch.setenv("DIFFSFSR_STARTER", str(exported))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "diffsfsr-home"


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_the_networks_are_the_trained_ones_in_half_their_bits(exported: Path, model: Path) -> None:  # noqa: F811
    from safetensors import safe_open

    files = sorted(exported.glob("*/*.safetensors"))
    assert len(files) == 4
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}, file
            assert not any(name.startswith("frozen.") for name in tensors.keys())
    whole, half = (DiffSFSRPipeline.from_pretrained(folder, dtype=torch.float32) for folder in (model, exported))
    for part in ("unet", "vae", "tokens"):
        own, theirs = getattr(whole, part).state_dict(), getattr(half, part).state_dict()
        assert own.keys() == theirs.keys()
        for name, value in own.items():
            assert theirs[name].dtype == torch.float32 and torch.equal(theirs[name], value.half().float()), name


def test_what_is_known_of_glasses_and_brows_goes_with_it(workspace: Workspace, model: Path, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    from diffsfsr.encoders import brows, glasses

    assert glasses.load(exported) == {} and brows.load(exported) is None  # two faces cannot tell it
    known = glasses.Glasses(torch.randn(128), torch.tensor(0.3), torch.randn(128))
    glasses.save({"dlib": known}, model)
    moves = torch.randn(16, 10)
    brows.save(brows.Brows({"expression": moves}), model)
    try:
        shipped.write(tmp_path / "out", model, tables.read(exported / "words.parquet"), {"words": {}}, "card")
    finally:
        (model / glasses.GLASSES).unlink()
        (model / brows.BROWS).unlink()
    assert torch.equal(brows.load(tmp_path / "out").moves["expression"], moves)  # type: ignore[union-attr]
    assert torch.equal(glasses.load(tmp_path / "out")["dlib"].shift, known.shift)
    shipped.check_whole(tmp_path / "out")
    (tmp_path / "out" / glasses.GLASSES).write_bytes(b"cut")
    with pytest.raises(InputError, match=r"glasses.safetensors is not whole"):
        shipped.check_whole(tmp_path / "out")
    shipped.check_place(exported)


def test_a_saved_copy_has_the_same_bits(exported: Path, tmp_path: Path) -> None:
    pipeline, dln = Studio(exported).pipeline, Dln.load(exported / "dln")
    pipeline.save_pretrained(tmp_path)
    dln.save(tmp_path / "dln")
    again = Studio.__new__(Studio)
    again.pipeline = DiffSFSRPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    for part in ("unet", "vae", "tokens"):
        pairs = zip(getattr(pipeline, part).state_dict().values(), getattr(again.pipeline, part).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert Dln.load(tmp_path / "dln").version == dln.version


def test_the_encoder_reads_its_frozen_twin_from_the_published_file(exported: Path, model: Path) -> None:  # noqa: F811
    whole, half = Dln.load(model / "dln"), Dln.load(exported / "dln")
    assert half.version == whole.halved().version != whole.version
    assert all(torch.equal(a, b) for a, b in zip(whole.frozen.state_dict().values(), half.frozen.state_dict().values(), strict=True))


def test_an_encoder_of_another_frozen_twin_is_not_exported(model: Path, tmp_path: Path) -> None:  # noqa: F811
    dln = Dln.load(model / "dln")
    with torch.no_grad():
        dln.frozen.head.weight[0, 0] += 1
    dln.save(tmp_path, half=True)
    with pytest.raises(InputError, match="not the one that dln.json"):
        Dln.load(tmp_path)


def test_the_words_are_training_faces_as_the_rounded_encoder_sees_them(exported: Path, workspace: Workspace) -> None:
    table = tables.read(exported / "words.parquet")
    assert table.schema.remove_metadata() == WORDS and tables.mark_of(exported / "words.parquet") == Dln.load(exported / "dln").version
    rows = tables.read(workspace.home / "data" / "faces" / f"aligned-{TINY.crop}" / "0000.parquet").to_pylist()
    images = to_tensor(np.stack([decode(row["crop"]) for row in rows]))
    with torch.inference_mode():
        seen = Dln.load(exported / "dln")(images, torch.tensor([row["landmarks"] for row in rows]).reshape(-1, 68, 2)).numpy()
    for row in table.to_pylist():
        nearest = int(np.abs(seen - np.array(row["expression"])).max(1).argmin())
        assert np.abs(seen[nearest] - row["expression"]).max() < 1e-5 and rows[nearest]["emotion"] == row["emotion"]
        assert row["face_id"].isdecimal() and rows[nearest]["split"] == "train"


def test_nothing_says_where_it_was_made_or_who_is_in_it(exported: Path, workspace: Workspace, model: Path) -> None:  # noqa: F811
    for file in exported.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for told in (str(ROOT), str(workspace.home), str(model), str(model.parent.parent), "/home/x", "Ann", "s/0/0"):
                assert told.encode() not in content, (file, told)


def test_the_card_is_one_that_hugging_face_reads(exported: Path) -> None:
    from huggingface_hub import ModelCard

    text = (exported / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    (shown,) = head["model-index"]
    assert head["library_name"] == "diffusers" and head["pipeline_tag"] == "image-to-image" and head["license"] == "other"
    (result,) = shown["results"]
    assert result["metrics"][0]["value"] == 41.5 and "35.25 to 48" in result["metrics"][0]["name"]
    assert ModelCard(text).data.eval_results[0].metric_type == "id_top1"
    for part in ("Of 50 portraits 9 were broken.", "41.5 [35.2, 48]", "5 faces of 5 people", "was not recorded"):
        assert part in text
    assert "| joy | 36.5 [35.2, 48] | 46 [35.2, 48] | 0.83 [0.71, 0.95] |" in text and "How often mini_xception takes" in text
    recorded = json.loads((exported / "evaluation.json").read_text())
    assert recorded["trained_on"] == {"faces": [5, 5]} and "strangers" not in text
    assert recorded["measured"] == {"faces": {"all": recorded["measured"]["faces"]["all"]}}  # what words were named is told apart
    assert recorded["measured"]["faces"]["all"]["id_top1"] == ENTRY and recorded["named"]["faces"]["joy_ratio"]["mean"] == 0.83


# --- what is chosen for a word ----------------------------------------------------------------------------------------


def test_examples_of_a_feeling_are_unlike_those_of_its_contrary() -> None:
    """Of sad faces that lean to joy, to anger or to neither."""
    rng = np.random.default_rng(1)
    axes = np.eye(16)

    def near(*parts: int, count: int = 40) -> np.ndarray:
        return axes[list(parts)].sum(0) / np.sqrt(len(parts)) + 0.02 * rng.normal(size=(count, 16))

    happy, angry = near(0, count=200), near(1, count=200)
    sad = np.concatenate([near(2, 0), near(2, 1), near(2)])
    labels = ["happiness"] * 200 + ["anger"] * 200 + ["sadness"] * 120
    rows = examples(labels, np.concatenate([happy, angry, sad]), np.zeros((520, 9))).to_pylist()
    found = np.array([row["expression"] for row in rows if row["emotion"] == "sadness"])
    assert len(found) == 32 and (found[:, 0] < 0.2).all()  # none leans to joy
    # a label without a contrary leaves out its faces that look like another's
    done = rng.normal(size=(440, 9)).astype(np.float32)
    alone = examples(["anger"] * 200 + ["surprise"] * 240, np.concatenate([angry, near(3, count=200), near(1)]), done).to_pylist()
    assert all(np.argmax(row["expression"]) == 3 for row in alone if row["emotion"] == "surprise")


def test_examples_of_surprise_are_the_faces_that_do_most_of_what_it_does() -> None:
    rng = np.random.default_rng(1)
    vectors = np.concatenate([np.eye(16)[k] + 0.02 * rng.normal(size=(200, 16)) for k in (0, 3)])
    done = np.zeros((400, 9), np.float32)
    done[:, :] = rng.uniform(0, 1, (400, 1))  # alike in all but these:
    plain, smiling, angry = range(200, 232), range(240, 300), range(0, 60)
    done[plain] += np.eye(9)[[GESTURES.index(k) for k in ("open", "brow_left", "brow_right", "eye_left", "eye_right")]].sum(0) * 2
    done[smiling] += np.eye(9)[[GESTURES.index(k) for k in ("corners", "wide")]].sum(0) * 9
    done[angry] += 9
    rows = examples(["anger"] * 200 + ["surprise"] * 200, vectors, done).to_pylist()
    found = np.array([row["expression"] for row in rows if row["emotion"] == "surprise"])
    chosen = [int(np.linalg.norm(vectors - row, axis=1).argmin()) for row in found]
    assert sorted(chosen) == list(plain)


def test_a_feeling_that_shows_little_is_led_away_from_its_contraries() -> None:
    """Faces on a quarter circle from no expression to joy and, beyond it, to what shows much."""

    def at(degrees: float, tilt: int) -> np.ndarray:
        """Two faces to both sides of a place on the circle."""
        vectors = np.zeros((2, 16), np.float32)
        vectors[:, 0], vectors[:, 1] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        vectors[:, tilt] = 0.2, -0.2
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    faces = {"neutral": at(0, 2), "sadness": at(-20, 3), "happiness": at(60, 4), "delight": at(70, 5), "anger": at(-90, 6)}
    told = {word: reference(word, 0, dict.fromkeys(faces, 2), lambda label: (["a", "b"], faces[label])) for word in ("sadness", *faces)}
    assert {word: found.facts["away_from"] for word, found in told.items() if found.negative is not None} == {
        "sadness": ["delight", "happiness"]
    }  # anger is 90 degrees from neutral and 155 from joy, joy 65 and 120 to what lies between sadness and anger
    middle = np.zeros(16)
    middle[:2] = np.cos(np.radians(65)), np.sin(np.radians(65))
    negative = told["sadness"].negative
    assert negative is not None
    np.testing.assert_allclose(negative, middle, atol=1e-6)
    for lacking in ("neutral", "happiness"):
        here = {label: 2 for label in ("neutral", "sadness", "happiness") if label != lacking}
        alone = reference("sadness", 0, here, lambda label: (["a", "b"], faces[label]))
        assert alone.negative is None and alone.facts["away_from"] == []


def test_examples_leave_out_wrong_labels_and_labels_of_few() -> None:
    rng = np.random.default_rng(0)
    axes = np.eye(16)

    def near(axis: int, count: int) -> np.ndarray:
        return axes[axis] + 0.05 * rng.normal(size=(count, 16))

    vectors = np.concatenate([near(0, 600), near(1, 200), near(0, 30), near(2, 3), near(3, 50), near(4, 3)])
    labels = ["neutral"] * 600 + ["anger"] * 230 + ["disgust"] * 3 + [""] * 50 + ["fear"] * 3  # anger serves for disgust, nothing for fear
    rows = examples(labels, vectors, np.zeros((len(labels), 9))).to_pylist()
    assert [row["face_id"] for row in rows] == [f"{i:05d}" for i in range(len(rows))]
    by_label = {name: np.array([row["expression"] for row in rows if row["emotion"] == name]) for name in {row["emotion"] for row in rows}}
    assert {label: len(found) for label, found in by_label.items()} == {"neutral": 32, "anger": 32, "fear": 3}
    assert (by_label["anger"].argmax(1) == 1).all() and (by_label["neutral"].argmax(1) == 0).all()  # the 30 called anger are left out
    middle = vectors[:600].mean(0)  # of no feeling the most usual faces
    gaps = np.linalg.norm(vectors[:600] - middle, axis=1)
    assert np.linalg.norm(by_label["neutral"] - middle, axis=1).max() < np.quantile(gaps, 0.1)
    assert len(examples([], np.zeros((0, 16)), np.zeros((0, 9)))) == 0


# --- when none is written ---------------------------------------------------------------------------------------------


def test_a_model_that_was_not_evaluated_is_not_exported(workspace: Workspace, model: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(NotReady, match="run evaluate --preset tiny"):
        shipping.export(Workspace(tmp_path / "home"), model, tmp_path / "out")
    report(tmp_path / "home", model, facts={"data set": "faces", "model": "another"})
    with pytest.raises(NotReady, match="run evaluate"):
        shipping.export(Workspace(tmp_path / "home"), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_unknown_origin_is_not_exported(workspace: Workspace, model: Path, tmp_path: Path) -> None:  # noqa: F811
    alone = tmp_path / "run" / "model"
    shutil.copytree(model, alone)
    with pytest.raises(NotReady, match=r"config\.json says from whom"):
        shipping.export(workspace, alone, tmp_path / "out")
    tables.write_json(alone.parent / "config.json", {"inputs": {"shards": [str(tmp_path / "faces" / "training-x" / "0007.parquet")]}})
    with pytest.raises(NotReady, match="no longer here"):
        shipping.export(workspace, alone, tmp_path / "out")


def test_a_tuned_model_says_who_else_is_in_it(workspace: Workspace, model: Path, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    """Its people are those of both trainings, its words those that it was given."""
    tuned = tmp_path / "run" / "model"
    shutil.copytree(model, tuned)
    shutil.copyfile(exported / "words.parquet", tuned / "words.parquet")
    inputs = {"shards": [str(tmp_path / "strangers" / "training-x" / "0000.parquet")], "start_from": str(exported)}
    tables.write_json(tuned.parent / "config.json", {"inputs": inputs})
    report(workspace.home, tuned, "tuned")
    made = shipping.export(workspace, tuned, tmp_path / "out")
    recorded = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert recorded["trained_on"] == {"faces": [5, 5], "strangers": [5, 5]} and made["words"] == recorded["words"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained on from another model" in card and "diffsfsr run train --preset tiny --from MODEL" in card
    assert "prepare --preset tiny --data strangers" in card and "--data faces" not in card  # what it was made from, not its basis
    inputs["start_from"] = str(model)
    tables.write_json(tuned.parent / "config.json", {"inputs": inputs})
    with pytest.raises(NotReady, match="does not say from whom"):
        shipping.export(workspace, tuned, tmp_path / "again")


def test_a_finished_model_says_both_of_its_trainings(workspace: Workspace, model: Path, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    done = tmp_path / "run" / "model"
    shutil.copytree(model, done)
    words = tables.read(exported / "words.parquet")
    tables.write(done / "words.parquet", words.slice(0, 1), "fewer, as another rule chose them")
    inputs = {"shards": [str(tmp_path / "faces" / "training-x" / "0000.parquet")], "start_from": str(exported)}
    tables.write_json(done.parent / "config.json", {"inputs": inputs, "preset": {"name": "tiny-finished", "trains": "finish"}})
    report(workspace.home, done, "finished")
    shipping.export(workspace, done, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    commands = [line.split("diffsfsr ")[1].split(" --set")[0] for line in card.splitlines() if line.startswith("    diffsfsr run train")]
    assert commands == ["run train --preset tiny", "run train --preset tiny-finished --from MODEL"]
    assert "diffsfsr export --preset tiny-finished" in card and "Last, the autoencoder's decoder learned to finish" in card
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["trained_on"] == {"faces": [5, 5]}
    assert tables.read(tmp_path / "out" / "words.parquet").equals(words)  # chosen anew: whose faces they are is all here
    report(workspace.home, tmp_path / "out", "again")
    shipping.export(workspace, tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_a_broken_record_and_a_wrong_folder_are_told(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "evaluation.json").write_text('{"words"')
    monkeypatch.setenv("DIFFSFSR_STARTER", str(broken))
    ran = run("emotions", "joy")
    assert ran.code == 2 and "evaluation.json is broken" in ran.err and len(ran.err.splitlines()) == 1
    record = json.loads((exported / "evaluation.json").read_text())
    (broken / "evaluation.json").write_text(json.dumps(record | {"words": {"happiness": "many"}}))
    with pytest.raises(InputError, match="evaluation.json is broken"):
        shipped.evaluation(broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(InputError, match="broken is no whole model"):
        Studio(broken)
    monkeypatch.setenv("DIFFSFSR_STARTER", str(tmp_path / "none"))
    with pytest.raises(NotReady, match="DIFFSFSR_STARTER=.*none is no exported model"):
        shipped.need()


def test_an_export_replaces_nothing_but_an_export(exported: Path, tmp_path: Path) -> None:
    shipped.check_place(exported)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "evaluation.json").write_text("{}")
    for mine in (thesis, exported):
        (mine / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="holds something else than an exported model"):
            shipped.check_place(mine)
        (mine / "thesis.txt").unlink()


def test_the_folder_is_written_whole_or_not_at_all(
    workspace: Workspace,
    model: Path,  # noqa: F811
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = sum(file.stat().st_size for file in exported.rglob("*") if file.is_file())
    monkeypatch.setattr(shipped, "LARGEST", size - 1)
    with pytest.raises(InputError, match="MB, more than"):
        shipping.export(workspace, model, tmp_path / "out", by_eye="Of 50 portraits 9 were broken.")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something else"):
        shipping.export(workspace, model, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


# --- a newcomer -------------------------------------------------------------------------------------------------------


def test_a_newcomers_first_portrait(newcomer: Path, exported: Path, tom_hanks: Path, astronaut: Path) -> None:
    made = answer("portrait", "--selfie", str(tom_hanks), "--scene", str(astronaut), "--emotion", "delight", "--out", "p.png")
    assert made["model_version"] == f"starter-{content_hash(exported)[:8]}" and made["expression"]["labels"] == ["happiness"]
    assert read(Path("p.png")).shape == read(astronaut).shape and run("verify", "p.png").code == 0
    assert not newcomer.exists() or not any(p.name in ("mlflow.db", "catalogue") for p in newcomer.iterdir())
    assert answer("emotions", "delight")["resolution"]["labels"] == ["happiness"]
    labels = newcomer / "models" / "labels.json"
    labels.parent.mkdir(parents=True)
    labels.write_text('{"happiness": 900}')  # of a catalogue that serves nobody while there is no champion
    assert answer("emotions", "delight")["resolution"]["faces"] < 900
    words = ["--through", "joy", "--through", "neutral", "--frames", "2"]
    travel = answer("travel", "--selfie", str(tom_hanks), "--scene", str(astronaut), *words, "--steps", "1", "--out", "t.png")
    assert travel["model_version"] == made["model_version"]


def test_without_its_words_it_says_so(
    newcomer: Path, exported: Path, tom_hanks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy" / "words.parquet").unlink()
    monkeypatch.setenv("DIFFSFSR_STARTER", str(tmp_path / "copy"))
    ran = run("portrait", "--selfie", str(tom_hanks), "--scene", str(tom_hanks), "--emotion", "joy", "--out", "p.png")
    assert ran.code == 2 and "copy/words.parquet, by which words are looked up, is missing or empty" in ran.err


def test_requests_are_fulfilled_by_it(newcomer: Path, tom_hanks: Path, astronaut: Path) -> None:
    wish = ("--selfie", str(tom_hanks), "--scene", str(astronaut), "--emotion", "neutral", "--steps", "1")
    number = answer("request", "add", *wish)["id"]
    assert answer("run", "generate")["done"] == 1
    assert answer("request", "show", number)["result"]["model_version"].startswith("starter-")
    assert not (newcomer / "mlflow.db").exists()


def test_doctor_names_it(newcomer: Path, exported: Path) -> None:
    found = answer("doctor")
    assert found["state"]["shipped_model"] == str(exported) and not any("no model" in gap["what"] for gap in found["gaps"])


@pytest.mark.parametrize("damage", ["words.parquet", "preset.json", "vae/diffusion_pytorch_model.safetensors", "no words"])
def test_doctor_says_that_it_is_damaged(
    damage: str, newcomer: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    monkeypatch.setenv("DIFFSFSR_STARTER", str(copy))
    assert not any("damaged" in gap["what"] for gap in answer("doctor")["gaps"])
    file = copy / ("words.parquet" if damage == "no words" else damage)
    file.unlink() if damage == "no words" else file.write_bytes(file.read_bytes()[:100])
    told = [gap["what"] for gap in answer("doctor")["gaps"] if "damaged" in gap["what"]]
    assert len(told) == 1 and str(file) in told[0]


def test_without_one_the_message_says_what_to_do(tom_hanks: Path, astronaut: Path) -> None:
    ran = run("portrait", "--selfie", str(tom_hanks), "--scene", str(astronaut), "--emotion", "joy")
    assert ran.code == 1 and "run `diffsfsr run train` and `diffsfsr run promote`" in ran.err
    ran = run("run", "evaluate", "--preset", "tiny", "--model", "shipped")
    assert ran.code == 1 and "no-starter is no exported model" in ran.err


def test_a_champion_comes_first(model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from assets import version
    from assets.stores.catalogue import Catalogue
    from assets.stores.registry import Registry

    monkeypatch.setenv("DIFFSFSR_STARTER", str(exported))
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlartifacts", cache=tmp_path / "models")
    catalogue = Catalogue(tmp_path / "catalogue")
    told = version.record(exported, {})
    with version.beside(told, catalogue, exported) as files:
        assert WordTable(files / "words.parquet").labels == WordTable(exported / "words.parquet").labels
        registry.register(exported, registry.open_run("starter", "diffusion"), version.tags(told), files)
    assert Serving.champion(registry, lambda: catalogue, tmp_path).version.startswith("starter-")  # a challenger is not in service
    registry.promote(1, "ann", "the first")
    serving = Serving.champion(registry, lambda: catalogue, tmp_path)
    assert serving.version == "1"
    vector, facts, _ = serving.expression("delight", 0)  # the catalogue has no face: the model brings its own
    assert facts["among"] == beside(exported).labels["happiness"] and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    catalogue.upsert_faces(_labelled(serving.studio.dln.version, ["happiness", "surprise"]))
    found = {word: serving.expression(word, 0)[1]["reference"] for word in ("delight", "surprise", "neutral")}
    assert found["surprise"] == "d/1/0" and found["delight"].isdecimal() and found["neutral"].isdecimal()  # of one face none is chosen
    catalogue.upsert_faces(_labelled(serving.studio.dln.version, ["happiness"] * 8))
    assert serving.expression("delight", 0)[1]["reference"].startswith("d/")
    with version.beside(told, catalogue, exported) as files:
        assert WordTable(files / "words.parquet").labels == beside(exported).labels | {"happiness": 8}


def _labelled(version: str, labels: list[str]) -> Any:
    import pyarrow as pa

    rows = {"face_id": [f"d/{i}/0" for i in range(len(labels))], "emotion": labels, "expression_version": [version] * len(labels)}
    return pa.table(rows | {"expression": list(np.eye(16, dtype=np.float32)[: len(labels)])})


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_brings_the_model(exported: Path, tmp_path: Path) -> None:
    import shutil

    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns(".git", ".venv", "tests", "docs", "*.egg-info", "build", "starter", ".diffsfsr")
    shutil.copytree(ROOT, tree, ignore=left_out)
    shutil.copytree(exported, tree / "diffsfsr" / "starter")
    code = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True).stdout.split()[-1]
    inside = {name for name in zipfile.ZipFile(tree / made).namelist() if name.startswith("diffsfsr/starter/")}
    assert inside == {f"diffsfsr/starter/{p.relative_to(exported).as_posix()}" for p in exported.rglob("*") if p.is_file()}


def test_the_models_preset_is_readable(exported: Path, tmp_path: Path) -> None:
    assert shipped.preset_of(exported) == config.from_dict(json.loads((exported / "preset.json").read_text()))
    with pytest.raises(InputError, match="holds no model"):
        shipped.preset_of(tmp_path)
    for broken in ('{"crop": 12', "[]", '{"crop": "big"}'):
        (tmp_path / "preset.json").write_text(broken)
        with pytest.raises(InputError, match=str(tmp_path)):
            shipped.preset_of(tmp_path)
