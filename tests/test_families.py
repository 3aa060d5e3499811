"""Words asked for and named: hand-made faces whose grey level is their expression, so that every figure is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffsfsr import emotions, tables
from diffsfsr.errors import NotReady
from diffsfsr.evaluation import families
from diffsfsr.evaluation.items import Faces
from diffsfsr.evaluation.report import families as report
from diffsfsr.portrait.words import Vocabulary

LABELS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
SIDE, PEOPLE = 16, 12
MARKS = np.random.default_rng(0).uniform(4, 12, (68, 2)).astype(np.float32)


def grey(label: str) -> np.ndarray:
    """A face that shows a label."""
    return np.full((SIDE, SIDE, 3), 30 * LABELS.index(label) + 20, np.uint8)


class Reader:
    """A classifier that reads the grey level. Each batch is of whatever size."""

    labels = LABELS

    def __call__(self, images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        shown = (((images.mean((1, 2, 3)) + 1) * 127.5 - 20) / 30).round().long()
        return torch.nn.functional.one_hot(shown, len(LABELS)).float() * 0.9 + 0.1 / len(LABELS)


class Painter:
    """A model that shows whatever embedding it gets (one-hot in the first seven of 16), and always a sad face for surprise."""

    name, version = "ours", "1"

    def __init__(self, faces: Faces) -> None:
        self.faces, self.made = faces, 0
        preset = SimpleNamespace(sampling=SimpleNamespace(negative=True))
        self.studio = SimpleNamespace(device=torch.device("cpu"), preset=preset)

    def painted(self, items: Any, expressions: torch.Tensor, seeds: Any, negative: torch.Tensor | None = None) -> list[Any]:
        self.made += len(items)
        shown = [LABELS[int(k)] for k in expressions.argmax(1)]
        away = {"disgust": "happiness"}.get(shown[0])  # it shows little, and joy is its contrary
        assert (negative is None) == (away is None)
        if negative is not None:
            assert away and [LABELS[int(k)] for k in negative.argmax(1)] == [away] * len(items)
        return [
            None if seed % 5 == 0 else grey("sadness" if label == "surprise" else label) for label, seed in zip(shown, seeds, strict=True)
        ]


@pytest.fixture
def faces() -> Faces:
    """Two photographs a person: one neutral, one happy; of the last two people the happy one looks angry."""
    crops = [grey("neutral" if k == 0 else "anger" if i >= PEOPLE - 2 else "happiness") for i in range(PEOPLE) for k in (0, 1)]
    labels = [{"emotion": ("neutral", "happy")[k]} for _ in range(PEOPLE) for k in (0, 1)]
    people = [f"p{i}" for i in range(PEOPLE) for _ in (0, 1)]
    return Faces([f"set/{i:02d}/0" for i in range(2 * PEOPLE)], people, crops, np.repeat(MARKS[None], 2 * PEOPLE, 0), labels)


def vocabulary() -> Vocabulary:
    """Nine examples a label; those of happiness are faces of the set, those of disgust are nearly neutral."""
    known = {"happy": "happiness", "neutral": "neutral", "surprise": "surprise", "disgust": "disgust"}

    def faces_of(label: str) -> tuple[list[str], np.ndarray]:
        ids = [f"set/{2 * i + 1:02d}/0" if label == "happy" else f"else/{label}{i}/0" for i in range(9)]
        vector = np.eye(16, dtype=np.float32)[LABELS.index(known[label])]
        if label == "disgust":
            vector[[LABELS.index(name) for name in ("disgust", "neutral", "happiness")]] = 0.7, 0.6, -0.387
        return ids, np.repeat(vector[None], 9, 0)

    return Vocabulary(dict.fromkeys(known, 9), faces_of)


def find(picture: Any, side: int) -> list[Any]:
    return [SimpleNamespace(landmarks=MARKS)]


def test_every_word_resolves_as_a_request_would_and_tells_how() -> None:
    labels = {"happiness": 7, "neutral": 5, "surprise": 2, "anger": 3, "disgust": 0}
    found = {row["word"]: row for row in families.resolutions(labels)}
    assert len(found) == 136 and set(found) == {*emotions.WORDS, "neutral"}
    for word, row in found.items():
        if row["how"]:
            assert emotions.resolve(word, labels) == (word, tuple(row["labels"]), row["how"])
    assert (found["glee"]["how"], found["glee"]["labels"], found["glee"]["faces"]) == ("cluster", ["happiness"], 7)
    assert (found["disgust"]["how"], found["disgust"]["labels"]) == ("family", ["anger"]) and found["anger"]["how"] == "exact"
    assert found["gloom"]["how"] == found["panic"]["how"] == "" and found["love"]["how"] == "family"


@pytest.mark.parametrize(
    ("label", "family"), [("happy", "Joy"), ("disgust", "Anger"), ("neutral", "neutral"), ("Sad", "Sadness"), ("chewing", ""), ("", "")]
)
def test_a_label_belongs_to_a_family(label: str, family: str) -> None:
    assert families.family(label) == family


def test_an_item_shows_three_people_the_same_for_every_word_and_each_seed_its_reference(faces: Faces) -> None:
    asked = families.ask(Painter(faces), vocabulary(), 30, 0, None)  # type: ignore[arg-type]
    assert [each.word for each in asked] == ["joy", "surprise", "anger", "neutral"]  # no face is sad
    assert [each.chosen[0]["labels"] for each in asked] == [["happy"], ["surprise"], ["disgust"], ["neutral"]]
    place = {face: i for i, face in enumerate(faces.ids)}
    for each in asked:
        assert each.outputs.pairs == asked[0].outputs.pairs
        for item, facts in zip(each.outputs.pairs.items, each.chosen, strict=True):
            people = [faces.person(item.scene), faces.person(item.identity)]
            people += [faces.person(place[facts["reference"]])] if facts["reference"] in place else []
            assert len(set(people)) == len(people)
    assert len({facts["reference"] for facts in asked[0].chosen}) == 8  # the eight nearest to the mean
    assert len({faces.person(item.identity) for item in asked[0].outputs.pairs.items}) == PEOPLE
    again = families.ask(Painter(faces), vocabulary(), 30, 1, None)  # type: ignore[arg-type]
    assert again[0].outputs.pairs.fingerprint != asked[0].outputs.pairs.fingerprint
    with pytest.raises(NotReady, match="no face that this model knows"):
        families.ask(Painter(faces), Vocabulary({}, vocabulary().faces_of), 3, 0, None)  # type: ignore[arg-type]


def measured(faces: Faces, folder: Path | None, n: int = 40) -> tuple[list[dict[str, Any]], Any, Painter]:
    painter, classifier = Painter(faces), families.Classifier(Reader(), find)
    asked = families.ask(painter, vocabulary(), n, 0, folder)  # type: ignore[arg-type]
    rows = []
    at_hand = {face: (crop, MARKS) for face, crop in zip(faces.ids, faces.crops, strict=True)}
    for each in asked:
        rows += classifier.outputs(each, 7)
        rows += [*classifier.photographs(each, faces, 7), *classifier.references(each, at_hand.get)]
    return rows, asked, painter


def test_shares_and_ratios_are_what_the_pictures_show(faces: Faces, tmp_path: Path) -> None:
    rows, asked, painter = measured(faces, tmp_path)
    seeds = asked[0].outputs.pairs.seeds
    lost = sum(seed % 5 == 0 for seed in seeds)
    assert lost > 0 and painter.made == 4 * 40
    got = report.figures(rows)
    made = 100 * (40 - lost) / 40  # every one that is there shows what was asked for
    assert got["joy"]["output"]["mean"] == pytest.approx(made) and got["joy"]["output"]["count"] == 40
    assert got["joy"]["photograph"]["mean"] == pytest.approx(100 * 10 / 12)
    assert got["joy"]["ratio"]["mean"] == pytest.approx(made / (100 * 10 / 12))
    shown = {facts["reference"] for facts in asked[0].chosen}
    assert got["joy"]["reference"] == {"mean": 100.0, "low": 100.0, "high": 100.0, "count": len(shown)}
    assert got["surprise"]["output"]["mean"] == 0 and got["surprise"]["photograph"]["mean"] is None  # nobody is labelled so
    assert got["surprise"]["ratio"] == {"mean": None, "low": None, "high": None, "count": 0}
    assert got["anger"]["output"]["mean"] == pytest.approx(made)  # disgust is of its family
    assert got["neutral"]["ratio"]["mean"] == pytest.approx(made / 100)
    low, high = (got["joy"]["output"][side] for side in ("low", "high"))
    spread = 100 * np.sqrt(made / 100 * (1 - made / 100) / 40)
    assert low == pytest.approx(made - 1.96 * spread, abs=4) and high == pytest.approx(made + 1.96 * spread, abs=4)
    assert got["together"]["output"]["mean"] == pytest.approx(0.75 * made) and got["together"]["photograph"]["mean"] is None
    gone = [row for row in rows if row["kind"] == "output" and not row["found"]]
    assert len(gone) == 4 * lost and not any(row["hit"] or row["named"] for row in gone)
    joyful = next(row for row in rows if row["kind"] == "output" and row["hit"] and row["word"] == "joy")
    assert joyful["probability"] == pytest.approx(0.9 + 0.1 / 7)


def test_what_was_made_is_not_made_again(faces: Faces, tmp_path: Path) -> None:
    first, _, _ = measured(faces, tmp_path, 9)
    again, _, painter = measured(faces, tmp_path, 9)
    assert painter.made == 0 and again == first
    _, _, painter = measured(faces, tmp_path, 12)
    assert painter.made == 4 * 3  # more of them begin with the same


def test_the_report_can_be_read_and_quoted(faces: Faces, tmp_path: Path) -> None:
    from assets.evaluation import flat

    rows, asked, _ = measured(faces, tmp_path / "outputs", 8)
    told = report.write_report(tmp_path / "report", rows, asked, families.resolutions(vocabulary().labels), "Words", {"data set": "set"})
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored == told and len(stored["resolution"]) == 136
    assert flat(stored)["words_joy_ratio"] == report.figures(rows)["joy"]["ratio"]["mean"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| glee | Cheerfulness | cluster | happy | 9 |" in text and "| panic | Horror | refused |  | 0 |" in text
    assert "Of 136 words" in text and "| neutral (output) |" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") == 6 * 2 + sum(row["found"] for row in rows if row["kind"] == "output" and row["item"] < 6)
    kept = tables.read(tmp_path / "report" / "items.parquet").to_pylist()
    assert len(kept) == len(rows) and {row["kind"] for row in kept} == set(families.KINDS)
