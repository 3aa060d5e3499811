"""Travels: what an order of one refuses, what a strip and a GIF show, and that nothing but the expression moves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from shell import run

from assets.portraits import Serving
from assets.stores.catalogue import Catalogue
from diffsfsr import config, presets, tables
from diffsfsr.errors import InputError
from diffsfsr.face.images import read
from diffsfsr.portrait import travel as room
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.travel import Travel
from pipelines import look

TINY = config.override(presets.preset("tiny"), {"sampling.steps": 2})


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """An untrained model to which the expression matters."""
    from diffsfsr import weights
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.pipeline import DiffSFSRPipeline
    from diffsfsr.model.unet import DiffSFSR

    folder = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    network = DiffSFSR.from_preset(TINY, {"dlib": 128}).eval()
    torch.nn.init.normal_(network.unet.conv_in.weight, std=0.1)
    torch.nn.init.normal_(network.unet.class_embedding.linear_2.weight, std=0.5)
    DiffSFSRPipeline.from_model(network, LatentAutoencoder.from_config_row(TINY.autoencoder).eval(), TINY).save_pretrained(folder)
    Dln.from_identity(weights.resolve("dlib-face"), TINY.dln.dim).save(folder / "dln")
    tables.write_json(folder / "preset.json", config.to_dict(TINY))
    return Studio(folder)


def two_words(folder: Path, version: str) -> Catalogue:
    """One face for each of two words, their expressions at right angles."""
    words = ["happiness", "sadness"]
    rows = {"face_id": ["d/0000/0", "d/0001/0"], "emotion": words, "expression_version": [version] * 2}
    catalogue = Catalogue(folder)
    catalogue.upsert_faces(pa.table(rows | {"expression": list(np.eye(16, dtype=np.float32)[:2])}))
    return catalogue


@pytest.fixture
def there(studio: Studio, tom_hanks: Path, astronaut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in with a selfie and a scene, and a champion."""
    shutil.copy(tom_hanks, tmp_path / "hanks.png")
    shutil.copy(astronaut, tmp_path / "place.png")
    Image.new("RGB", (200, 200), "white").save(tmp_path / "empty.png")
    monkeypatch.chdir(tmp_path)
    serving = Serving(studio, "7", two_words(tmp_path / "catalogue", studio.dln.version), tmp_path / "portraits")
    monkeypatch.setattr(look, "champion", lambda: serving)
    return tmp_path


WHO = "travel --selfie hanks.png --scene place.png "


def frames_of(path: Path, count: int) -> list[np.ndarray]:
    """The frames of a strip, without the words."""
    sheet = read(path)
    side = sheet.shape[1] // count
    return [sheet[:side, i * side : (i + 1) * side] for i in range(count)]


