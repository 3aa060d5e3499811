"""Stable Diffusion 1.4 as published becomes the pipeline: against diffusers' own loading, names, broken folders, and in full size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffsfsr import config, presets
from diffsfsr.errors import InputError
from diffsfsr.model.autoencoder import LatentAutoencoder
from diffsfsr.model.conditioning import ConditionTokens
from diffsfsr.model.pipeline import DiffSFSRPipeline
from diffsfsr.model.published import Part
from diffsfsr.model.unet import DiffSFSR, build_unet, unet_settings

NAME = "CompVis/stable-diffusion-v1-4"
PAPER = presets.preset("paper")
SMALL = config.override(
    PAPER,
    {
        "crop": 64,
        "unet.channels": [32, 64, 64, 64],
        "unet.layers": 1,
        "unet.heads": [2, 2, 2, 2],
        "conditioning.identity": ["dlib"],
        "conditioning.token_width": 32,
        "sampling.steps": 4,
    },
)
DIMS = {"dlib": 128}
WEIGHTS = "diffusion_pytorch_model.safetensors"
# The keys of the published files, written by diffusers 0.2.2; values that a small model changes come from it
OLD_UNET = (
    "act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types downsample_padding "
    "flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups out_channels sample_size "
    "up_block_types"
).split()
OLD_VAE = (
    "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block out_channels sample_size up_block_types"
).split()
OLD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def save_as_published(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL) -> Path:
    """The layout of CompVis/stable-diffusion-v1-4: old configs, and the autoencoder's attention by its old names."""
    for part, network, keys in (("unet", unet, OLD_UNET), ("vae", vae, OLD_VAE)):
        network.save_pretrained(folder / part, max_shard_size="10GB")
        new = json.loads((folder / part / "config.json").read_text())
        old = {"_class_name": type(network).__name__, "_diffusers_version": "0.2.2", **{key: new[key] for key in keys}}
        write(folder / part / "config.json", old)
    tensors = load_file(folder / "vae" / WEIGHTS)
    for new, old in OLD_ATTENTION.items():
        tensors = {k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for k, v in tensors.items()}
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, folder / "vae" / WEIGHTS, {"format": "pt"})
    (folder / "scheduler").mkdir()
    write(folder / "scheduler" / "scheduler_config.json", OLD_SCHEDULER)
    parts = {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2", **parts})
    return folder


def write(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data))


def sd_vae(width: int) -> AutoencoderKL:
    channels = (width, width, width, width) if width < 32 else (width, 2 * width, 4 * width, 4 * width)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=4, sample_size=512, **blocks)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_settings(SMALL))
    return save_as_published(tmp_path_factory.mktemp("published") / "sd-1.4", unet, sd_vae(32))


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "sd")


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def step_0(base: UNet2DConditionModel, wide: UNet2DConditionModel) -> None:
    """Whatever the condition shows, a widened network's output is the base network's."""
    g = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(shape, generator=g).to(base.dtype)  # noqa: E731
    x, tokens, t = normal(1, 4, 8, 8), normal(1, 3, base.config.cross_attention_dim), torch.tensor([700])
    condition = 3 * normal(1, wide.config.in_channels - 4, 8, 8)
    base.set_attn_processor(next(iter(wide.attn_processors.values())))  # another would round otherwise
    with torch.no_grad():
        expected = base(x, t, tokens).sample
        assert torch.equal(wide(torch.cat([x, condition], 1), t, tokens).sample, expected)
    assert bool(torch.isfinite(expected).all()) and float(expected.float().std()) > 0


