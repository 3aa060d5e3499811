"""Portraits from orders, with a small untrained model: what must hold whatever the model paints."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch

from assets import portraits as room
from assets.portraits import Serving, fulfil
from assets.resources import CatalogueResource, QueueResource, RegistryResource, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.queue import Queue
from diffsfsr import config, presets, tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.alignment import align
from diffsfsr.face.images import read, write_image
from diffsfsr.face.masks import hull_mask
from diffsfsr.portrait import provenance
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.order import Order

TINY = config.override(presets.preset("tiny"), {"sampling.steps": 2})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model's folder, as a training run leaves it."""
    from diffsfsr import weights
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.pipeline import DiffSFSRPipeline
    from diffsfsr.model.unet import DiffSFSR

    folder = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    network = DiffSFSR.from_preset(TINY, {"dlib": 128}).eval()
    torch.nn.init.normal_(network.unet.conv_in.weight, std=0.1)
    network.tokens.set_means({"dlib": torch.full((128,), 0.01)})
    DiffSFSRPipeline.from_model(network, LatentAutoencoder.from_config_row(TINY.autoencoder).eval(), TINY).save_pretrained(folder)
    Dln.from_identity(weights.resolve("dlib-face"), TINY.dln.dim).save(folder / "dln")
    tables.write_json(folder / "preset.json", config.to_dict(TINY))
    return folder


@pytest.fixture(scope="module")
def studio(model: Path) -> Studio:
    return Studio(model)


def label(catalogue: Catalogue, version: str, labels: list[str]) -> None:
    """Faces with those labels and random expressions."""
    vectors = np.random.default_rng(0).normal(size=(len(labels), 16)).astype(np.float32)
    rows = {"face_id": [f"d/{i:04d}/0" for i in range(len(labels))], "emotion": labels, "expression_version": [version] * len(labels)}
    import pyarrow as pa

    catalogue.upsert_faces(pa.table(rows | {"expression": list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))}))


@pytest.fixture
def serving(studio: Studio, tmp_path: Path) -> Serving:
    catalogue = Catalogue(tmp_path / "catalogue")
    label(catalogue, studio.dln.version, ["happiness", "happiness", "neutral"])
    return Serving(studio, "1", catalogue, tmp_path / "portraits")


@pytest.fixture
def order(tom_hanks: Path, astronaut: Path) -> Order:
    return Order("delight", (str(tom_hanks),), str(astronaut))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# --- the picture ------------------------------------------------------------------------------------------------------


def reach(scene: np.ndarray, choice: str) -> np.ndarray:
    """(H, W) bool: scene pixels whose place in the crop has a masked pixel within one pixel of it. By brute force."""
    face = align(scene, TINY.crop, dataclasses.replace(TINY.data, face=choice, max_outside=1.0))
    mask = np.pad(hull_mask(face.crop_landmarks, TINY.crop), 2)
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    u, v = (face.matrix[i, 0] * x + face.matrix[i, 1] * y + face.matrix[i, 2] for i in (0, 1))
    near = np.zeros(scene.shape[:2], bool)
    for du in (0, 1):
        for dv in (0, 1):
            column, row = (np.clip(np.floor(w) + d + 2, 0, TINY.crop + 3).astype(int) for w, d in ((u, du), (v, dv)))
            near |= mask[row, column] == 1
    return near


@pytest.mark.parametrize("choice", ["only", "3"])
def test_outside_the_mask_every_byte_is_the_scenes(serving: Serving, order: Order, astronaut: Path, six_people: Path, choice: str) -> None:
    path = astronaut if choice == "only" else six_people
    sidecar, _ = fulfil(dataclasses.replace(order, scene=str(path), face=choice), serving)
    scene, made = read(path), read(Path(sidecar["portrait"]))
    changed, near = (made != scene).any(2), reach(scene, choice)
    assert made.shape == scene.shape and not (changed & ~near).any()
    assert changed.sum() > 0.5 * near.sum()  # and inside, a face was painted


