"""What a training costs: FLOP by hand and by torch's own counter, bytes by autograd's own hooks, ZeRO's by the real engine.

Run as a script under torchrun, this file is what the ranks of `test_bytes_are_those_of_the_real_engine` execute."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffsfsr import config, presets
from diffsfsr.config import Preset
from diffsfsr.errors import InputError
from diffsfsr.training import cost, parts
from diffsfsr.training.cost import Estimate
from diffsfsr.training.measure import Work, measure, weightless
from pipelines import cli, costs

ROOT = Path(__file__).resolve().parents[1]


def preset(name: str = "tiny", **changes: Any) -> Preset:
    return config.override(presets.preset(name), {key.replace("__", "."): value for key, value in changes.items()})


def real_network(p: Preset) -> tuple[nn.Module, Any]:
    from diffusers.models.attention_processor import AttnProcessor2_0

    from diffsfsr.model.unet import DiffSFSR

    torch.manual_seed(0)
    network = DiffSFSR.from_preset(p, {"dlib": 128})
    network.unet.set_attn_processor(AttnProcessor2_0())

    def call(batch: int) -> Tensor:
        shape = (batch, p.autoencoder.channels, p.latent, p.latent)
        condition = torch.randn(batch, shape[1] + 1, *shape[2:])
        return network(torch.randn(shape), torch.full((batch,), 3), condition, {"dlib": torch.randn(batch, 128)}, torch.randn(batch, 16))

    return network, call


# --- one network ------------------------------------------------------------------------------------------------------


def test_flop_and_bytes_of_layers_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    conv, linear, batch = 2 * 3 * 9 * 8 * 36, 2 * 8 * 36 * 5, 4
    with FakeTensorMode():
        trained = measure(weightless(net), lambda: net(torch.empty(batch, 3, 6, 6)), batch)
        frozen = measure(net.requires_grad_(False), lambda: net(torch.empty(batch, 3, 6, 6, requires_grad=True)), batch)
    assert trained.forward == frozen.forward == conv + linear
    assert trained.backward == conv + 2 * linear  # the picture wants no gradient: of the convolution only its weights do
    assert frozen.backward == conv + linear  # only what leads to the picture
    # What the linear layer multiplies by is the ReLU's output, which the ReLU keeps too; then the answer, and the picture.
    assert trained.kept == 4 * (8 * 36 + 5 + 3 * 36) and trained.fixed == 0
    assert frozen.kept == 4 * (8 * 36 + 5 + 3 * 36)
    assert frozen.recomputed().backward == conv + linear + frozen.forward and frozen.recomputed().kept == 0


def test_attention_counts_as_torchs_counter_counts_its_plain_form() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    network, call = real_network(preset())
    blank, blank_call = parts.network(preset(), again=False)
    with FakeTensorMode():
        made = measure(weightless(blank), lambda: blank_call(2), 2)
    network.unet.set_attn_processor(AttnProcessor())
    with FlopCounterMode(display=False) as counter:
        call(2)
    assert made.forward == counter.get_total_flops() / 2
    assert 1.9 < made.backward / made.forward < 2.1


class Saved:
    """Storages that autograd saves for the way back, but for the parameters' own."""

    def __init__(self, net: nn.Module) -> None:
        self.own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
        self.kept: dict[int, tuple[int, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_activations_are_what_a_real_forward_saves(half: torch.dtype | None) -> None:
    network, call = real_network(preset())
    saved = Saved(network)
    with (
        torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x),
        torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None),
    ):
        answer = call(3)
    bytes_ = sum(n for n, _ in saved.kept.values())
    real = measure(network, lambda: call(3), 3, half)
    assert real.fixed + 3 * real.kept == pytest.approx(bytes_ + answer.untyped_storage().nbytes(), rel=0.01)
    assert real.peak > real.kept and (real.fixed > 0) == (half is not None)
    if half:
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert real.fixed == pytest.approx(sum(2 * m.weight.numel() for m in layers), rel=0.01)
    else:
        twin, blank = parts.network(preset(training__precision="fp32"), again=False)
        with FakeTensorMode():
            assert measure(weightless(twin), lambda: blank(3), 3) == real  # without memory as with it


