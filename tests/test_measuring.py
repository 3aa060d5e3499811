"""What evaluations draw on, and what is measured once: pair lists, outputs and rows are found again, by whoever comes next."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import synthetic
import torch

from assets import heldout, measuring
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import config, tables
from diffsfsr.errors import NotReady
from diffsfsr.evaluation.judges import Judges
from diffsfsr.evaluation.protocols import References
from diffsfsr.face.images import encode_png
from diffsfsr.face.parsing import parser
from diffsfsr.face.pose import pose_estimator

ROOT = Path(__file__).parents[1]
PRESET = synthetic.small({"evaluation.items": 5})


class Pixels:
    """The picture itself, shrunk, as whatever judge is asked for."""

    name, independent, centred = "pixels", True, False

    def __init__(self, version: str = "0") -> None:
        self.version = version

    def __call__(self, images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) + 2


class Judged(measuring.Bench):
    @cached_property
    def references(self) -> References:
        return References(self.faces, Judges(Pixels(), Pixels(), pose_estimator("pnp"), parser("hull")))


class Shifted:
    """Another method: the scene, darker."""

    def __init__(self, faces: Any, version: str = "1", name: str = "shifted") -> None:
        self.faces, self.version, self.name, self.made = faces, version, name, 0

    def __call__(self, items: Any, seeds: Any) -> list[Any]:
        self.made += len(items)
        return [np.maximum(self.faces.crops[item.scene], 9) - np.uint8(9) for item in items]


@pytest.fixture
def workspace(tmp_path: Path, six_people: Path) -> Workspace:
    """Two shards of three faces each: four people held out, one of them without a name and one twice, and one to train on."""
    here, found = Workspace(tmp_path / "home"), synthetic.faces(six_people, PRESET.crop)
    people = ["ann", "bob", "bob", "", "eve", "joe"]
    tables.write_json(here.dataset("set") / "folder.json", {"folder": str(tmp_path)})
    for number in (0, 1):
        shard = Shard("set", number)
        rows = [
            {"face_id": f"set/{i}/0", "path": f"{i}.png", "person": people[i], "emotion": "joy" if i == 2 else "", "face": ""}
            | {"split": "train" if i == 5 else "test", "sha256": str(i)}
            | {"landmarks": found[i].crop_landmarks.reshape(-1), "crop": encode_png(found[i].crop)}
            for i in range(3 * number, 3 * number + 3)
        ]
        tables.write(here.file(aligned(PRESET), shard), tables.from_rows(rows, tables.FACES), f"mark {number}")
        sources = [{"path": row["path"], "sha256": row["sha256"], "person": row["person"], "face": ""} for row in rows]
        tables.write(here.file("sources", shard), tables.from_rows(sources, tables.SOURCES), f"mark {number}")
    return here


def judged(workspace: Workspace, preset: config.Preset = PRESET) -> Judged:
    return Judged(workspace, preset, heldout.held_out(workspace, "set", preset), Path("dln"))


# --- photographs and pairs ----------------------------------------------------------------------------------------------


def test_the_faces_are_those_of_people_held_out(workspace: Workspace, six_people: Path) -> None:
    held = heldout.held_out(workspace, "set", PRESET)
    assert list(held.faces.ids) == [f"set/{i}/0" for i in range(5)] and not held.everybody
    assert held.faces.label(2, "emotion") == "joy" and held.faces.person(3) == "unnamed set/3/0"
    found = synthetic.faces(six_people, PRESET.crop)
    for i, crop in enumerate(held.faces.crops):  # out of the file, one at a time
        assert (crop == found[i].crop).all()
    assert len(held.faces.crops) == 5 and len(held.faces.crops[1:3]) == 2
    assert not list((workspace.home / "reports").glob("*"))  # no copy of a photograph has a name


def _write_over(workspace: Workspace, shard: Shard, **same: str) -> None:
    """The shard's faces, all with those values."""
    file = workspace.file(aligned(PRESET), shard)
    tables.write(file, tables.from_rows([row | same for row in tables.read(file).to_pylist()], tables.FACES), "another mark")