def test_the_published_layout_becomes_the_pipeline(published: Path) -> None:
    pipe = DiffSFSRPipeline.from_stable_diffusion(str(published), SMALL, DIMS)
    base = UNet2DConditionModel.from_pretrained(published, subfolder="unet").eval()
    assert parameters(pipe.unet) == parameters(base) + 32 * 4 * 9 and pipe.unet.config.in_channels == 8
    step_0(base, pipe.unet)
    theirs, images = AutoencoderKL.from_pretrained(published, subfolder="vae").eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    assert "to_q" in "".join(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(pipe.vae.encode(images), theirs.encode(images).latent_dist.mode() * 0.18215)
    assert isinstance(pipe.scheduler, PNDMScheduler)
    own = PNDMScheduler.from_pretrained(published, subfolder="scheduler").config
    assert {k: pipe.scheduler.config[k] for k in own if k[0] != "_"} == {k: v for k, v in own.items() if k[0] != "_"}


def test_training_starts_from_the_same_network(published: Path) -> None:
    pipe = DiffSFSRPipeline.from_stable_diffusion(published, SMALL, DIMS)
    trained = DiffSFSR.from_preset(SMALL, DIMS, unet_folder=published / "unet")
    vae = LatentAutoencoder.from_config_row(SMALL.autoencoder, published / "vae")
    for ours, theirs in ((trained.unet, pipe.unet), (vae, pipe.vae)):
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_it_saves_and_reloads_without_the_source(published: Path, tmp_path: Path) -> None:
    pipe = DiffSFSRPipeline.from_stable_diffusion(published, SMALL, DIMS, dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.tokens.dtype} == {torch.bfloat16}
    pipe.save_pretrained(tmp_path / "ours")
    assert str(published) not in "".join(p.read_text() for p in (tmp_path / "ours").rglob("*.json"))
    again = DiffSFSRPipeline.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight) and again.background == "image"


def test_another_sampler_stands_on_the_published_levels(published: Path) -> None:
    pipe = DiffSFSRPipeline.from_stable_diffusion(published, config.override(SMALL, {"sampling.sampler": "ddim"}), DIMS)
    c = pipe.scheduler.config
    assert isinstance(pipe.scheduler, DDIMScheduler) and (c.clip_sample, c.set_alpha_to_one, c.steps_offset) == (False, False, 1)


def test_a_segmentation_model_is_wider_by_one_channel(published: Path) -> None:
    preset = config.override(SMALL, {"conditioning.background": "segmentation"})
    pipe = DiffSFSRPipeline.from_stable_diffusion(published, preset, DIMS)
    assert pipe.unet.config.in_channels == 5 and pipe.background == "segmentation" and not pipe.mask_channel
    step_0(UNet2DConditionModel.from_pretrained(published, subfolder="unet").eval(), pipe.unet)


