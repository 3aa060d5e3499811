"""A registered version through MLflow's own client: nothing of ours is called but what the MLmodel file names."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_portraits import TINY, label, model, order, studio  # noqa: F401

from assets import version
from assets.portraits import Serving, fulfil
from assets.stores.catalogue import Catalogue
from assets.stores.registry import Registry, content_hash
from diffsfsr.errors import InputError
from diffsfsr.face.images import read
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.pyfunc import _order
from diffsfsr.portrait.words import WordTable

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model: Path, studio: Studio) -> Path:  # noqa: F811
    """A state folder whose registry has the untrained model as champion, with the words of a catalogue."""
    home = tmp_path_factory.mktemp("home")
    catalogue = Catalogue(home / "catalogue")
    label(catalogue, studio.dln.version, ["happiness", "happiness", "neutral", ""])
    registry = Registry(f"sqlite:///{home}/mlflow.db", home / "mlartifacts", cache=home / "models")
    told = version.record(model, {})
    with version.beside(told, catalogue, model) as files:
        registry.register(model, registry.open_run("train", "diffusion"), version.tags(told), files)
    registry.promote(1, "ann", "the first")
    return home


@pytest.fixture(scope="module")
def champion(home: Path) -> Any:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    yield mlflow.pyfunc.load_model("models:/diffsfsr@champion")
    mlflow.set_tracking_uri(before)


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def wish(order: Order, **more: Any) -> dict[str, Any]:  # noqa: F811
    return {"selfie": order.selfies[0], "scene": order.scene, "emotion": order.emotion, **more}


def test_the_champion_makes_the_very_portrait_that_the_command_makes(home: Path, champion: Any, order: Order, studio: Studio) -> None:  # noqa: F811
    serving = Serving(studio, "1", Catalogue(home / "catalogue"), home / "portraits")
    sidecar, _ = fulfil(order, serving)
    made = champion.predict(wish(order, seed=order.seed))
    assert list(made) == ["portrait", "expression"] and len(made) == 1
    np.testing.assert_array_equal(picture(made["portrait"][0]), read(Path(sidecar["portrait"])))
    assert json.loads(made["expression"][0]) == sidecar["expression"]


def test_a_table_of_rows_gives_a_row_each_and_what_lacks_is_the_orders_default(champion: Any, order: Order) -> None:  # noqa: F811
    rows = pd.DataFrame([wish(order, seed=1), wish(order, seed=2, task="identity")])
    assert rows["task"].isna().tolist() == [True, False]
    made = champion.predict(rows)
    first, second = (picture(png) for png in made["portrait"])
    assert first.shape == second.shape == read(Path(order.scene)).shape and (first != second).any()
    assert json.loads(made["expression"][0])["labels"] == ["happiness"] and json.loads(made["expression"][1]) is None
    np.testing.assert_array_equal(first, picture(champion.predict(rows.iloc[:1])["portrait"][0]))


def test_columns_of_nothing_but_text_are_rows_too(champion: Any, order: Order) -> None:  # noqa: F811
    """MLflow takes a dictionary of lists of text for one row of lists."""
    row = {name: value for name, value in wish(order).items() if isinstance(value, str)}
    made = champion.predict({name: [value] for name, value in row.items()})
    np.testing.assert_array_equal(picture(made["portrait"][0]), picture(champion.predict(row)["portrait"][0]))


def test_numbers_are_whole_though_a_table_with_gaps_makes_them_floats() -> None:
    table = pd.DataFrame([{"emotion": "joy", "seed": 3, "steps": 2}, {"emotion": "joy", "selfie": "me.jpg"}])
    assert table["seed"].dtype == float
    assert [_order(row) for row in table.to_dict("records")] == [Order("joy", seed=3, steps=2), Order("joy", ("me.jpg",))]
    with pytest.raises(InputError, match="did you mean scene"):
        _order({"emotion": "joy", "scen": "x.jpg"})


def test_the_seed_chooses_among_the_faces_of_a_word_as_the_catalogue_would(home: Path, studio: Studio) -> None:  # noqa: F811
    serving = Serving(studio, "1", Catalogue(home / "catalogue"), home / "portraits")
    (words,) = (home / "mlartifacts").rglob("words.parquet")
    found = [(WordTable(words).reference("delight", seed), serving.expression("delight", seed)) for seed in range(6)]
    assert all(facts == theirs and (vector == their).all() for (vector, facts, _), (their, theirs, _) in found)
    assert {facts["reference"] for (_, facts, _), _ in found} == {"d/0000/0", "d/0001/0"}


def test_a_wrong_row_is_refused(champion: Any, order: Order, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(Exception, match="emotion"):  # the signature's own refusal
        champion.predict({"selfie": order.selfies[0], "scene": order.scene})
    with pytest.raises(InputError, match="nowhere.jpg is not a file"):
        champion.predict(wish(order) | {"scene": "nowhere.jpg"})


def test_the_folder_says_what_it_is_and_has_the_weights_once(home: Path, champion: Any, model: Path) -> None:  # noqa: F811
    found = Registry(f"sqlite:///{home}/mlflow.db", cache=home / "models").resolve("champion")
    assert content_hash(found.folder) == content_hash(model)
    largest = max((path.stat().st_size, path.name) for path in model.rglob("*") if path.is_file())
    assert [p.stat().st_size for p in (home / "mlartifacts").rglob("*") if p.is_file()].count(largest[0]) == 1
    assert not [p for p in (home / "mlartifacts").rglob("*") if p.suffix in (".pkl", ".pickle")]  # nothing that runs when it is read
    record = json.loads((found.folder.parent / "version.json").read_text())
    assert record["model"] == content_hash(model) and record["preset"]["name"] == TINY.name
    assert record["files"]["dlib-face"] == version.weights.ZOO["dlib-face"].sha256
    assert found.tags["preset"] == TINY.name and found.tags["dln"] == record["dln"]
    assert champion.input_example["emotion"] and champion.metadata.signature.inputs.input_names()[0] == "selfie"


@pytest.mark.slow
def test_a_program_that_knows_mlflow_alone(home: Path, order: Order, tmp_path: Path) -> None:  # noqa: F811
    """Another process, in another folder, with nothing but the package installed and the address of the store."""
    row = wish(order, seed=1)
    code = (
        "import mlflow.pyfunc, pathlib;"
        f"made = mlflow.pyfunc.load_model('models:/diffsfsr@champion').predict({row!r});"
        "pathlib.Path('made.png').write_bytes(made['portrait'][0])"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert read(tmp_path / "made.png").shape == read(Path(order.scene)).shape