def test_labelled_faces_are_of_training_people_too_and_few_of_a_label(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_over(workspace, Shard("set", 1), emotion="anger")
    found = heldout.labelled(workspace, "set", PRESET)
    assert (
        list(found.ids) == [f"set/{i}/0" for i in (2, 3, 4, 5)] and [found.label(i, "emotion") for i in range(4)] == ["joy"] + ["anger"] * 3
    )
    assert len(found.crops) == len(found.landmarks) == 4 and found.person(3) == "joe"
    monkeypatch.setattr(heldout, "MOST", 2)
    assert list(heldout.labelled(workspace, "set", PRESET).ids) == [f"set/{i}/0" for i in (2, 3, 5)]


def test_with_few_held_out_all_are_drawn_on_and_that_is_told(workspace: Workspace) -> None:
    _write_over(workspace, Shard("set", 0), split="train")
    held = heldout.held_out(workspace, "set", PRESET)
    assert held.everybody and len(held.faces.ids) == 6 and "ALL, training people too" in held.told
    with pytest.raises(NotReady, match="no aligned faces of 128 pixels"):
        heldout.held_out(workspace, "set", config.override(PRESET, {"crop": 128}))


def catalogued(workspace: Workspace, like: dict[int, int], people: dict[int, str] | None = None) -> None:
    """The faces in the catalogue with an embedding each; some are those of others, who were trained on in another data set."""
    rng, names = np.random.default_rng(0), ["ann", "bob", "bob", "", "eve", "joe"]
    strangers = rng.normal(size=(60, 128)).astype(np.float32)
    vectors = rng.normal(size=(6, 128)).astype(np.float32)
    for face, other in like.items():
        vectors[face] = strangers[other] + 0.01
    named = [(people or {}).get(i, name) for i, name in enumerate(names)] + [f"q{i}" for i in range(60)]
    rows = {"face_id": [f"set/{i}/0" for i in range(6)] + [f"other/{i}/0" for i in range(60)], "person": named}
    rows |= {"split": ["test"] * 5 + ["train"] * 61, "size": [PRESET.crop] * 66, "id_dlib_version": ["v"] * 66}
    both = np.concatenate([vectors, strangers])
    Catalogue(workspace.home / "catalogue").upsert_faces(pa.table(rows | {"id_dlib": pa.array(both.tolist(), pa.list_(pa.float32(), 128))}))
    tables.write(workspace.file(f"catalogued-{PRESET.crop}", Shard("set", 0)), pa.table({"face_id": ["x"]}), f"{like} {people}")


def test_faces_that_training_may_have_seen_are_left_out_and_that_is_told(workspace: Workspace) -> None:
    before, state = heldout.held_out(workspace, "set", PRESET), heldout.state(workspace, "set", PRESET)
    assert "0 of 5 faces left out: none could be compared" in before.told
    catalogued(workspace, {0: 7})
    after = heldout.held_out(workspace, "set", PRESET)
    assert list(after.faces.ids) == [f"set/{i}/0" for i in range(1, 5)] and not after.everybody
    assert "1 of 5 faces left out: dlib finds them" in after.told and len(after.faces.crops) == len(after.faces.landmarks) == 4
    assert heldout.state(workspace, "set", PRESET) != state
    drawn = [heldout.pair_list(workspace, held, "all", PRESET).fingerprint for held in (before, after)]
    assert drawn[0] != drawn[1]
    elsewhere = heldout.held_out(Workspace(workspace.home, str(workspace.home / "another")), "set", PRESET)
    assert len(elsewhere.faces.ids) == 5  # another catalogue


def test_a_name_that_is_trained_on_in_another_data_set_is_left_out_too(workspace: Workspace) -> None:
    catalogued(workspace, {}, {0: "q11"})
    assert list(heldout.held_out(workspace, "set", PRESET).faces.ids) == [f"set/{i}/0" for i in range(1, 5)]


def test_where_too_few_would_be_left_none_is_left_out(workspace: Workspace) -> None:
    catalogued(workspace, {0: 7, 1: 8, 3: 9})
    held = heldout.held_out(workspace, "set", PRESET)
    assert len(held.faces.ids) == 5 and not held.everybody and "fewer than 3 are left" in held.told


def test_a_pair_list_is_drawn_once_and_found_again(workspace: Workspace) -> None:
    held = heldout.held_out(workspace, "set", PRESET)
    pairs = heldout.pair_list(workspace, held, "all", PRESET)
    (file,) = (workspace.home / "reports" / "pairs").glob("*.parquet")
    written = file.stat().st_mtime_ns
    assert heldout.pair_list(workspace, held, "all", PRESET) == pairs and file.stat().st_mtime_ns == written
    assert tables.mark_of(file) == pairs.fingerprint and len(pairs) == 5
    whole = tables.read(file)
    for damage in (
        lambda: file.write_bytes(b"damaged"),
        lambda: tables.write(file, whole.drop(["seed"]), pairs.fingerprint),
        lambda: tables.write(file, whole.slice(0, 1), pairs.fingerprint),
        lambda: tables.write(file, whole.set_column(2, "seed", pa.nulls(len(whole), pa.int64())), pairs.fingerprint),
    ):
        damage()
        assert heldout.pair_list(workspace, held, "all", PRESET) == pairs  # the faces and the seed make the same again
        assert tables.read(file) == whole
    heldout.pair_list(workspace, held, "identity", PRESET)
    (swaps,) = (workspace.home / "reports" / "pairs").glob("*-identity-*.parquet")
    file.write_bytes(swaps.read_bytes())
    assert heldout.pair_list(workspace, held, "all", PRESET) == pairs
    other = heldout.pair_list(workspace, held, "all", config.override(PRESET, {"evaluation.seed": 1}))
    assert other.fingerprint != pairs.fingerprint


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_a_method_is_made_and_measured_once(workspace: Workspace) -> None:
    told: list[str] = []
    bench = judged(workspace)
    pairs, method = bench.pairs("all"), Shifted(bench.faces)
    first = bench.measure(method, pairs, told.append)
    assert method.made == 5 and told == ["shifted, task all: 5 of 5 items"]
    assert first.column("background").tolist() == [9.0] * 5
    again = bench.measure(method, pairs, told.append)
    assert again.rows == first.rows and method.made == 5 and len(told) == 1
    assert again.outputs is not None and (again.outputs.picture(2) == first.outputs.picture(2)).all()  # type: ignore[union-attr]
    newer = Shifted(bench.faces, "2")
    bench.measure(newer, pairs)
    assert newer.made == 5
    head = json.loads((workspace.home / "reports/methods" / pairs.fingerprint / "shifted/method.json").read_text())
    assert head["version"] == "2" and head["method"] == "shifted" and head["gallery"] == first.gallery


def test_methods_of_like_names_have_rows_of_their_own(workspace: Workspace) -> None:
    bench = judged(workspace)
    pairs = bench.pairs("all")
    for name in ("sim swap", "sim_swap"):
        bench.measure(Shifted(bench.faces, name=name), pairs)
    assert {"sim swap", "sim_swap"} <= {result.method for result in bench.stored(pairs)}


def test_rows_that_were_damaged_are_measured_again(workspace: Workspace) -> None:
    bench = judged(workspace)
    pairs, method = bench.pairs("all"), Shifted(bench.faces)
    first = bench.measure(method, pairs)
    items = workspace.home / "reports/methods" / pairs.fingerprint / "shifted/items.parquet"
    whole = tables.read(items)
    for damage in (lambda: items.write_bytes(b"PAR1"), items.unlink, lambda: tables.write(items, whole.slice(0, 2), "fewer")):
        damage()
        assert bench.measure(method, pairs).rows == first.rows and method.made == 5
        assert tables.read(items) == whole


def test_other_judges_measure_again_and_make_nothing_again(workspace: Workspace) -> None:
    bench = judged(workspace)
    pairs, method = bench.pairs("all"), Shifted(bench.faces)
    bench.measure(method, pairs)
    later = judged(workspace)
    references = References(later.faces, Judges(Pixels("1"), Pixels(), pose_estimator("pnp"), parser("hull")))
    later.__dict__["references"] = references
    told: list[str] = []
    (found,) = later.stored(pairs, told.append)  # of which only name, version and outputs are known
    assert found.judges == references.judges.describe() and len(told) == 1 and method.made == 5
    (workspace.outputs("set") / next(iter(found.outputs.keys))[:2]).rename(workspace.home / "gone")  # type: ignore[union-attr]
    assert list(judged(workspace).stored(pairs, told.append)) == [] and "no longer kept" in told[-1]


def test_every_other_method_of_a_list_is_found_and_ours_and_the_bounds_are_not(workspace: Workspace) -> None:
    bench = judged(workspace)
    pairs = bench.pairs("identity")
    assert bench.others([pairs]) == []
    floor, ceiling = bench.bounds(pairs)
    bench.measure(Shifted(bench.faces, name="ours"), pairs, ours=True)
    assert bench.others([pairs]) == []
    bench.measure(Shifted(bench.faces, name="E4S"), pairs)
    bench.measure(Shifted(bench.faces, name="a/b: c"), pairs)  # a name that is no folder's
    assert sorted(result.method for result in bench.stored(pairs)) == ["E4S", "a/b: c"]
    assert len(bench.others([pairs, bench.pairs("all")])) == 2 == len(set(bench.others([pairs])))
    assert floor.method == "untouched" and (floor.column("background") == 0).all() and floor.column("id_scene_cosine").min() > 0.999
    assert ceiling.method == "real-photo"
    assert [row["found"] for row in ceiling.rows].count(False) > 0  # whoever has one photograph only has no ceiling
    assert not any(floor.outputs.keys[0] in str(p) for p in workspace.outputs("set").rglob("*"))  # type: ignore[union-attr]


def test_what_was_made_of_a_person_goes_when_the_person_is_forgotten(workspace: Workspace) -> None:
    bench = judged(workspace)
    bench.measure(Shifted(bench.faces), bench.pairs("all"))
    assert workspace.outputs("set").is_dir()
    assert workspace.forget(person="nobody") == 0 and workspace.outputs("set").is_dir()
    assert workspace.forget(person="bob") == 2 and not workspace.outputs("set").exists()


# --- size ---------------------------------------------------------------------------------------------------------------

_MEASURE = """
import resource, sys; sys.path.insert(0, "tests")
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from test_measuring import *
from diffsfsr.evaluation.items import make_pairs, Faces
from diffsfsr.evaluation.outputs import Outputs
from diffsfsr.evaluation.protocols import evaluate
import pyarrow as pa
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n, side = int(sys.argv[2]), 512
points = np.random.default_rng(0).uniform(150, 350, (68, 2)).astype(np.float32)
def pngs():
    for i in range(0, n, 10):
        yield pa.table({"crop": [encode_png(np.full((side, side, 3), k % 256, np.uint8)) for k in range(i, i + 10)]})
crops = heldout.Crops(pngs(), Path(sys.argv[1]))
faces = Faces([f"{i}" for i in range(n)], [f"p{i}" for i in range(n)], crops, np.repeat(points[None], n, 0))
bench = References(faces, Judges(Pixels(), Pixels(), pose_estimator("pnp"), parser("hull")))
def measured(count):
    pairs = make_pairs(faces, ["test"] * n, "all", count, 0)
    outputs = Outputs(Path(sys.argv[1]) / "outputs", Shifted(faces), pairs, faces)
    return evaluate(outputs, bench, find_faces=lambda p, s: [SimpleNamespace(landmarks=points)])
measured(32); before = peak()
assert len(measured(n).rows) == n
print((peak() - before) // 1024)
"""


@pytest.mark.slow
def test_an_evaluation_of_a_thousand_items_of_512_takes_the_memory_of_a_batch(tmp_path: Path) -> None:
    """Photographs and outputs are 786 MB each; the peak may rise by less than a tenth of one of them after the first two batches."""
    run = [sys.executable, "-c", _MEASURE, str(tmp_path), "1000"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 80
