"""What the expression encoder learns from besides labels, through the graph: people's triplets, and a teacher's coefficients."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets.stores.workspace import Workspace
from assets.supervision import annotation_files, teacher_file
from diffsfsr import tables
from diffsfsr.encoders.dln import Dln
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.alignment import align_all
from diffsfsr.face.images import read
from pipelines.environments import Environment
from pipelines.operate import Operator

TRIPLETS = [("0.png", "1.png", "2.png", 3, "two_class", "ann"), ("2.png", "3.png", "4.png", 1, "one_class", "bob"),
            ("4.png", "0.png", "3.png", 2, "three_class", "ann"), ("0.png", "1.png", "gone.png", 1, "one_class", "bob")]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, six_people: Path) -> Path:
    """Six people, a photograph each, all for training, and who said what of three of them."""
    folder = tmp_path / "people"
    folder.mkdir()
    image = read(six_people)
    for i, face in enumerate(align_all(image, 64)):
        left, top, right, bottom = face.box
        margin = (right - left) // 2
        part = image[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
        Image.fromarray(part).resize((256, 256)).save(folder / f"{i}.png")
    with open(folder / "triplets.csv", "w", newline="") as f:
        csv.writer(f).writerows([("first", "second", "third", "odd", "kind", "annotator"), *TRIPLETS])
    (folder / "labels.csv").write_text("file,person,split\n" + "".join(f"{i}.png,person {i},train\n" for i in range(6)))
    return folder


@pytest.fixture
def _dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "diffsfsr-home" / "dagster"))
    yield


def operator(triplets: list[str]) -> Operator:
    changes = {"dln.triplets": json.dumps(triplets), "data.max_outside": "1.0", "training.steps": "2", "training.checkpoint_every": "1"}
    return Operator(Environment.current(), "dln-tiny", changes)


def face_ids(workspace: Workspace, preset: object) -> dict[str, str]:
    rows = workspace.table("aligned-64", workspace.shards(), ["path", "face_id"]).to_pylist()
    return {row["path"]: row["face_id"] for row in rows}


@pytest.mark.usefixtures("_dagster")
def test_peoples_triplets_reach_the_training(folder: Path) -> None:
    works = operator(["annotations"])
    works.prepare(folder)
    (file,) = annotation_files(works.workspace, works.preset)
    rows, ids = tables.read(file).to_pylist(), face_ids(works.workspace, works.preset)
    told = {(frozenset((row["anchor"], row["positive"])), row["negative"], row["one_class"], row["annotator"]) for row in rows}
    wanted = set()
    for *files, odd, kind, annotator in TRIPLETS[:3]:  # the last names a file that is not there
        faces = [ids[name] for name in files]
        negative = faces.pop(odd - 1)
        wanted.add((frozenset(faces), negative, kind == "one_class", annotator))
    assert told == wanted

    answer = works.train()
    assert answer["network"] == "dln"
    trained = Dln.load(Path(answer["folder"]))
    assert trained.version == answer["version"]
    before = sorted(works.workspace.runs.iterdir())
    assert works.train() == answer and sorted(works.workspace.runs.iterdir()) == before  # nothing to do

    (folder / "triplets.csv").write_text("first,second,third,odd,kind,annotator\n0.png,1.png,2.png,1,two_class,ann\n")
    works.train()
    assert len(sorted(works.workspace.runs.iterdir())) == len(before) + 1  # other answers, another training


@pytest.mark.usefixtures("_dagster")
def test_without_annotations_the_training_says_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "triplets.csv").unlink()
    works = operator(["annotations"])
    works.prepare(folder)
    with pytest.raises(NotReady, match="no prepared data set has annotated triplets: put a triplets.csv"):
        works.train()
    with pytest.raises(InputError, match="two emotion labels"):
        operator(["labels"]).train()
    assert "Traceback" not in capfd.readouterr().err  # the processes that train say it in a line


@pytest.mark.usefixtures("_dagster")
def test_the_teachers_coefficients_reach_the_training(folder: Path, weights_dir: Path) -> None:
    from diffsfsr.encoders import load_encoder
    from diffsfsr.encoders.blendshapes import NAMES

    works = operator(["blendshapes", "annotations"])
    works.prepare(folder)
    answer = works.train()
    assert answer["network"] == "dln"
    taught = tables.read(teacher_file(works.workspace, works.workspace.shards()[0], works.preset))
    assert set(taught["face_id"].to_pylist()) <= set(face_ids(works.workspace, works.preset).values())
    values = np.array(taught["blendshapes"].to_pylist())
    assert values.shape == (len(taught), len(NAMES)) and load_encoder("blendshapes").dim == len(NAMES)
    assert (values >= 0).all() and (values <= 1).all() and values.std(0).max() > 0.05