def test_the_same_order_is_the_same_file(serving: Serving, order: Order, tmp_path: Path) -> None:
    first, _ = fulfil(order, serving)
    content = Path(first["portrait"]).read_bytes()
    again, _ = fulfil(order, dataclasses.replace(serving, folder=tmp_path / "elsewhere"))
    assert Path(again["portrait"]).name == Path(first["portrait"]).name
    assert Path(again["portrait"]).read_bytes() == content
    fulfil(order, serving)
    assert len(files(tmp_path / "portraits")) == 2  # the picture and its sidecar


def test_whatever_it_is_made_from_changes_its_name(serving: Serving, order: Order, tmp_path: Path, astronaut: Path) -> None:
    copied, altered = tmp_path / "copy.png", read(Path(order.scene))
    altered[0, 0] ^= 1
    write_image(tmp_path / "altered.png", altered)
    shutil.copy(order.selfies[0], copied)
    label(serving.catalogue, serving.studio.dln.version, ["happiness"] * 9)  # the word's embedding may be another now
    orders = {
        "itself": (order, serving),
        "seed": (dataclasses.replace(order, seed=1), serving),
        "word": (dataclasses.replace(order, emotion="happiness"), serving),
        "task": (dataclasses.replace(order, task="expression"), serving),
        "strength": (dataclasses.replace(order, strength=0.5), serving),
        "steps": (dataclasses.replace(order, steps=3), serving),
        "selfie": (dataclasses.replace(order, selfies=(str(astronaut),)), serving),
        "scene": (dataclasses.replace(order, scene=str(tmp_path / "altered.png")), serving),
        "version": (order, dataclasses.replace(serving, version="2")),
    }
    names = {what: Path(fulfil(*pair)[0]["portrait"]).name for what, pair in orders.items()}
    assert len(set(names.values())) == len(names)
    same = fulfil(dataclasses.replace(order, selfies=(str(copied),)), serving)[0]
    assert Path(same["portrait"]).name == names["itself"]  # the bytes count, not where they lie


def test_a_catalogue_that_has_grown_gives_another_name_where_another_face_stands_for_the_word(
    serving: Serving, order: Order, tmp_path: Path
) -> None:
    before, _ = fulfil(order, serving)
    other = Catalogue(tmp_path / "other")
    label(other, serving.studio.dln.version, ["neutral", "neutral", "neutral", "happiness"])
    after, _ = fulfil(order, dataclasses.replace(serving, catalogue=other))
    assert after["portrait"] != before["portrait"] and len(files(tmp_path / "portraits")) == 4


def test_another_seed_paints_another_face(serving: Serving, order: Order) -> None:
    order = dataclasses.replace(order, task="identity")  # in the others the seed also chooses the face that stands for the word
    _, first = fulfil(order, serving)
    _, second = fulfil(dataclasses.replace(order, seed=1), serving)
    assert (first != second).any()


# --- the sidecar ------------------------------------------------------------------------------------------------------


def test_the_sidecar_says_what_and_how(serving: Serving, order: Order) -> None:
    import hashlib

    order = dataclasses.replace(order, seed=5, strength=0.5)
    returned, _ = fulfil(order, serving)
    path = Path(returned["portrait"])
    sidecar = json.loads(Path(f"{path}.json").read_text())
    assert sidecar == returned
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["order"] == order.payload()
    assert sidecar["inputs_sha256"] == {p: hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (*order.selfies, order.scene)}
    told = sidecar["expression"]
    assert (told["word"], told["labels"], told["how"], told["among"]) == ("delight", ["happiness"], "cluster", 2)
    assert told["reference"] in ("d/0000/0", "d/0001/0")
    assert (sidecar["model_version"], sidecar["preset"], sidecar["synthetic"]) == ("1", "tiny", True)
    assert sidecar["licences"] == {"dlib-landmarks-68": "CC0-1.0; 300-W terms", "dlib-face": "CC0-1.0"}
    assert sidecar["non_commercial"] == ["dlib-landmarks-68"] and sidecar["identity_absent"] == {}
    assert set(provenance.weights_of(serving.studio, dataclasses.replace(order, scene="", prompt="a castle"))) > {
        "sd-1.4-unet",
        "dlib-face",
    }
    timings = sidecar["timings_seconds"]
    assert set(timings) == {"align", "embed", "generate", "paste", "total"} and sum(timings.values()) <= 2.01 * timings["total"]
    left, top, right, bottom = (sidecar["scene_face"]["box"][side] for side in ("left", "top", "right", "bottom"))
    assert 160 < left < right < 290 and 60 < top < bottom < 190  # the astronaut's face


