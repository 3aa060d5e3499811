"""Pixels <-> latents: against the wrapped diffusers networks, by statistics, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diffsfsr import presets
from diffsfsr.errors import InputError
from diffsfsr.model.autoencoder import LatentAutoencoder, condition_image, condition_latents
from diffsfsr.model.lean import LeanAutoencoder


def pictures(count: int = 4, side: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=g) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


@pytest.mark.parametrize("kind", ["tiny", "kl", "lean"])
def test_shapes_and_the_wrapped_network_scaled(kind: str) -> None:
    torch.manual_seed(0)
    vae = LatentAutoencoder(kind, channels=5, width=16).eval()
    vae.latent_shift.copy_(torch.arange(5.0))
    vae.latent_scale.copy_(torch.arange(1.0, 6.0))
    images = pictures()
    with torch.no_grad():
        out = vae.net.encode(images)
        raw = out.latent_dist.mode() if kind == "kl" else out.latents
        latents = vae.encode(images)
        assert latents.shape == (4, 5, 4, 4)
        for c in range(5):
            torch.testing.assert_close(latents[:, c], (raw[:, c] - c) * (c + 1))
        torch.testing.assert_close(vae.decode(latents), vae.net.decode(raw).sample, atol=1e-4, rtol=0)
        torch.testing.assert_close(vae(images), vae.decode(latents))


def test_kl_takes_the_mode_and_not_a_sample() -> None:
    vae = LatentAutoencoder("kl", channels=4, width=8).eval()
    with torch.no_grad():
        assert torch.equal(vae.encode(pictures()), vae.encode(pictures()))


def test_calibrate_gives_mean_0_and_deviation_1_per_channel() -> None:
    torch.manual_seed(0)
    vae = LatentAutoencoder("tiny", channels=4, width=8).eval()
    images = [pictures(3, seed=s) for s in range(4)]
    before = vae.encode(images[0]).std()
    vae.calibrate(iter(images))
    with torch.no_grad():
        latents = torch.cat([vae.encode(i) for i in images]).transpose(0, 1).flatten(1)
    assert float(latents.mean(1).abs().max()) < 1e-3 and float((latents.std(1) - 1).abs().max()) < 0.02
    assert not torch.isclose(before, torch.tensor(1.0), atol=0.1)
    with pytest.raises(InputError, match="no images"):
        vae.calibrate([])


@pytest.mark.parametrize("kind", ["tiny", "kl", "lean"])
def test_save_and_load_keep_weights_scale_and_config(kind: str, tmp_path: Path) -> None:
    vae = LatentAutoencoder(kind, channels=4, width=8).eval()
    vae.calibrate([pictures()])
    vae.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] and not list(tmp_path.glob("*.bin"))
    again = LatentAutoencoder.from_pretrained(tmp_path).eval()
    assert torch.equal(again.latent_scale, vae.latent_scale) and torch.equal(again.latent_shift, vae.latent_shift)
    with torch.no_grad():
        assert torch.equal(again(pictures()), vae(pictures()))


def test_loads_a_folder_saved_by_diffusers_and_saves_it_as_ours(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    theirs = AutoencoderKL(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, **blocks).eval()
    theirs.save_pretrained(tmp_path / "sd")
    row = presets.preset("paper").autoencoder
    vae = LatentAutoencoder.from_config_row(row, tmp_path / "sd").eval()
    with torch.no_grad():
        expected = theirs.encode(pictures()).latent_dist.mode() * 0.18215
        torch.testing.assert_close(vae.encode(pictures()), expected)
        vae.save_pretrained(tmp_path / "ours")
        torch.testing.assert_close(LatentAutoencoder.from_pretrained(tmp_path / "ours").encode(pictures()), expected)
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()

    small = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    small.save_pretrained(tmp_path / "taesd")
    vae = LatentAutoencoder.from_diffusers(tmp_path / "taesd")
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(pictures()), small.encode(pictures()).latents)
    lean = LeanAutoencoder(latent_channels=6, block_out_channels=(3, 8, 16, 24)).eval()
    lean.save_pretrained(tmp_path / "lean")
    with torch.no_grad():
        assert torch.equal(LatentAutoencoder.from_diffusers(tmp_path / "lean").encode(pictures()), lean.encode(pictures()).latents)
    for wrong in (tmp_path, tmp_path / "ours"):
        with pytest.raises(InputError):
            LatentAutoencoder.from_diffusers(wrong)


def test_paper_row_is_stable_diffusions_size() -> None:
    with torch.device("meta"):
        vae = LatentAutoencoder.from_config_row(presets.preset("paper").autoencoder)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert vae.net.config.scaling_factor == 0.18215


def test_the_lean_network_does_nothing_at_the_pictures_own_side() -> None:
    vae, sides = LatentAutoencoder.from_config_row(presets.preset("lab").autoencoder), set[int]()
    for conv in (m for m in vae.modules() if isinstance(m, torch.nn.Conv2d)):
        conv.register_forward_hook(lambda module, inputs, output: sides.add(output.shape[-1]))
    assert vae(torch.zeros(1, 3, 128, 128)).shape == (1, 3, 128, 128)
    assert sides == {64, 32, 16} and not [m for m in vae.modules() if "Norm" in type(m).__name__]
    assert vae.encode(torch.zeros(1, 3, 128, 128)).shape == (1, 8, 16, 16)


def test_condition_image_fills_the_face_with_one_value() -> None:
    scene = pictures(2)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 10:22] = 1
    shown = condition_image(scene, mask)
    assert bool((shown[:, :, 8:20, 10:22] == 0).all())
    assert torch.equal(shown * (1 - mask), scene * (1 - mask))
    assert bool((shown[:, :, :8] == scene[:, :, :8]).all())


def test_condition_latents_hide_the_face_and_carry_the_mask() -> None:
    vae = LatentAutoencoder("tiny", channels=4, width=8).eval()
    scene, mask = pictures(2), torch.zeros(2, 1, 32, 32)
    mask[:, :, 7:9, 20] = 1  # touches two latent rows
    other = torch.where(mask.bool(), torch.ones(()), scene)
    with torch.no_grad():
        shown = condition_latents(vae, scene, mask, mask_channel=True)
        assert torch.equal(shown, condition_latents(vae, other, mask, mask_channel=True))
        assert torch.equal(shown[:, :4], condition_latents(vae, scene, mask, mask_channel=False))
    expected = torch.zeros(4, 4)
    expected[0:2, 2] = 1
    assert torch.equal(shown[0, 4], expected)


def test_gradients_pass_the_decoder_beyond_the_range() -> None:
    vae = LatentAutoencoder("tiny", channels=4, width=8)
    z = (5 * torch.randn(1, 4, 2, 2)).requires_grad_()
    vae.decode(z).sum().backward()
    assert float(z.grad.abs().sum()) > 0


def test_it_learns_two_pictures() -> None:
    torch.manual_seed(0)
    vae, images = LatentAutoencoder("tiny", channels=4, width=16), pictures(2)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = (vae(images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10, (losses[0], losses[-1])