def test_the_hubs_name_means_the_hubs_cache_and_the_pulled_folder(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is set for every test: what is found here came from this machine."""
    base = load_file(published / "unet" / WEIGHTS)["conv_in.weight"]
    weight = lambda: DiffSFSRPipeline.from_stable_diffusion(NAME, SMALL, DIMS).unet.conv_in.weight[:, :4]  # noqa: E731
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    for name in (NAME, "nobody/nothing-here"):
        with pytest.raises(InputError, match="weights pull sd-1.4") as refused:
            DiffSFSRPipeline.from_stable_diffusion(name, SMALL, DIMS)
        assert name in str(refused.value) and "\n" not in str(refused.value)
    cached = tmp_path / "cache" / "models--CompVis--stable-diffusion-v1-4"
    shutil.copytree(published, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert torch.equal(weight(), base)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(published.parent))
    assert torch.equal(weight(), base)


def damaged(folder: Path) -> Iterator[tuple[str, str]]:
    """What is done to the folder -> what the refusal must say."""
    (folder / "unet" / WEIGHTS).write_bytes((folder / "unet" / WEIGHTS).read_bytes()[:1000])
    yield "cut short", "/unet"
    tensors = {"conv_in.bias": torch.zeros(32)}
    save_file(tensors, folder / "unet" / WEIGHTS, {"format": "pt"})
    yield "not all there", "lack"
    (folder / "unet" / WEIGHTS).unlink()
    yield "no weights", "/unet"
    (folder / "scheduler" / "scheduler_config.json").unlink()
    yield "no scheduler", "/scheduler"
    (folder / "vae" / "config.json").write_text("{")
    yield "no JSON", "/vae"
    write(folder / "unet" / "config.json", {"_class_name": "UNet2DModel"})
    yield "another network", "UNet2DModel"
    shutil.rmtree(folder)
    yield "no folder", str(folder)


def test_a_broken_folder_is_refused_in_one_line(copy: Path) -> None:
    for what, says in damaged(copy):
        with pytest.raises(InputError) as refused:
            DiffSFSRPipeline.from_stable_diffusion(copy, SMALL, DIMS)
        assert says in str(refused.value) and "\n" not in str(refused.value), (what, str(refused.value))
        assert "weights pull sd-1.4" in str(refused.value) or what == "another network", what


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unet.channels": [32, 64, 64, 128]}, ["block_out_channels=[32, 64, 64, 64]", "unet.channels", "(32, 64, 64, 128)"]),
        ({"conditioning.token_width": 768}, ["cross_attention_dim=32", "conditioning.token_width", "768"]),
        ({"unet.layers": 2}, ["layers_per_block=1", "unet.layers", "2"]),
        ({"unet.heads": [4, 4, 4, 4]}, ["attention_head_dim=2", "unet.heads", "4"]),
        ({"autoencoder.channels": 8}, ["in_channels=4", "autoencoder.channels", "8"]),
        ({"schedule.beta_end": 0.02}, ["beta_end=0.012", "schedule.beta_end", "0.02"]),
        ({"schedule.prediction": "v_prediction"}, ["prediction_type=epsilon", "schedule.prediction", "v_prediction"]),
        ({"autoencoder.kind": "tiny"}, ["AutoencoderKL", "autoencoder.kind=tiny", "AutoencoderTiny"]),
    ],
)
def test_a_preset_that_does_not_fit_is_refused_before_any_weight_is_read(copy: Path, changes: dict[str, Any], says: list[str]) -> None:
    for file in copy.rglob(WEIGHTS):
        file.unlink()
    with pytest.raises(InputError) as refused:
        DiffSFSRPipeline.from_stable_diffusion(copy, config.override(SMALL, changes), DIMS)
    assert all(word in str(refused.value) for word in says), str(refused.value)


def test_an_autoencoder_of_other_channels_is_refused_by_its_config(copy: Path) -> None:
    file = copy / "vae" / "config.json"
    write(file, json.loads(file.read_text()) | {"latent_channels": 16})
    (copy / "vae" / WEIGHTS).unlink()
    with pytest.raises(InputError, match="latent_channels=16 where autoencoder.channels needs 4"):
        LatentAutoencoder.from_config_row(SMALL.autoencoder, copy / "vae")


def test_counts_of_the_paper() -> None:
    """By hand: 320 x C x 9 for conv_in; a slot of width D takes D W + W + W W + W and a null token of W = 768."""
    dims = {"w600k_r50": 512, "dlib": 128, "facenet": 512}
    for background, unet in (("image", 859_520_964 + 320 * 4 * 9), ("segmentation", 859_520_964 + 320 * 9)):
        with torch.device("meta"):
            assert parameters(build_unet(config.override(PAPER, {"conditioning.background": background}))) == unet
    tokens = ConditionTokens(dims, PAPER.dln.dim, PAPER.conditioning.token_width)
    assert parameters(tokens) == sum(d * 768 + 768 + 768 * 768 + 768 + 768 for d in (512, 128, 512, 16)) == 3_265_536
    with torch.device("meta"):
        assert parameters(LatentAutoencoder.from_config_row(PAPER.autoencoder)) == 83_653_863


def test_a_pooled_preset_gets_a_new_embedding_beside_the_published_weights(published: Path) -> None:
    unet = build_unet(config.override(SMALL, {"conditioning.pooled": True}), Part(published, "unet"))
    first, last = unet.class_embedding.linear_1.weight, unet.class_embedding.linear_2.weight
    assert bool(torch.isfinite(first).all()) and float(first.std()) > 0 and not bool(last.any())
    assert torch.equal(unet.conv_in.weight[:, :4], load_file(published / "unet" / WEIGHTS)["conv_in.weight"])


@pytest.mark.slow
def test_stable_diffusion_in_full_size(tmp_path: Path) -> None:
    """Random weights, saved in half precision in the published layout: 1.9 GB on disk, about 4 GB of memory."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        base, vae = UNet2DConditionModel(**unet_settings(PAPER)).eval(), sd_vae(128).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    assert (parameters(base), parameters(vae)) == (859_520_964, 83_653_863)
    folder = save_as_published(tmp_path / "sd-1.4", base, vae)
    dims = {"w600k_r50": 512, "dlib": 128, "facenet": 512}
    pipe = DiffSFSRPipeline.from_stable_diffusion(folder, PAPER, dims, dtype=torch.bfloat16)
    shutil.rmtree(folder)
    assert (parameters(pipe.unet), parameters(pipe.tokens), parameters(pipe.vae)) == (859_532_484, 3_265_536, 83_653_863)
    step_0(base, pipe.unet)
    del base
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    identity = {name: torch.randn(1, dim) for name, dim in dims.items()}
    made = pipe(torch.rand(1, 3, 64, 64) * 2 - 1, mask, identity, torch.randn(1, 16), steps=2).images
    assert made.shape == (1, 3, 64, 64) and bool(torch.isfinite(made).all())