def test_verify_sees_one_changed_byte(serving: Serving, order: Order) -> None:
    path = Path(fulfil(order, serving)[0]["portrait"])
    assert provenance.verify(path)["model_version"] == "1"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="has been changed"):
        provenance.verify(path)
    Path(f"{path}.json").write_text("{}")
    with pytest.raises(InputError, match="no readable sidecar"):
        provenance.verify(path)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_task_expression_needs_no_selfie_and_keeps_the_scenes_person(serving: Serving, astronaut: Path, tom_hanks: Path) -> None:
    made, image = fulfil(Order("joy", scene=str(astronaut), task="expression"), serving)
    assert made["order"]["selfies"] == [] and image.shape == (512, 512, 3)
    with pytest.raises(InputError, match="--selfie"):
        Order("joy", scene=str(astronaut)).check()


def test_task_identity_keeps_the_scenes_expression(serving: Serving, order: Order) -> None:
    made, first = fulfil(dataclasses.replace(order, task="identity"), serving)
    _, second = fulfil(dataclasses.replace(order, task="identity", emotion=""), serving)  # it needs no word
    assert made["expression"] is None
    np.testing.assert_array_equal(first, second)
    with pytest.raises(InputError, match="task all needs an emotion word"):
        dataclasses.replace(order, emotion="").check()


def test_strength_0_is_the_scenes_own_expression(serving: Serving, order: Order) -> None:
    own = fulfil(dataclasses.replace(order, task="identity"), serving)[1]
    np.testing.assert_array_equal(fulfil(dataclasses.replace(order, strength=0.0), serving)[1], own)


def test_several_faces_in_the_scene_need_a_choice(serving: Serving, order: Order, six_people: Path) -> None:
    crowd = dataclasses.replace(order, scene=str(six_people))
    with pytest.raises(InputError, match="the scene: several faces"):
        fulfil(crowd, serving)
    with pytest.raises(InputError, match="no face 6"):
        fulfil(dataclasses.replace(crowd, face="6"), serving)
    boxes = [fulfil(dataclasses.replace(crowd, face=face), serving)[0]["scene_face"]["box"]["left"] for face in ("0", "5")]
    assert boxes[0] < boxes[1]


@pytest.mark.parametrize("which", ["selfies", "scene"])
def test_a_photograph_without_a_face_is_refused_by_name(serving: Serving, order: Order, tmp_path: Path, which: str) -> None:
    from PIL import Image

    path = tmp_path / "empty.png"
    Image.new("RGB", (200, 200), "white").save(path)
    with pytest.raises(InputError, match=f"{'selfie .*empty.png' if which == 'selfies' else 'the scene'}: no face"):
        fulfil(dataclasses.replace(order, **{which: (str(path),) if which == "selfies" else str(path)}), serving)  # type: ignore[arg-type]
    path.write_text("broken")
    with pytest.raises(InputError, match="cannot be used: unreadable"):
        fulfil(dataclasses.replace(order, **{which: (str(path),) if which == "selfies" else str(path)}), serving)  # type: ignore[arg-type]
    assert files(tmp_path / "portraits") == []


