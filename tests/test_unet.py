"""The denoising UNet and the trainable bundle."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from diffsfsr import config, presets
from diffsfsr.errors import InputError
from diffsfsr.model import diffusion
from diffsfsr.model.unet import DiffSFSR, build_unet, unet_settings, widen_conv_in

TINY = presets.preset("tiny")


def model(preset: config.Preset = TINY, seed: int = 0) -> DiffSFSR:
    torch.manual_seed(seed)
    return DiffSFSR.from_preset(preset, {"dlib": 128}).eval()


def inputs(rows: int = 2, seed: int = 0) -> dict[str, object]:
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return {
        "z_t": normal(rows, 4, 8, 8),
        "t": torch.randint(1, 1001, (rows,), generator=g),
        "condition": normal(rows, 5, 8, 8),
        "identity": {"dlib": normal(rows, 128)},
        "expression": normal(rows, 16),
    }


def test_default_settings_are_stable_diffusion_1_4() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_settings(presets.preset("paper")))
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        wide = widen_conv_in(unet, 4)
    assert sum(p.numel() for p in wide.parameters()) == 859_520_964 + 320 * 4 * 9
    assert wide.config.in_channels == 8 and wide.config.sample_size == 64


def test_every_small_level_attends_and_lab_fits_its_latents() -> None:
    unet = build_unet(TINY)
    assert set(unet.config.down_block_types) == {"CrossAttnDownBlock2D"} and unet.config.in_channels == 4 + 4 + 1
    lab = unet_settings(presets.preset("lab"))
    assert lab["sample_size"] == 16 and lab["in_channels"] == 8 and lab["cross_attention_dim"] == 256


def test_widened_network_equals_the_base_network_at_step_0() -> None:
    torch.manual_seed(0)
    base = UNet2DConditionModel(**unet_settings(config.override(TINY, {"conditioning.pooled": False}))).eval()
    wide = widen_conv_in(copy.deepcopy(base), 5)
    x, tokens, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 2, 32), 10 * torch.randn(2, 5, 8, 8)
    t = torch.tensor([0, 999])
    with torch.no_grad():
        expected = base(x, t, tokens).sample
        assert torch.equal(wide(torch.cat([x, condition], 1), t, tokens).sample, expected)
        torch.nn.init.normal_(wide.conv_in.weight[:, 4:])
        assert not torch.allclose(wide(torch.cat([x, condition], 1), t, tokens).sample, expected)


def test_pooled_tokens_start_silent_and_are_heard_once_trained() -> None:
    with_pool = build_unet(TINY).eval()
    assert with_pool.config.class_embed_type == "projection"
    x, tokens, t = torch.randn(2, 9, 8, 8), torch.randn(2, 2, 32), torch.tensor([3, 900])
    with torch.no_grad():
        quiet = [with_pool(x, t, tokens, class_labels=c).sample for c in (torch.zeros(2, 32), torch.randn(2, 32))]
        assert torch.equal(*quiet)
        torch.nn.init.normal_(with_pool.class_embedding.linear_2.weight)
        loud = [with_pool(x, t, tokens, class_labels=c).sample for c in (torch.zeros(2, 32), torch.randn(2, 32))]
        assert not torch.allclose(*loud)


@pytest.mark.parametrize("pooled", [True, False])
def test_builds_on_a_network_saved_by_diffusers(pooled: bool, tmp_path: Path) -> None:
    plain = config.override(TINY, {"conditioning.pooled": False})
    torch.manual_seed(3)
    base = UNet2DConditionModel(**unet_settings(plain)).eval()
    base.save_pretrained(tmp_path)
    preset = TINY if pooled else plain
    wide = build_unet(preset, tmp_path).eval()
    x, tokens, t = torch.randn(2, 4, 8, 8), torch.randn(2, 2, 32), torch.tensor([3, 900])
    extra = {"class_labels": tokens.mean(1)} if pooled else {}
    with torch.no_grad():
        made = wide(torch.cat([x, torch.randn(2, 5, 8, 8)], 1), t, tokens, **extra).sample
        torch.testing.assert_close(made, base(x, t, tokens).sample, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="block_out_channels"):
        build_unet(config.override(preset, {"unet.channels": [32, 32]}), tmp_path)


def test_forward_is_the_unet_on_stacked_input_at_t_minus_1() -> None:
    m, given = model(), inputs()
    torch.nn.init.normal_(m.unet.class_embedding.linear_2.weight)
    with torch.no_grad():
        tokens = m.tokens(given["identity"], given["expression"])
        x = torch.cat([given["z_t"], given["condition"]], 1)
        expected = m.unet(x, given["t"] - 1, tokens, class_labels=tokens.mean(1)).sample
        assert torch.equal(m(**given), expected)
        z_0 = diffusion.z0_from_v(expected, given["z_t"], given["t"], m.schedule)
        assert torch.equal(m.predict_z0(**given), z_0)


def test_absent_conditions_do_not_need_a_batch() -> None:
    m, given = model(), inputs()
    with torch.no_grad():
        none = m(given["z_t"], given["t"], given["condition"], {}, None)
        absent = m(**given, present=torch.zeros(2, 2, dtype=torch.bool))
    assert torch.equal(none, absent)


def test_half_precision_weights_take_and_return_float32() -> None:
    m, given = model(), inputs()
    with torch.no_grad():
        exact = m(**given)
        made = copy.deepcopy(m).bfloat16()(**given)
    assert made.dtype == torch.float32
    assert float((made - exact).abs().mean()) < 0.05 * float(exact.abs().mean())


def test_attention_by_device_is_the_same_attention() -> None:
    """With gradients and without: the two take different ways on a CPU."""
    m, given = model(), inputs()
    trained = m(**given).detach()
    with torch.no_grad():
        sampled = m(**given)
        m.unet.set_attn_processor(AttnProcessor2_0())
        for ours in (trained, sampled):
            torch.testing.assert_close(m(**given), ours, atol=1e-5, rtol=0)


def test_parameters_are_unet_and_tokens_and_nothing_else() -> None:
    m = model()
    assert {n.split(".")[0] for n, _ in m.named_parameters()} == {"unet", "tokens"}
    assert all(p.requires_grad for p in m.parameters())
    m.bfloat16()
    assert m.schedule.alpha_bar.dtype == torch.float64


def test_encoders_must_be_the_presets() -> None:
    with pytest.raises(InputError, match="arcface"):
        DiffSFSR.from_preset(TINY, {"arcface": 512})


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        DiffSFSR.from_folder(tmp_path)


def test_it_fits_four_items_that_only_their_tokens_tell_apart() -> None:
    """Same z_t, t and scene for all four: only through the tokens can the targets be told apart."""
    m = model().train()
    given = inputs(4)
    same = {k: given[k][:1].expand(4, *[-1] * (given[k].ndim - 1)).clone() for k in ("z_t", "t", "condition")}
    target = torch.randn(4, 4, 1, 1, generator=torch.Generator().manual_seed(5)).expand(4, 4, 8, 8)
    unexplained = float((target - target.mean(0)).square().mean())
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3)
    losses = []
    for _ in range(150):
        loss = (m(**(given | same)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10 and losses[-1] < unexplained / 10, (losses[0], losses[-1], unexplained)


def test_gradients_reach_scene_tokens_and_null_tokens() -> None:
    m, given = model(), inputs()
    m(**given, present=torch.tensor([[True, False], [False, True]])).square().mean().backward()
    for p in (m.unet.conv_in.weight, m.tokens.null, m.tokens.mlps["dlib"][0].weight, m.tokens.mlps["expression"][0].weight):
        assert isinstance(p.grad, Tensor) and float(p.grad.abs().sum()) > 0