def test_a_strip_moves_the_expression_and_nothing_else(there: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    real = studio.generate
    monkeypatch.setattr(studio, "generate", lambda *args: (shown.append(args), real(*args))[1])
    ran = run(*WHO.split(), "--through", "scene", "--through", "joy", "--through", "sadness", "--frames", "10", "--out", "s.png", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert [len(args[0]) for args in shown] == [8, 2]  # the model is called for eight frames at a time
    scenes, _, _, identity, expression, seeds = (
        [torch.as_tensor(x) for args in shown for x in (args[k]["dlib"] if k == 3 else args[k])] for k in range(6)
    )
    for same in (scenes, identity, seeds):
        assert all(torch.equal(x, same[0]) for x in same)
    way = torch.stack(expression).double()
    angle = torch.arccos((way[:-1] * way[1:]).sum(1).clamp(-1, 1))
    near = [station["frame"] for station in told["expression"]["stations"]]
    corner = near[1]
    straight = [i for i in range(9) if i not in (corner - 1, corner)]
    assert float(angle[straight].max() - angle[straight].min()) < 1e-4 and near[0] == 0 and near[2] == 9
    assert float(way[-1, 1]) > 1 - 1e-6 and float(way[corner, 0]) > 0.95  # the words' own vectors
    frames, place = frames_of(there / "s.png", 10), read(there / "place.png")
    moved = np.abs(np.diff(np.stack(frames).astype(int), axis=0)).sum((1, 2, 3))
    assert (moved > 0).all() and all(np.array_equal(frame[:60], place[:60]) for frame in frames)
    words = read(there / "s.png")[512:]
    inked = [bool((words[:, i * 512 : (i + 1) * 512] < 128).any()) for i in range(10)]
    assert [i for i, ink in enumerate(inked) if ink] == near
    assert told["order"]["through"] == ["scene", "joy", "sadness"] and "emotion" not in told["order"] and told["model_version"] == "7"
    assert run("verify", "s.png").code == 0
    (there / "s.png").write_bytes((there / "s.png").read_bytes() + b"x")
    assert run("verify", "s.png").code == 2


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_ends_of_a_travel_are_the_portraits_of_its_stations(
    there: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    """Where the preset leads no word away from its contrary, as this one: between two feelings a travel never does. Each frame has the
    facial region of its own expression: here happiness lifts the brows and sadness lowers them."""
    from assets.portraits import fulfil
    from diffsfsr.encoders.brows import Brows
    from diffsfsr.portrait.order import Order

    sampling = dataclasses.replace(studio.preset.sampling, own_brows=True)
    monkeypatch.setattr(studio, "preset", dataclasses.replace(studio.preset, sampling=sampling))
    moves = torch.zeros(16, 10)
    moves[0], moves[1] = -0.2, 0.2
    monkeypatch.setattr(studio, "brows", Brows({"expression": moves}))
    told = f"--through happiness --through sadness --frames 3 --seed 4 --strength {strength} --out s.png"
    assert run(*WHO.split(), *told.split()).code == 0
    first, _, last = frames_of(there / "s.png", 3)
    for word, frame in (("happiness", first), ("sadness", last)):
        _, portrait = fulfil(Order(word, ("hanks.png",), "place.png", strength=strength, seed=4), look.champion())
        assert np.abs(portrait.astype(int) - frame).max() <= 1


def test_a_gif_of_a_photographs_expression(there: Path) -> None:
    ran = run(*WHO.split(), *"--through happiness --through hanks.png --frames 4 --out t.gif --json".split())
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    photograph = str((there / "hanks.png").resolve())
    assert told["expression"]["stations"][1] == {"photograph": photograph, "frame": 3} and photograph in told["inputs_sha256"]
    with Image.open(there / "t.gif") as gif:
        assert (gif.format, gif.n_frames, gif.size, gif.info["loop"]) == ("GIF", 4, (512, 512), 0)
    assert run("verify", "t.gif").code == 0


def test_equal_stations_and_a_travel_without_a_selfie(there: Path) -> None:
    ran = run(*"travel --scene place.png --task expression --through scene --through scene --frames 2 --out s.png".split())
    assert ran.code == 0, ran.err
    first, second = frames_of(there / "s.png", 2)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--through joy --out s.png", "--through twice"),
        ("--through joy --through hapiness --out s.png", "did you mean happiness?"),
        ("--through joy --through gone.png --out s.png", "gone.png is not a file"),
        ("--through joy --through empty.png --out s.png", "empty.png: no face"),
        ("--through joy --through scene --frames 1 --out s.png", "frames 1"),
        ("--through joy --through scene --out s.bmp", ".png or .gif"),
        ("--through joy --through scene --out nowhere/s.png", "folder that exists"),
        ("--through joy --through hanks.png --out hanks.png", "one of the photographs given"),
        ("--through joy --through scene --task identity --out s.png", "nothing would travel"),
        ("--through joy --through terror --out s.png", "terror"),
        ("--through joy --through scene --selfie empty.png --out s.png", "empty.png: no face"),
        ("--through joy --through scene --steps 600 --out s.png", "steps=600"),
        ("--through joy --through scene --strength -1 --out s.png", "strength"),
    ],
)
def test_what_cannot_be_is_one_line(there: Path, words: str, told: str) -> None:
    before = sorted(p.name for p in there.iterdir())
    ran = run(*WHO.split(), *words.split())
    assert ran.code == 2 and told in ran.err and ran.out == "" and len(ran.err.splitlines()) == 1
    assert sorted(p.name for p in there.iterdir()) == before


def test_long_words_stay_beneath_their_frame() -> None:
    frames = [np.zeros((64, 64, 3), np.uint8)] * 3
    sheet = room.strip(frames, {1: "a very long name of a photograph indeed"})
    assert sheet.shape[1] == 192
    inked = np.flatnonzero((sheet[64:] < 128).any((0, 2)))
    assert len(inked) > 20 and 64 <= inked.min() and inked.max() < 128


def test_a_travel_is_checked_as_an_order_is(tom_hanks: Path, astronaut: Path) -> None:
    good = Travel(selfies=(str(tom_hanks),), scene=str(astronaut), through=(" JOY", str(tom_hanks)))
    checked = good.check()
    assert checked.through == ("joy", str(tom_hanks)) and checked.frames == 9 and isinstance(checked, Travel)
    with pytest.raises(InputError, match="selfie"):
        dataclasses.replace(good, selfies=()).check()
    with pytest.raises(InputError, match="did you mean ddim"):
        dataclasses.replace(good, sampler="dimm").check()


def test_a_word_is_a_word_whatever_files_lie_about(tmp_path: Path, astronaut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joy").write_text("not a picture")
    order = Travel(selfies=(str(astronaut),), scene=str(astronaut), through=("joy", "anger")).check()
    assert order.through == ("joy", "anger")


def test_fewer_frames_than_stations_are_refused(astronaut: Path) -> None:
    with pytest.raises(InputError, match="frames 2 cannot show 3 stations"):
        Travel(selfies=(str(astronaut),), scene=str(astronaut), through=("joy", "anger", "fear"), frames=2).check()


def test_a_report_shows_one_person_from_word_to_word(studio: Studio, tom_hanks: Path, astronaut: Path) -> None:
    """The ends of a travel are what the model makes of the two faces themselves, and so is every picture under a word."""
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.evaluation.items import Faces, Item
    from diffsfsr.evaluation.report import figures

    seen = [studio.face(read(path), path.name) for path in (tom_hanks, astronaut)]
    landmarks = np.stack([face.crop_landmarks for face in seen])
    faces = Faces(["h", "a"], ["h", "a"], [face.crop for face in seen], landmarks, [{"emotion": "sad"}, {"emotion": "happy"}])
    ours = Ours(studio, faces, "untrained")
    words, travel = figures.showcase(ours, [Item(0, 1, 0)])
    assert words.columns == ["", "happiness", "sadness"] and travel.columns[0] == "happiness" and travel.columns[-1] == "sadness"
    alone = {"happiness": ours([Item(0, 1, 1)], [0])[0], "sadness": ours([Item(0, 1, 0)], [0])[0]}
    for shown, word in [(travel.rows[0][0], "happiness"), (travel.rows[0][-1], "sadness"), *zip(words.rows[1][1:], alone, strict=True)]:
        assert np.abs(shown.picture.astype(int) - alone[word].astype(int)).max() <= 1  # rounding, in a batch
    assert np.array_equal(words.rows[0][1].picture, faces.crops[1])
    steps = [np.abs(a.picture.astype(int) - b.picture.astype(int)).sum() for a, b in zip(travel.rows[0], travel.rows[0][1:], strict=False)]
    assert all(steps)
    assert figures.showcase(Ours(studio, dataclasses.replace(faces, labels=()), "untrained"), [Item(0, 1, 0)]) == []