def test_a_word_that_nothing_present_serves_is_refused(serving: Serving, order: Order, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no face is labelled 'terror'"):
        fulfil(dataclasses.replace(order, emotion="terror"), serving)
    with pytest.raises(NotReady, match="labels"):
        fulfil(order, dataclasses.replace(serving, catalogue=Catalogue(tmp_path / "none")))


@pytest.mark.parametrize(
    ("payload", "told"),
    [({"emotion": "joy", "scenes": "x"}, "did you mean scene?"), ({}, "incomplete"), ({"emotion": "joy", "scene": "/gone.png"}, "selfie")],
)
def test_a_foreign_payload_is_refused(payload: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told.replace("?", r"\?")):
        Order.from_payload(payload).check()


def test_an_order_survives_the_queue(order: Order) -> None:
    assert Order.from_payload(json.loads(json.dumps(order.payload()))) == order


# --- in a batch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.db")


def generate(queue: Queue, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """One run of the asset, its champion given."""
    monkeypatch.setattr(Serving, "champion", classmethod(lambda cls, *args: serving))
    resources = {
        "workspace": WorkspaceResource(home=str(tmp_path)),
        "catalogue": CatalogueResource(uri=serving.catalogue.uri),
        "queue": QueueResource(url=f"sqlite:///{tmp_path / 'queue.db'}"),
        "registry": RegistryResource(tracking_uri="sqlite:////nowhere", artifact_root="/nowhere"),
    }
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([room.portraits], resources=resources, instance=instance, selection=[room.portraits])
    metadata = result.asset_materializations_for_node("portraits")[0].metadata
    return {key: int(str(metadata[key].value)) for key in ("done", "failed", "lost")}


def test_one_bad_request_fails_alone(queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (200, 200), "white").save(tmp_path / "empty.png")
    orders = [order, dataclasses.replace(order, selfies=(str(tmp_path / "empty.png"),)), dataclasses.replace(order, seed=3)]
    good, bad, other = queue.add_all(o.payload() for o in orders)
    broken, gone = queue.add_all([{"emotion": "joy", "nonsense": 1}, order.payload() | {"scene": str(tmp_path / "gone.png")}])
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 2, "failed": 3, "lost": 0}
    assert [queue.get(i).state for i in (good, bad, other, broken, gone)] == ["done", "failed", "done", "failed", "failed"]
    reasons = [queue.get(i).reason or "" for i in (bad, broken, gone)]
    assert "empty.png: no face" in reasons[0] and "nonsense" in reasons[1] and "gone.png" in reasons[2]
    result = queue.get(good).result or {}
    assert result["model_version"] == "1" and provenance.verify(Path(result["portrait"]))["sha256"]
    assert len(files(tmp_path / "portraits")) == 4
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 0, "failed": 0, "lost": 0}


def test_what_a_killed_holder_left_is_made_again_as_one_file(
    queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = queue.add(order.payload())
    taken = queue.lease(1, "killed", 0.01)[0]
    first, _ = fulfil(Order.from_payload(taken.payload), serving)  # it wrote the portrait, and died before it could say so
    Path(f"{first['portrait']}.json").unlink()  # or even before the sidecar
    content = Path(first["portrait"]).read_bytes()
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 1, "failed": 0, "lost": 0}
    ended = queue.get(request)
    assert (ended.state, ended.attempts, (ended.result or {})["portrait"]) == ("done", 2, first["portrait"])
    assert files(tmp_path / "portraits") == [Path(first["portrait"]).name, Path(first["portrait"]).name + ".json"]
    assert Path(first["portrait"]).read_bytes() == content
    assert not queue.complete(request, "killed", {})


