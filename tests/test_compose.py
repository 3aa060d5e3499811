"""A studio with several identity encoders, some of which are not there; and selfies of two people in one order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsfsr import config, presets, tables
from diffsfsr.errors import NotReady
from diffsfsr.face import tone
from diffsfsr.face.images import read, to_tensor
from diffsfsr.face.masks import hull_mask
from diffsfsr.portrait.compose import Studio

NAMES = ("mobileface_v2", "dlib", "mobilefacenet_arcface")
PRESET = config.override(presets.preset("tiny"), {"sampling.steps": 2, "conditioning.identity": list(NAMES)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with three identity tokens, as a training run leaves it."""
    from diffsfsr import weights
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.pipeline import DiffSFSRPipeline
    from diffsfsr.model.unet import DiffSFSR

    folder = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    network = DiffSFSR.from_preset(PRESET, {"mobileface_v2": 256, "dlib": 128, "mobilefacenet_arcface": 128}).eval()
    torch.nn.init.normal_(network.unet.conv_in.weight, std=0.1)
    torch.nn.init.normal_(network.tokens.null)
    DiffSFSRPipeline.from_model(network, LatentAutoencoder.from_config_row(PRESET.autoencoder).eval(), PRESET).save_pretrained(folder)
    Dln.from_identity(weights.resolve("dlib-face"), PRESET.dln.dim).save(folder / "dln")
    tables.write_json(folder / "preset.json", config.to_dict(PRESET))
    return folder


@pytest.fixture(scope="module")
def studio(model: Path, weights_dir: Path) -> Studio:
    if any(not (weights_dir / f"{name}.onnx").is_file() for name in NAMES if name != "dlib"):
        pytest.skip("mobileface_v2.onnx and mobilefacenet_arcface.onnx are not among the weights")
    return Studio(model)


def test_every_encoder_has_its_token_in_order(studio: Studio, astronaut: Path) -> None:
    face = studio.face(read(astronaut), "the selfie")
    found = studio.embed_identity([face])
    assert tuple(found) == NAMES == studio.pipeline.tokens.identity and studio.absent == {}
    assert [tuple(e.shape) for e in found.values()] == [(1, 256), (1, 128), (1, 128)]


