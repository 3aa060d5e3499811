"""The diffusers pipeline: what a saved folder must be enough for."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

import diffsfsr
from diffsfsr import config, presets
from diffsfsr.errors import InputError
from diffsfsr.model.autoencoder import LatentAutoencoder, condition_latents
from diffsfsr.model.pipeline import DiffSFSRPipeline
from diffsfsr.model.sampling import SAMPLERS, conditioned, make_scheduler, sample
from diffsfsr.model.unet import DiffSFSR

TINY = presets.preset("tiny")
SEGMENTATION = config.override(TINY, {"conditioning.background": "segmentation", "conditioning.mask_channel": False})
EPSILON = config.override(TINY, {"schedule.prediction": "epsilon", "schedule.zero_terminal_snr": False, "conditioning.pooled": False})
SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)
ANCESTRAL = "EulerAncestralDiscreteScheduler"


def pipeline(preset: config.Preset = TINY, seed: int = 0) -> DiffSFSRPipeline:
    torch.manual_seed(seed)
    model = DiffSFSR.from_preset(preset, {"dlib": 128}).eval()
    torch.nn.init.normal_(model.unet.conv_in.weight, std=0.1)
    model.tokens.set_means({"dlib": torch.full((128,), 0.1)})
    vae = LatentAutoencoder.from_config_row(preset.autoencoder).eval()
    vae.calibrate([inputs(4)["scene"]])
    pipe = DiffSFSRPipeline.from_model(model, vae, preset)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(rows: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(9)
    mask = torch.zeros(rows, 1, 64, 64)
    mask[:, :, 20:50, 16:48] = 1
    scene = torch.rand(rows, 3, 64, 64, generator=g) * 2 - 1
    identity = {"dlib": torch.randn(rows, 128, generator=g)}
    return {"scene": scene, "mask": mask, "identity": identity, "expression": torch.randn(rows, 16, generator=g)}


IN_A_FRESH_PROCESS = """
import sys, torch
from diffsfsr import DiffSFSRPipeline
given = torch.load(sys.argv[1])
made = [DiffSFSRPipeline.from_pretrained(folder)(**given).images for folder in sys.argv[3:]]
torch.save(made, sys.argv[2])
"""


def test_a_saved_folder_gives_the_same_picture_in_a_fresh_process(tmp_path: Path) -> None:
    """One folder for each background."""
    given, expected, folders = inputs() | {"seeds": [3, 4]}, [], [tmp_path / "image", tmp_path / "segmentation"]
    for preset, folder in zip((TINY, SEGMENTATION), folders, strict=True):
        pipe = pipeline(preset)
        expected.append(pipe(**given).images)
        pipe.save_pretrained(folder, safe_serialization=True)
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / "given.pt", tmp_path / "made.pt", *folders]
    done = subprocess.run(list(map(str, command)), cwd=Path(diffsfsr.__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for made, picture in zip(torch.load(tmp_path / "made.pt"), expected, strict=True):
        assert torch.equal(made, picture)
    assert not torch.equal(*expected)
    assert done.stderr.count("4/4") >= 2  # the progress bar, on standard error


def test_the_folder_is_self_contained(tmp_path: Path) -> None:
    preset = config.override(TINY, {"sampling.sampler": "unipc", "sampling.steps": 3, "schedule.beta_end": 0.013})
    pipe = pipeline(preset)
    pipe.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiffSFSRPipeline"
    assert str(tmp_path) not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    again = DiffSFSRPipeline.from_pretrained(tmp_path)
    assert again.mask_channel and again.config.guidable and type(again.scheduler).__name__ == "UniPCMultistepScheduler"
    model = again.model
    assert model.pooled and model.prediction == "v_prediction" and torch.equal(model.schedule.alpha_bar, pipe.model.schedule.alpha_bar)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**inputs()).images, pipe(**inputs()).images)
    alone = DiffSFSR.from_folder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(alone.schedule.alpha_bar, model.schedule.alpha_bar) and alone.prediction == "v_prediction"


def test_a_call_is_condition_sample_decode() -> None:
    pipe, given = pipeline(), inputs()
    with torch.no_grad():
        condition = condition_latents(pipe.vae, given["scene"], given["mask"], True)
        model_fn = conditioned(pipe.model, condition, given["identity"], given["expression"])
        latents = sample(model_fn, (4, 8, 8), make_scheduler(TINY.schedule, "ddim"), 4, [0, 1], guidance=2.0)
        expected = pipe.vae.decode(latents).clamp(-1, 1)
    assert torch.equal(pipe(**given).images, expected)
    assert torch.equal(pipe(**given, output_type="latent").images, latents)


def test_fresh_noise_is_the_presets_share_and_each_items_own() -> None:
    plain, given = pipeline(), inputs() | {"guidance": 1.0, "output_type": "latent"}
    pipe = pipeline(config.override(TINY, {"sampling.eta": 0.8}))
    made = pipe(**given, seeds=[3, 4]).images
    assert torch.equal(made, plain(**given, seeds=[3, 4], eta=0.8).images)
    assert not torch.allclose(made, pipe(**given, seeds=[3, 4], eta=0.0).images)
    second = {name: value[1:] for name, value in inputs().items() if isinstance(value, Tensor)}
    second["identity"] = {name: value[1:] for name, value in given["identity"].items()}
    torch.testing.assert_close(pipe(**(given | second), seeds=[4]).images, made[1:], rtol=1e-4, atol=1e-4)


def test_outputs_and_their_ranges() -> None:
    pipe, given = pipeline(), inputs()
    last = [m for m in pipe.vae.net.decoder if isinstance(m, torch.nn.Conv2d)][-1]
    last.weight.data.mul_(40)  # beyond the range, which the output must not leave
    as_tensor, as_array = pipe(**given).images, pipe(**given, output_type="np").images
    assert isinstance(as_tensor, Tensor) and as_tensor.shape == (2, 3, 64, 64) and float(as_tensor.abs().max()) == 1
    assert isinstance(as_array, np.ndarray) and as_array.shape == (2, 64, 64, 3) and as_array.dtype == np.uint8
    expected = ((as_tensor + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(as_array, expected)
    as_pictures = pipe(**given, output_type="pil").images
    assert all(isinstance(p, Image.Image) and p.mode == "RGB" for p in as_pictures)
    np.testing.assert_array_equal(np.stack(as_pictures), expected)
    (alone,) = pipe(**given, return_dict=False)
    assert torch.equal(alone, as_tensor)


def test_the_face_of_the_scene_is_not_seen() -> None:
    pipe, given = pipeline(), inputs()
    other = given | {"scene": torch.where(given["mask"].bool(), -given["scene"], given["scene"])}
    assert torch.equal(pipe(**given).images, pipe(**other).images)
    elsewhere = given | {"scene": -given["scene"]}
    a, b = (pipe(**i, output_type="latent").images for i in (given, elsewhere))
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_swap_by_name(name: str) -> None:
    pipe = pipeline()
    first = pipe(**inputs(), output_type="latent").images
    pipe.set_sampler(name)
    made = pipe(**inputs(), output_type="latent").images
    assert bool(torch.isfinite(made).all()) and torch.equal(made, first) == (name == "ddim")
    with pytest.raises(InputError, match="unknown sampler"):
        pipe.set_sampler("euler")


def test_absent_encoders_become_null_tokens() -> None:
    pipe, given = pipeline(), inputs()
    torch.nn.init.normal_(pipe.tokens.null)
    without = pipe(given["scene"], given["mask"], {}, None, guidance=1.0, output_type="latent").images
    absent = pipe(**given, present=torch.zeros(2, 2, dtype=torch.bool), guidance=1.0, output_type="latent").images
    assert torch.equal(without, absent)
    assert not torch.equal(without, pipe(**given, guidance=1.0, output_type="latent").images)


def test_guidance_leads_away_from_a_negative_expression() -> None:
    pipe, given = pipeline(), inputs()
    torch.nn.init.normal_(pipe.unet.class_embedding.linear_2.weight, std=0.1)
    other = given["expression"].flip(1)
    plain, led = pipe(**given, guidance=2.0).images, pipe(**given, negative_expression=other, guidance=2.0).images
    assert not torch.equal(plain, led)
    assert torch.equal(pipe(**given, guidance=1.0).images, pipe(**given, negative_expression=other, guidance=1.0).images)
    for wrong in ({"negative_expression": other[:1]}, {"negative_expression": other, "expression": None}):
        with pytest.raises(InputError, match="negative_expression"):
            pipe(**given | wrong)


def test_bad_calls_are_refused() -> None:
    pipe, given = pipeline(), inputs()
    plain = pipeline(config.override(TINY, {"conditioning.drop_all": 0.0, "sampling.guidance": 1.0}))
    bad = [
        (pipe, {"seeds": [1]}, "seeds"),
        (pipe, {"output_type": "pill"}, "output_type"),
        (pipe, {"mask": given["mask"][:1]}, "mask"),
        (pipe, {"scene": given["scene"][..., :60]}, "multiple of 16"),
        (pipe, {"steps": 0}, "steps=0"),
        (plain, {"guidance": 2.0}, "drop_all"),
        (pipe, {"generator": [torch.Generator()]}, "2 scenes need one generator or as many, not 1"),
        (pipe, {"generator": torch.Generator(), "seeds": [1, 2]}, "seeds or generator"),
        (pipe, {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
    ]
    for p, change, says in bad:
        with pytest.raises(InputError, match=says):
            p(**(given | change))
    with pytest.raises(InputError, match="input channels"):
        DiffSFSRPipeline(pipe.unet, LatentAutoencoder("tiny", 3, 8), pipe.tokens, pipe.scheduler)


# --- diffusers' conventions -----------------------------------------------------------------------------------------


def swap(pipe: DiffSFSRPipeline, name: str) -> None:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs_as_in_diffusers_own_pipeline(name: str) -> None:
    """With nothing in the new input channels, ours is StableDiffusionPipeline on the base network, its prompt our tokens."""
    pipe, given = pipeline(config.override(EPSILON, {"sampling.sampler": "pndm"})), inputs(1)
    torch.nn.init.normal_(pipe.tokens.null)
    pipe.unet.conv_in.weight.data[:, 4:] = 0
    swap(pipe, name)
    base = UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 4}).eval()
    base.load_state_dict(pipe.unet.state_dict() | {"conv_in.weight": pipe.unet.conv_in.weight[:, :4]})
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    theirs = StableDiffusionPipeline(pipe.vae.net, None, None, base, scheduler, None, None, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        tokens = pipe.tokens(given["identity"], given["expression"])
    prompts = {"prompt_embeds": tokens, "negative_prompt_embeds": pipe.tokens.null[None].detach()}
    settings = {"num_inference_steps": 10, "guidance_scale": 2.0, "output_type": "latent", "height": 64, "width": 64}
    expected = theirs(**prompts, **settings, generator=torch.Generator().manual_seed(5)).images
    made = pipe(**given, steps=10, guidance=2.0, output_type="latent", seeds=[5]).images
    torch.testing.assert_close(made, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_item_is_the_same_alone_and_in_a_batch(name: str) -> None:
    pipe, given = pipeline(EPSILON), inputs(2)
    swap(pipe, name)
    both = pipe(**given, seeds=[7, 8], output_type="latent").images
    second = {k: {n: e[1:] for n, e in v.items()} if isinstance(v, dict) else v[1:] for k, v in given.items()}
    torch.testing.assert_close(pipe(**second, seeds=[8], output_type="latent").images, both[1:], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["pndm", "ddim"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_swap_keeps_zero_terminal_snr_or_is_refused(name: str, sampler: str) -> None:
    pipe = pipeline(config.override(TINY, {"sampling.sampler": sampler}))
    swap(pipe, name)
    can = name not in ("PNDMScheduler", "HeunDiscreteScheduler") or sampler == "pndm"  # whose betas are rescaled already
    if "rescale_betas_zero_snr" in inspect.signature(type(pipe.scheduler).__init__).parameters:
        assert pipe.scheduler.config.rescale_betas_zero_snr
    if can:
        made = pipe(**inputs(1), steps=5, output_type="latent").images
        assert bool(torch.isfinite(made).all()) and float(made.abs().max()) < 100
    else:
        with pytest.raises(InputError, match=f"{name} cannot rescale its betas to the zero terminal SNR"):
            pipe(**inputs(), steps=10)


def test_a_scheduler_made_for_another_network_is_refused() -> None:
    pipe = pipeline()
    right = dict(pipe.scheduler.config)
    for wrong, says in (
        ({"beta_end": 0.02}, "does not have the noise levels"),
        ({"prediction_type": "epsilon"}, "prediction_type=epsilon"),
        ({"clip_sample": True}, "clip_sample"),
    ):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(right | wrong)
        with pytest.raises(InputError, match=says):
            pipe(**inputs())


def test_a_generator_stands_in_for_seeds() -> None:
    pipe, given = pipeline(EPSILON), inputs(2)
    swap(pipe, ANCESTRAL)  # draws in every step too
    make = lambda **how: pipe(**given, output_type="latent", **how).images  # noqa: E731
    expected = make(seeds=[3, 4])
    assert torch.equal(make(generator=[torch.Generator().manual_seed(s) for s in (3, 4)]), expected)
    one, again = (make(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again) and not torch.equal(one, expected)


def test_one_generator_draws_for_the_items_in_turn() -> None:
    pipe, seen, draw = pipeline(), [], torch.Generator().manual_seed(3)
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pipe(**inputs(), guidance=1.0, generator=torch.Generator().manual_seed(3))
    assert torch.equal(seen[0][:, :4], torch.stack([torch.randn(4, 8, 8, generator=draw) for _ in range(2)]))


def test_a_callback_sees_replaces_and_interrupts() -> None:
    pipe, given = pipeline(), inputs()
    seen: list[tuple[int, int, Tensor]] = []

    def watch(p: DiffSFSRPipeline, i: int, t: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        assert p is pipe and list(inputs) == ["latents"]
        seen.append((i, int(t), inputs["latents"].clone()))
        return inputs

    final = pipe(**given, output_type="latent", callback_on_step_end=watch).images
    assert [i for i, _, _ in seen] == [0, 1, 2, 3] and [t for _, t, _ in seen] == [999, 749, 499, 249]
    assert torch.equal(seen[-1][2], final)

    def stop(p: DiffSFSRPipeline, i: int, t: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        p._interrupt = i == 1
        return {}

    assert torch.equal(pipe(**given, output_type="latent", callback_on_step_end=stop).images, seen[1][2])
    assert pipe.interrupt and torch.equal(pipe(**given, output_type="latent").images, final)  # the next call starts anew
    zeros = lambda p, i, t, inputs: {"latents": torch.zeros_like(inputs["latents"])}  # noqa: E731
    assert not bool(pipe(**given, output_type="latent", callback_on_step_end=zeros).images.any())


def test_it_moves_to_another_precision() -> None:
    pipe, given = pipeline(), inputs()
    exact = pipe(**given).images
    made = pipe.to(torch.bfloat16)(**given).images
    assert made.dtype == torch.float32 and pipe.unet.dtype == torch.bfloat16
    assert float((made - exact).abs().mean()) < 0.1


# --- without the background condition -------------------------------------------------------------------------------


def test_a_segmentation_model_keeps_the_scene_around_the_face() -> None:
    pipe, given = pipeline(SEGMENTATION), inputs()
    assert pipe.unet.config.in_channels == 5 and pipe.background == "segmentation"
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made = pipe(**given, guidance=1.0, output_type="latent").images
    face = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    face[:, :, 2:7, 2:6] = True  # 20:50 and 16:48 in pixels
    assert all(torch.equal(x[:, 4:], face.float()) for x in seen)
    scene = pipe.vae.encode(given["scene"])
    outside = (~face).expand_as(made)
    torch.testing.assert_close(made[outside], scene[outside], atol=1e-5, rtol=0)
    assert float((made - scene)[~outside].abs().mean()) > 0.1
    elsewhere = pipe(**(given | {"scene": -given["scene"]}), guidance=1.0, output_type="latent").images
    assert not torch.allclose(elsewhere[~outside], made[~outside], atol=1e-3)  # the face grows into its scene