def test_our_own_fault_is_tried_again_and_then_failed(
    queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = queue.add(order.payload())
    monkeypatch.setattr(room, "finish", lambda *_: 1 / 0)
    states = []
    for _ in range(queue.max_attempts):
        generate(queue, serving, tmp_path, monkeypatch)
        states.append(queue.get(request).state)
    assert states == ["queued", "queued", "failed"] and "ZeroDivisionError" in (queue.get(request).reason or "")


def test_a_slow_model_keeps_the_leases_of_its_whole_batch(
    queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    ids = queue.add_all([order.payload()] * 3)
    monkeypatch.setattr(room, "_LEASE_SECONDS", 0.4)
    found: list[int] = []
    real = serving.studio.paint

    def slow(sittings: list[Any]) -> Any:
        time.sleep(1.2)
        found.append(len(queue.waiting()))  # what another run would take
        return real(sittings)

    monkeypatch.setattr(serving.studio, "paint", slow)
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 3, "failed": 0, "lost": 0}
    assert found == [0] and [queue.get(i).attempts for i in ids] == [1, 1, 1]


def test_a_cancelled_request_is_lost_to_its_holder(
    queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = queue.add(order.payload())
    real = serving.studio.paint

    def cancelled_meanwhile(sittings: list[Any]) -> Any:
        queue.cancel(request)
        return real(sittings)

    monkeypatch.setattr(serving.studio, "paint", cancelled_meanwhile)
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 0, "failed": 0, "lost": 1}
    assert queue.get(request).state == "cancelled"


def test_a_mixed_batch_is_painted_together_as_each_is_alone(
    queue: Queue, serving: Serving, order: Order, six_people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the model per (steps, sampler). Alone and together agree to 1 of 255: float32 sums in another order."""
    change = dataclasses.replace
    orders = [
        order,
        change(order, seed=5, strength=0.5),
        change(order, steps=3),
        change(order, scene=str(six_people), face="2", seed=2, emotion="neutral"),
        Order("happiness", scene=order.scene, task="expression", sampler="unipc", steps=3),
        change(order, task="identity", steps=2, sampler="ddim"),
    ]
    ids = queue.add_all(o.payload() for o in orders)
    sizes, real = [], type(serving.studio.pipeline).__call__

    def counted(pipeline: Any, scene: torch.Tensor, *args: Any, **named: Any) -> Any:
        sizes.append(len(scene))
        return real(pipeline, scene, *args, **named)

    monkeypatch.setattr(type(serving.studio.pipeline), "__call__", counted)
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 6, "failed": 0, "lost": 0}
    assert sorted(sizes) == [1, 1, 4]
    for i, wanted in zip(ids, orders, strict=True):
        together = Path((queue.get(i).result or {})["portrait"])
        alone, image = fulfil(wanted, dataclasses.replace(serving, folder=tmp_path / "alone"))
        assert Path(alone["portrait"]).name == together.name
        told = json.loads(Path(f"{together}.json").read_text())
        assert told.keys() == alone.keys() and told["order"] == wanted.payload()
        assert set(told["timings_seconds"]) == {"align", "embed", "generate", "paste", "total"}
        difference = np.abs(read(together).astype(int) - image)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_what_breaks_the_painting_of_all_is_the_fault_of_one(
    queue: Queue, serving: Serving, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = queue.add_all(dataclasses.replace(order, seed=seed).payload() for seed in (1, 2, 3))
    real = serving.studio.generate

    def broken(scenes: Any, masks: Any, marks: Any, who: Any, how: Any, seeds: list[int], *more: Any) -> Any:
        if 2 in seeds:
            raise RuntimeError("out of memory")
        return real(scenes, masks, marks, who, how, seeds, *more)

    monkeypatch.setattr(serving.studio, "generate", broken)
    assert generate(queue, serving, tmp_path, monkeypatch) == {"done": 2, "failed": 0, "lost": 0}
    assert [queue.get(i).state for i in ids] == ["done", "queued", "done"]


def test_steps_that_a_sampler_cannot_take_fail_before_painting(serving: Serving, order: Order) -> None:
    with pytest.raises(InputError, match="steps=600"):
        room.begin(dataclasses.replace(order, steps=600), serving)


def test_a_portrait_without_an_encoder_has_another_name(serving: Serving, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Path(fulfil(order, serving)[0]["portrait"])
    monkeypatch.setattr(serving.studio.identity, "absent", {"facenet": "not here"})
    assert Path(fulfil(order, serving)[0]["portrait"]).name != first.name