def test_an_absent_encoder_is_named_and_its_null_token_stands_in(
    model: Path, studio: Studio, astronaut: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    alone = Studio(model)
    told = capfd.readouterr()
    assert "mobileface_v2 is absent" in told.err and "weights pull mobileface_v2" in told.err and told.out == ""
    assert set(alone.absent) == {"mobileface_v2", "mobilefacenet_arcface"}
    face = alone.face(read(astronaut), "the scene")
    identity, everything = alone.embed_identity([face]), studio.embed_identity([face])
    assert set(identity) == {"dlib"}
    torch.testing.assert_close(identity["dlib"], everything["dlib"], atol=1e-6, rtol=0)
    tokens = alone.pipeline.tokens(identity)
    assert torch.equal(tokens[0, 0], alone.pipeline.tokens.null[0]) and torch.equal(tokens[0, 2], alone.pipeline.tokens.null[2])
    assert not torch.equal(tokens[0, 1], alone.pipeline.tokens.null[1])
    scene, mask, expression = to_tensor(face.crop), hull_mask(face.crop_landmarks, PRESET.crop)[None], alone.embed_expression(face)
    marks = face.crop_landmarks[None]
    made = alone.generate(scene, mask, marks, identity, expression, [3])
    same = studio.generate(scene, mask, marks, {"dlib": identity["dlib"]}, expression, [3])
    full = studio.generate(scene, mask, marks, everything, expression, [3])
    assert np.array_equal(made, same) and not np.array_equal(made, full)
    alone.dln.drift.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    posed, on_the_head = alone.generate(scene, mask, marks, identity, expression, [3]), alone.dln.posed(expression, torch.from_numpy(marks))
    alone.dln.drift.zero_()  # the model is told the expression as the scene's head has it
    assert np.array_equal(posed, alone.generate(scene, mask, marks, identity, on_the_head, [3])) and not np.array_equal(posed, made)
    portrait = alone.compose([face], read(astronaut), None, task="identity")
    assert portrait.outliers == {} and portrait.image.shape == read(astronaut).shape


def test_a_commercial_studio_goes_without_what_a_licence_bars(model: Path, studio: Studio) -> None:
    commercial = Studio(model, commercial_only=True)
    assert set(commercial.absent) == {"mobilefacenet_arcface"} and commercial.identity.present == ("mobileface_v2", "dlib")


def test_without_any_encoder_it_says_which_command_brings_one(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = dataclasses.replace(PRESET, conditioning=dataclasses.replace(PRESET.conditioning, identity=("mobileface_v2",)))
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "preset.json":
            (folder / path.name).symlink_to(path)
    (folder / "preset.json").write_text(json.dumps(config.to_dict(preset)))
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(NotReady, match="mobileface_v2.*diffsfsr weights pull mobileface_v2"):
        Studio(folder)


def test_a_selfie_of_somebody_else_is_left_out_and_named(
    studio: Studio, faces_dir: Path, astronaut: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["photos/obama.jpg", "photos/obama2.jpg", "photos/biden.jpg"]
    if missing := [name for name in names if not (faces_dir / name).is_file()]:
        pytest.skip(f"{missing[0]} is not in {faces_dir}")
    obama, again, biden = (studio.face(read(faces_dir / name), name, choice="largest") for name in names)
    studio.pipeline.tokens.set_means({"dlib": studio.identity.encoders["dlib"](*studio._tensors([obama, biden])).mean(0)})
    together, without = studio.average_identity([obama, biden, again]), studio.average_identity([obama, again])
    for name in NAMES:
        assert together[name].outliers == ("1",) and together[name].kept == ("0", "2"), name
        torch.testing.assert_close(together[name].embedding, without[name].embedding)
    made = studio.compose([obama, biden, again], read(astronaut), None, task="identity")
    assert made.outliers == dict.fromkeys(NAMES, (1,))
    told = capfd.readouterr().err
    assert all(f"according to {name}: 2 (of 3); they are left out" in told for name in NAMES)
    assert all(name in studio.compose([obama, biden], read(astronaut), None, task="identity").outliers for name in NAMES)
    assert "kept, since nobody can say" in capfd.readouterr().err


def test_glasses_of_the_scene_are_told(model: Path, astronaut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, scene = Studio(model), read(astronaut)
    face = alone.face(scene, "the scene", "largest")
    alone.sit([face], scene, None, task="identity", face="largest")
    assert "glasses" not in capsys.readouterr().err
    worn = scene.copy()  # a frame's bridge, from eye to eye
    (left, right), y = face.landmarks[[36, 45], 0].astype(int), int(face.landmarks[27, 1])
    worn[y + 1 : y + 3, left:right] = 20
    alone.sit([face], worn, None, task="identity", face="largest")
    assert "the scene's face seems to wear glasses" in capsys.readouterr().err


def test_the_scenes_light_is_laid_on_where_the_preset_asks(model: Path, astronaut: Path, tom_hanks: Path) -> None:
    alone = Studio(model, commercial_only=True)
    scenes = [alone.face(read(path), "the scene", "largest") for path in (astronaut, tom_hanks)]
    marks, crops = np.stack([face.crop_landmarks for face in scenes]), np.stack([face.crop for face in scenes])
    masks = np.stack([hull_mask(points, PRESET.crop) for points in marks])
    identity = {name: torch.cat([found, found]) for name, found in alone.embed_identity(scenes[:1]).items()}
    given = to_tensor(crops), masks, marks, identity, torch.cat([alone.embed_expression(face) for face in scenes]), [3, 4]
    plain = alone.generate(*given)
    alone.preset = dataclasses.replace(alone.preset, sampling=dataclasses.replace(alone.preset.sampling, scene_light=True))
    lit = alone.generate(*given)
    for before, after, scene, mask in zip(plain, lit, crops, masks, strict=True):
        assert np.array_equal(after, tone.matched(before, scene, mask)) and not np.array_equal(after, before)


def test_sittings_of_one_kind_are_painted_together_and_in_order(
    model: Path, astronaut: Path, tom_hanks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order they come in; more than TOGETHER go in several calls. Alone or not, a pixel differs by 1 of 255 at most."""
    alone = Studio(model, commercial_only=True)
    scene, selfie = read(astronaut), alone.face(read(tom_hanks), "the selfie")
    first = alone.sit([selfie], scene, None, task="identity", seed=1)
    others = [dataclasses.replace(first, seed=seed, steps=2 + seed % 2) for seed in range(2, 6)]
    calls, real = [], alone.generate
    monkeypatch.setattr(alone, "generate", lambda *args: (calls.append((args[5], args[6])), real(*args))[1])
    monkeypatch.setattr("diffsfsr.portrait.compose.TOGETHER", 2)
    made = alone.paint([first, *others])
    assert calls == [([1, 2], 2), ([4], 2), ([3, 5], 3)]  # (seeds, steps): the preset's own two steps, and the others'
    for sitting, portrait in zip([first, *others], made, strict=True):
        assert np.abs(alone.paint([sitting])[0].crop.astype(int) - portrait.crop).max() <= 1
    assert (made[1].crop != made[3].crop).any() and alone.paint([]) == []


def test_a_word_is_led_away_from_its_contrary_where_the_preset_wants_it(model: Path, astronaut: Path, tom_hanks: Path) -> None:
    """Together with a sitting that has no contrary, and fading with the strength of the wish."""
    alone = Studio(model, commercial_only=True)
    scene, selfie = read(astronaut), alone.face(read(tom_hanks), "the selfie")
    wanted, contrary = np.eye(16, dtype=np.float32)[:2]
    assert alone.sit([selfie], scene, wanted, negative=contrary).negative is None  # this preset does not want it
    alone.preset = dataclasses.replace(alone.preset, sampling=dataclasses.replace(alone.preset.sampling, negative=True))
    led, plain = (alone.sit([selfie], scene, wanted, negative=negative, seed=1) for negative in (contrary, None))
    assert led.negative is not None and plain.negative is None
    assert torch.allclose(led.negative, torch.from_numpy(contrary), atol=1e-6)
    none = alone.sit([selfie], scene, wanted, negative=contrary, strength=0.0).negative
    assert none is not None and torch.allclose(none, led.own, atol=1e-6)
    assert alone.sit([selfie], scene, None, negative=contrary, task="identity").negative is None
    torch.nn.init.normal_(alone.pipeline.unet.class_embedding.linear_2.weight, std=0.1)
    together = [portrait.crop for portrait in alone.paint([plain, led])]
    assert not np.array_equal(*together) and np.array_equal(together[0], alone.paint([plain])[0].crop)
