"""The model that comes with the package: it shows the person and the word that were asked for, and its folder holds what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from assets.portraits import Serving, begin
from assets.stores.registry import content_hash
from diffsfsr import presets
from diffsfsr.config import Data, Sampling
from diffsfsr.emotions import NEUTRAL, WORDS
from diffsfsr.encoders import load_encoder
from diffsfsr.encoders.glasses import taken_off
from diffsfsr.errors import InputError
from diffsfsr.evaluation.judges import embed
from diffsfsr.face.alignment import align
from diffsfsr.face.gestures import GESTURES, gestures
from diffsfsr.face.images import read
from diffsfsr.portrait import shipped
from diffsfsr.portrait.card import tables
from diffsfsr.portrait.compose import Portrait
from diffsfsr.portrait.order import Order
from diffsfsr.tables import read as read_table

ASKED = (NEUTRAL, "amusement", "astonishment")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    return Serving.shipped(shipped.PLACE, tmp_path_factory.mktemp("starter"))


@pytest.fixture(scope="module")
def made(serving: Serving, tom_hanks: Path, astronaut: Path) -> dict[str, Portrait]:
    """A man in a woman's photograph, in three words."""
    sittings = [begin(Order(word, (str(tom_hanks),), str(astronaut), seed=1), serving).sitting for word in ASKED]
    return dict(zip(ASKED, serving.studio.paint(sittings), strict=True))


def test_a_feeling_that_shows_little_is_led_away_from_its_contrary(serving: Serving, tom_hanks: Path, astronaut: Path) -> None:
    """By this model's own preset, from the order on; what it is led away from is part of the portrait's name."""
    for word, away in (("gloom", ["happiness"]), ("amusement", []), ("anger", []), ("astonishment", []), (NEUTRAL, [])):
        commission = begin(Order(word, (str(tom_hanks),), str(astronaut), seed=1), serving)
        assert commission.found and commission.found.facts["away_from"] == away
        assert (commission.sitting.negative is None) == (not away)


def test_a_judge_knows_the_person_again(made: dict[str, Portrait], tom_hanks: Path, astronaut: Path, weights_dir: Path) -> None:
    judge = load_encoder("reid0095")

    def seen(picture: np.ndarray) -> np.ndarray:
        face = align(picture, 128, Data(max_outside=0.5))  # the man's photograph shows little but his face
        return embed(judge, face.crop[None], face.crop_landmarks[None])[0]

    him, her = seen(read(tom_hanks)), seen(read(astronaut))
    for word, portrait in made.items():
        it = seen(portrait.image)
        to_him, to_her = (float(it @ one / np.linalg.norm(it) / np.linalg.norm(one)) for one in (him, her))
        assert to_him > to_her + 0.1, (word, to_him, to_her)


def test_the_face_does_what_the_word_says(made: dict[str, Portrait]) -> None:
    faces = [align(made[word].image, 128, Data()) for word in ASKED]
    rest, smiling, astonished = gestures(np.stack([face.landmarks for face in faces]))
    wide, opened = GESTURES.index("wide"), GESTURES.index("open")
    assert smiling[wide] > rest[wide] + 0.5
    assert astonished[opened] > rest[opened] + 1


def test_everything_outside_the_face_is_as_it_was(made: dict[str, Portrait], astronaut: Path) -> None:
    scene = read(astronaut)
    for portrait in made.values():
        changed = (portrait.image != scene).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert 0.01 < changed.mean() < 0.1 and np.ptp(rows) < 180 and np.ptp(columns) < 180


def test_every_word_is_answered(serving: Serving) -> None:
    """By an embedding of unit length, or by a line that says why not."""
    served = 0
    for word in (*WORDS, NEUTRAL):
        try:
            vector, facts, away = serving.expression(word, 0)
        except InputError as why:
            assert word in str(why)
        else:
            served += 1
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3) and facts["how"] in ("exact", "cluster", "family")
            assert (away is None) == (not facts["away_from"])
    assert served > 100


def test_the_folder_is_what_its_record_says(serving: Serving) -> None:
    files = [file for file in shipped.PLACE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= shipped.LARGEST
    record = shipped.evaluation(shipped.PLACE)
    rows = read_table(shipped.PLACE / "words.parquet")
    assert rows.column_names == ["face_id", "emotion", "expression"]
    assert all(face.isdecimal() for face in rows["face_id"].to_pylist())
    assert {label: rows["emotion"].to_pylist().count(label) for label in record["words"]} == record["words"]
    figures = record["measured"]["lfw"]["all"]
    assert figures["items"] >= 200 and figures["independent"] and figures["id_top1"]["mean"] >= 40
    assert tables(record["measured"], record["named"]) in (shipped.PLACE / "README.md").read_text(encoding="utf-8")
    assert record["model"] == content_hash(shipped.PLACE)  # what was measured is what is here
    index = json.loads((shipped.PLACE / "model_index.json").read_text(encoding="utf-8"))
    own, row = shipped.preset_of(shipped.PLACE).sampling, presets.preset("starter").sampling
    assert own == row == Sampling(**index["sampling"]) and own.negative
    assert presets.tuned(shipped.preset_of(shipped.PLACE).name) == "starter-tuned"


def test_the_readme_says_what_its_record_says() -> None:
    measured = shipped.evaluation(shipped.PLACE)["measured"]["lfw"]["all"]
    text = " ".join((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split())
    top1 = measured["id_top1"]

    def said(name: str, digits: int) -> str:
        return f"{measured[name]['mean']:.{digits}f}".removeprefix("0")

    for sentence in (
        f"finds the person first among 200 in {top1['mean']:g} % [{top1['low']:g}, {top1['high']:g}] of them",
        f"the cosine to the person is {said('id_cosine', 2)}, to the scene's {said('id_scene_cosine', 3)}.",
        f"(correlation of the smile {said('smile_correlation', 2)}, of the open jaw {said('jaw_correlation', 2)}, by MediaPipe's",
        f"the head is turned {said('pose_error', 1)} degrees away in the mean",
    ):
        assert sentence in text
    assert (measured["failure_rate"]["mean"], measured["background"]["mean"]) == (0, 0)  # a face in all, not a byte outside


def test_its_glasses_are_seen_on_photographs(serving: Serving, faces_dir: Path) -> None:
    """As an eye sees them; and who takes them off is then seen without."""
    with_some, without = ("016", "020", "045"), ("001", "033", "036")
    files = {name: faces_dir / "portraits" / f"{name}.jpg" for name in with_some + without}
    files |= {name: faces_dir / "photos" / f"{name}.jpg" for name in ("obama", "biden")}
    if missing := [file for file in files.values() if not file.is_file()]:
        pytest.skip(f"{missing[0]} is not there")
    studio = serving.studio
    seen = {name: studio.embed_identity([studio.face(read(file), name, "largest")]) for name, file in files.items()}
    own = studio.glasses["dlib"]
    scores = {name: own.score(who["dlib"]).item() for name, who in seen.items()}
    assert min(scores[name] for name in with_some) > 0.5 > 0 > max(scores[name] for name in (*without, "obama", "biden")), scores
    taken = taken_off({"dlib": torch.cat([seen["045"]["dlib"], seen["biden"]["dlib"]])}, studio.glasses)["dlib"]
    assert own.score(taken).tolist() == pytest.approx([-1, min(-1, scores["biden"])], abs=0.01)