def test_checkpointing_keeps_less_and_computes_more() -> None:
    found: dict[bool, Work] = {}
    for again in (False, True):
        net, call = parts.network(preset(), again)
        with FakeTensorMode():
            found[again] = measure(weightless(net), lambda call=call: call(4), 4)
    plain, again = found[False], found[True]
    assert again.kept < 0.35 * plain.kept and again.peak < 0.8 * plain.peak
    assert again.forward == plain.forward and plain.backward + 0.6 * plain.forward < again.backward <= plain.backward + plain.forward


def test_half_precision_normalises_in_float32_as_cuda_does() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    with FakeTensorMode():
        made = measure(weightless(net), lambda: net(torch.empty(1, 4, 16, 16)), 1, torch.bfloat16)
    each = 4 * 256
    # The picture in half, the first convolution in float32, the normalised one in half, the answer in half; what no way back needs is
    # gone: the first convolution in half and the normalised one in float32.
    assert made.kept == pytest.approx(2 * each + 4 * each + 2 * each + 2 * each, rel=0.01)
    assert made.fixed == 2 * 2 * 16


# --- a step -----------------------------------------------------------------------------------------------------------


def test_the_fullest_moment_is_that_of_one_real_chain() -> None:
    """Two networks behind each other, measured as one, against the sum of their parts."""
    first = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())))
    second = nn.Sequential(
        nn.Conv2d(4, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 3, 3, padding=1)
    )
    with FakeTensorMode():
        chain = nn.Sequential(weightless(first), weightless(second))
        whole = measure(chain, lambda: chain(torch.empty(5, 4, 32, 32)), 5)
        one = measure(first, lambda: first(torch.empty(5, 4, 32, 32)), 5)
        other = measure(second, lambda: second(torch.empty(1, 4, 32, 32, requires_grad=True)), 1)
    assert cost.fullest([(one, 5), (other, 5)]) == pytest.approx(5 * whole.peak, rel=0.05)
    late = Work(0, 0, 0, 1, 2)
    assert cost.fullest([(Work(0, 0, 10, 3, 100), 2), (late, 4)]) == 10 + 200  # after the second has let go
    assert cost.fullest([(Work(0, 0, 10, 3, 4), 2), (late, 4)]) == 10 + 6 + 8


@pytest.mark.parametrize(("fraction", "most"), [(0.5, 1000), (0.5, 300), (0.25, 600), (1.0, 200), (0.0, 1000)])
def test_carriers_are_those_that_the_objective_picks(fraction: float, most: int) -> None:
    from diffsfsr.training.objectives import DiffusionObjective

    p = preset(training__batch=8, objective__aux_fraction=fraction, objective__aux_max_t=most)
    objective = DiffusionObjective.__new__(DiffusionObjective)
    objective.preset = p
    counts = [len(objective._carriers(torch.from_numpy(t))) for t in np.random.default_rng(0).integers(1, 1001, (4000, 8))]
    if fraction == 0:
        assert cost.carriers_at_most(p) == 0 == cost.carriers_expected(p)
    else:
        assert max(counts) <= cost.carriers_at_most(p) == len(objective._carriers(torch.ones(8)))
        assert cost.carriers_expected(p) == pytest.approx(np.mean(counts), rel=0.03)


def test_carriers_of_a_large_batch() -> None:
    """E[min(n, N/2)] of N tosses of a coin is N/2 less half their mean deviation (de Moivre): N C(N, N/2) / 2^(N+2)."""
    p = preset(training__batch=4096, objective__aux_fraction=0.5, objective__aux_max_t=500)
    assert cost.carriers_expected(p) == pytest.approx(2048 - float(Fraction(4096 * math.comb(4096, 2048), 2**4098)), rel=1e-9)


@pytest.mark.parametrize("name", ["tiny", "lab"])
def test_parameters_are_those_of_the_real_networks(name: str, request: pytest.FixtureRequest) -> None:
    from diffsfsr.encoders import load_encoder
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.unet import DiffSFSR
    from diffsfsr.weights import resolve

    if name == "lab":
        request.getfixturevalue("weights_dir")
    p = preset(name)
    encoders: dict[str, Any] = {each: load_encoder(each) for each in p.conditioning.identity}
    model = DiffSFSR.from_preset(p, {each: encoder.dim for each, encoder in encoders.items()})
    dln = Dln.from_identity(resolve("dlib-face"), p.dln.dim)
    real = {"unet": model.unet, "tokens": model.tokens, "autoencoder": LatentAutoencoder.from_config_row(p.autoencoder), "dln": dln}
    expected = {each: sum(q.numel() for q in net.parameters()) for each, net in real.items()}
    for each, encoder in encoders.items():
        weights = [q.numel() for q in encoder.parameters()] or [b.numel() for b in encoder.buffers() if b.is_floating_point()]
        expected[each] = sum(weights)
    found = Estimate(p).cost()
    assert {n.name: n.parameters for n in found.networks} == expected
    assert {n.name for n in found.networks if n.trained} == {"unet", "tokens"}
    assert found.memory.weights == 4 * (expected["unet"] + expected["tokens"])
    assert found.memory.frozen == 4 * sum(count for each, count in expected.items() if each not in ("unet", "tokens"))


def test_each_choice_moves_what_it_should() -> None:
    found: dict[str, dict[Any, Any]] = {}
    estimate = Estimate(preset(training__batch=8, training__processes=4, autoencoder__channels=8, autoencoder__width=64))
    own = estimate.cost()
    for choice in estimate.choices():
        found.setdefault(choice.setting, {})[choice.value] = choice.cost or choice.refused
        if choice.own:
            assert choice.cost == own
    fraction = found["objective.aux_fraction"]
    assert [fraction[x].flop for x in (0.0, 0.25, 0.5, 1.0)] == sorted({c.flop for c in fraction.values()})
    assert [fraction[x].memory.activations for x in (0.0, 0.25, 0.5, 1.0)] == sorted({c.memory.activations for c in fraction.values()})
    assert set(fraction[0.0].step) == {"unet"}
    assert found["objective.aux_max_t"][250].flop < found["objective.aux_max_t"][1000].flop
    assert found["objective.aux_max_t"][250].memory == found["objective.aux_max_t"][1000].memory  # every t of a batch may be small
    decoder = found["objective.loss_decoder"]
    assert decoder["small"].flop < decoder[""].flop and "loss decoder small" in {n.name for n in decoder["small"].networks}
    assert isinstance(decoder["vaelight_decoder"], str)  # it is for four channels
    midpoint = found["objective.midpoint"]
    assert midpoint["one-step"].flop < midpoint["original"].flop == midpoint["improved"].flop
    assert midpoint["one-step"].memory.activations < midpoint["original"].memory.activations
    again = found["training.gradient_checkpointing"]
    assert again[True].memory.activations < again[False].memory.activations and again[True].flop > 1.2 * again[False].flop
    stages = [found["training.zero_stage"][stage].memory for stage in range(4)]
    assert [m.optimizer for m in stages] == [2 * stages[0].weights, *[3 * stages[0].weights // 4] * 3]
    assert stages[3].weights == stages[0].weights // 4 == stages[2].gradients


def test_offload_moves_bytes_to_the_host() -> None:
    away = {
        where: cost.memory(preset(training__zero_stage=3, training__offload=where).training, 100, 10, 7)
        for where in ("none", "optimizer", "all")
    }
    assert away["none"].host == 0
    assert away["optimizer"].host == away["none"].optimizer + away["none"].gradients and away["optimizer"].weights == away["none"].weights
    assert away["optimizer"].optimizer == away["optimizer"].gradients == 0
    assert away["all"].host == away["optimizer"].host + away["none"].weights and away["all"].weights == 0
    assert away["all"].activations == 7 and away["all"].frozen == 40


def test_the_papers_size_is_what_stable_diffusion_is_known_for() -> None:
    """On a machine without its weights; the figures are those of SD-1.4 at 64 x 64 latents, 2 FLOP a multiply-add."""
    estimate = Estimate(preset("paper", training__batch=1))
    found = estimate.cost()
    parameters = {n.name: n.parameters for n in found.networks}
    assert parameters["unet"] == 859_520_964 + 9 * 4 * 320  # conv_in, widened by four channels
    assert parameters["autoencoder"] == 83_653_863
    assert estimate._unet(False)[1].forward == pytest.approx(803e9, rel=0.01)  # 77 words are 4 tokens here
    assert estimate._decoder("")[1].forward == pytest.approx(2.5e12, rel=0.02)
    absent = {n.name: n.absent for n in found.networks if n.absent}
    assert all("weights" in why for why in absent.values()) and set(absent) <= {"w600k_r50"}
    assert found.sample > 51 * 790e9 + 2.5e12 + 1.1e12  # PNDM's 51 calls, decoder and encoder


def test_other_trainings_have_no_such_table() -> None:
    with pytest.raises(InputError, match="autoencoder"):
        Estimate(preset("ae-tiny"))


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_training_costs(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", "train", "--dry-run", "--preset", "tiny", "--set", "training.batch=8"]
    assert cli.main([*words, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    own = Estimate(preset(training__batch=8)).cost()
    assert shown["preset"]["training"]["batch"] == 8
    assert shown["cost"]["bytes_per_gpu"]["total"] == own.memory.total and shown["cost"]["flop_per_image"]["total"] == own.flop
    rows = {(row["setting"], row["value"]): row for row in shown["cost"]["choices"]}
    assert rows["training.zero_stage", 1]["own"] and rows["training.zero_stage", 1]["bytes_relative"] == 1
    assert cli.main(words) == 0
    text = capfd.readouterr().out
    assert "zero_stage=3" in text and "* training.zero_stage=1" in text and f"{own.networks[0].parameters:,}" in text
    assert cli.main(["run", "train", "--dry-run", "--preset", "ae-tiny"]) == 0
    assert "cost" not in capfd.readouterr().out


def test_what_does_not_fit_the_card_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    p = preset()
    found = costs.estimate(p)
    for card, said in ((found["bytes_per_gpu"]["total"] - 1, True), (found["bytes_per_gpu"]["total"], False)):
        assert ("does NOT fit" in costs.table(found | {"gpu_bytes": card}, p.training)) == said
    assert "a GPU here has" not in costs.table(found | {"gpu_bytes": None}, p.training)


# --- the real engine --------------------------------------------------------------------------------------------------

ENGINES = [(0, 1), (1, 1), (1, 2), (2, 2), (3, 1)]  # ZeRO stage, micro batches in a step


@pytest.mark.slow
def test_bytes_are_those_of_the_real_engine(tmp_path: Path) -> None:
    """Two ranks, each stage: what the engine holds after a way back and after a step."""
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*run, __file__, str(tmp_path / "held.json")], env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    for (stage, accumulation), held in zip(ENGINES, json.loads((tmp_path / "held.json").read_text()), strict=True):
        found = cost.memory(_engine_preset(stage, accumulation).training, held["trained"], 0, 0)
        assert found.optimizer == pytest.approx(held["moments"] + held["masters"], rel=0.001), stage
        assert found.gradients == pytest.approx(held["gradients"], rel=0.01), (stage, accumulation)  # DeepSpeed aligns parts
        assert found.weights == pytest.approx(held["weights"], rel=0.001), stage
        assert found.communication == pytest.approx(held["bucket"] + held["gathered"], rel=0.001), stage


def _engine_preset(stage: int, accumulation: int) -> Preset:
    settings = {"training__zero_stage": stage, "training__accumulation": accumulation, "training__processes": 2}
    return preset(**settings, training__channels_last=False)


def _held(stage: int, accumulation: int) -> tuple[int, dict[str, int]]:
    from diffsfsr.training.launch import DeepSpeedEngine

    p = _engine_preset(stage, accumulation)
    network, _ = real_network(p)
    trained = sum(q.numel() for q in network.parameters())
    engine = DeepSpeedEngine(network, p)
    zero = engine.engine.optimizer
    latent, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)

    def back() -> None:
        engine.backward(engine(latent, torch.tensor([3, 4]), condition, {"dlib": torch.randn(2, 128)}, torch.randn(2, 16)).square().mean())

    for _ in range(accumulation):
        back()
        engine.step(1e-3)
    back()
    held = {
        "trained": trained,
        "bucket": 4 * zero.reduce_bucket_size if stage else 0,
        "masters": _bytes(getattr(zero, "single_partition_of_fp32_groups", None) or getattr(zero, "fp32_partitioned_groups_flat", [])),
        "weights": 4 * sum(getattr(q, "ds_tensor", q).numel() for q in network.parameters()),
        "gathered": 4 * sum(q.numel() for q in network.parameters()) if stage == 3 else 0,
        "gradients": _bytes([q.grad for q in network.parameters()])
        + _bytes([getattr(zero, name, None) for name in ("averaged_gradients", "all_grad_tensors")]),
    }
    base = getattr(zero, "optimizer", zero)
    held["moments"] = _bytes([v for state in base.state.values() for v in state.values() if v.numel() > 1])
    return engine.rank, held


def _bytes(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tree_leaves(tensors) if isinstance(t, Tensor)}
    return sum(storages.values())


if __name__ == "__main__":
    made = [_held(*each) for each in ENGINES]
    if made[0][0] == 0:
        Path(sys.argv[1]).write_text(json.dumps([held for _, held in made]))
