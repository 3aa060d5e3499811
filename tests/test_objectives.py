"""What each network is trained to do: where its losses count, what they send back, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsfsr import config, presets
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady
from diffsfsr.model.diffusion import NoiseSchedule, add_noise, posterior_jump
from diffsfsr.training import losses
from diffsfsr.training.data import Batch, Position
from diffsfsr.training.objectives import AutoencoderObjective, DiffusionObjective, ExpressionObjective
from diffsfsr.training.run import Inputs

STILL = {"conditioning__slot_dropout": 0.0, "conditioning__drop_all": 0.0, "sampling__guidance": 1.0}  # nothing dropped
ROWS = 9
ABSENT = 4  # this row has no identity


def preset(**changes: Any) -> Preset:
    basis = {"training__batch": 6, "objective__aux_fraction": 0.5}
    return synthetic.small({name.replace("__", "."): value for name, value in (basis | changes).items()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> Inputs:
    landmarks = synthetic.faces(astronaut, preset().crop)[0].crop_landmarks
    rows = synthetic.training_rows(preset(), ROWS, landmarks, people=3)
    rows[ABSENT]["id_dlib"] = None
    return synthetic.diffusion_inputs(tmp_path_factory.mktemp("inputs"), preset(), rows)


@pytest.fixture
def build(inputs: Inputs) -> Callable[..., DiffusionObjective]:
    def build_one(**changes: Any) -> DiffusionObjective:
        torch.manual_seed(0)
        return DiffusionObjective(preset(**changes), inputs)

    return build_one


def at(step: int = 0) -> Position:
    return Position(step, 0, 0, 1, 1, 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clone(batch: Batch) -> Batch:
    return {name: value.clone() for name, value in batch.items()}


class Watch:
    """A network that notes what it is called with and answers with another's output, or with zeros."""

    def __init__(self, network: Any = None) -> None:
        self.network, self.calls = network, list[dict[str, Any]]()

    def __call__(self, z_t: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        self.calls.append({"z_t": z_t, "t": t, **conditions})
        return torch.zeros_like(z_t) if self.network is None else self.network(z_t, t, **conditions)


def test_before_aux_from_l_dm_stands_alone(build: Callable[..., DiffusionObjective]) -> None:
    objective = build(objective__aux_from=0.5, objective__p_self=0.0, training__steps=20)
    early, late = objective.draw(at(9)), objective.draw(at(10))
    assert not early["cross"].any() and late["cross"].all()
    network = Watch()
    assert set(objective.losses(network, early, generator())) == {"loss", "loss_dm"} and len(network.calls) == 1
    assert set(objective.losses(network, late, generator())) == {"loss", "loss_dm", "loss_id", "loss_exp"} and len(network.calls) == 3


# --- L_DM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_face_of_a_cross_triplet_is_no_target(build: Callable[..., DiffusionObjective], prediction: str) -> None:
    changes = {"schedule__prediction": prediction, "schedule__zero_terminal_snr": False}
    objective = build(objective__lambda_id=0.0, objective__lambda_exp=0.0, **changes)
    batch = objective.draw(at())
    batch["cross"] = torch.tensor([0.0, 1.0] * 3)

    def loss(change: Tensor) -> Tensor:
        """v's target moves with the latent; eps is drawn, so there the answer moves away from it."""
        moves = prediction == "v_prediction"
        given = batch | {"latent": batch["latent"] + change * moves}
        return objective.losses(lambda z_t, t, **conditions: change * (not moves), given, generator())["loss_dm"]

    mask = batch["mask"].expand_as(batch["latent"])
    still, face, background = loss(0 * mask), loss(3 * mask), loss(3 * (1 - mask))
    cross = batch["cross"] == 1
    assert torch.equal(face[cross], still[cross]) and bool((face[~cross] != still[~cross]).all())
    assert bool((background != still).all())


@pytest.mark.parametrize("features", [1.0, 5.0])
def test_l_dm_is_the_weighted_square_by_hand(build: Callable[..., DiffusionObjective], features: float) -> None:
    """Eq. 1 and v written out in numpy float64, at the t and eps that the generator gives."""
    objective = build(objective__lambda_id=0.0, objective__lambda_exp=0.0, objective__feature_weight=features)
    batch = objective.draw(at())
    batch["cross"] = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    watch = Watch()
    terms = objective.losses(watch, batch, generator(4))
    g = generator(4)
    t = torch.randint(1, 1001, (6,), generator=g)
    eps = torch.randn(batch["latent"].shape, generator=g).double().numpy()
    root = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.sqrt(np.cumprod(1 - root))
    alpha = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2  # zero terminal SNR
    a = alpha[t.numpy() - 1].reshape(-1, 1, 1, 1)
    z_0, mask = batch["latent"].double().numpy(), batch["mask"].double().numpy()
    weight = np.where(batch["cross"].numpy().reshape(-1, 1, 1, 1) == 1, 1 - mask, 1.0)
    seen = losses.facial_features(batch["landmarks"], 8 * mask.shape[-1], mask.shape[-1]).numpy()
    weight = weight * (1 + (features - 1) * seen)
    v = np.sqrt(a) * eps - np.sqrt(1 - a) * z_0
    expected = ((v**2).mean(1, keepdims=True) * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    np.testing.assert_allclose(terms["loss_dm"].numpy(), expected, rtol=1e-5)
    assert torch.equal(terms["loss"], terms["loss_dm"]) and set(terms) == {"loss", "loss_dm"}
    (call,) = watch.calls
    np.testing.assert_allclose(call["z_t"].numpy(), np.sqrt(a) * z_0 + np.sqrt(1 - a) * eps, atol=1e-5)
    assert torch.equal(call["t"], t)
    assert torch.equal(call["condition"], torch.cat([batch["masked"], batch["mask"]], 1))


# --- L_id and L_exp ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("midpoint", "calls"), [("improved", 2), ("original", 2), ("one-step", 1)])
def test_the_network_is_called_no_more_than_it_must(build: Callable[..., DiffusionObjective], midpoint: str, calls: int) -> None:
    objective = build(objective__midpoint=midpoint, objective__aux_max_t=600, **STILL)
    watch, batch = Watch(objective.network), objective.draw(at())
    objective.losses(watch, batch, generator(1))
    assert len(watch.calls) == calls and len(watch.calls[0]["t"]) == 6
    if calls == 2:
        first, second = watch.calls
        carriers = torch.nonzero(first["t"] <= 600).flatten()[:3]
        assert 0 < len(carriers) <= 3 and torch.equal(second["t"], first["t"][carriers] // 2)
        for name in ("condition", "expression", "present"):
            assert torch.equal(second[name], first[name][carriers])
        assert torch.equal(second["identity"]["dlib"], first["identity"]["dlib"][carriers])


def test_the_midpoint_is_section_3_3s(build: Callable[..., DiffusionObjective]) -> None:
    """Without noise the second call stands at the mean of the posterior at floor(t / 2), from the first call's estimate."""
    objective = build(objective__midpoint_noise=False, **STILL)
    watch, batch = Watch(objective.network), objective.draw(at())
    with torch.no_grad():
        objective.losses(watch, batch, generator(1))
        first, second = watch.calls
        n = len(second["t"])
        carriers = torch.nonzero(first["t"] <= preset().objective.aux_max_t).flatten()[:n]
        schedule = NoiseSchedule.from_config(preset().schedule)
        v = objective.network(**first)[carriers]
        z_t, t = first["z_t"][carriers], first["t"][carriers]
        a = schedule.at(t)
        mean, _ = posterior_jump(a.sqrt().float() * z_t - (1 - a).sqrt().float() * v, z_t, t, t // 2, schedule)
    torch.testing.assert_close(second["z_t"], mean, rtol=1e-4, atol=1e-5)


def test_where_no_item_can_carry_the_network_is_called_as_often_for_nothing(build: Callable[..., DiffusionObjective]) -> None:
    objective = build(objective__aux_max_t=1)
    watch, batch = Watch(objective.network), objective.draw(at())
    terms = objective.losses(watch, batch, generator())
    assert [len(call["t"]) for call in watch.calls] == [6, 1] and bool((watch.calls[0]["t"] > 1).all())
    assert torch.equal(terms["loss"], terms["loss_dm"]) and len(terms["loss_id"]) == len(terms["loss_exp"]) == 0


def test_the_terms_are_the_experts_own_words(build: Callable[..., DiffusionObjective]) -> None:
    """L_id and L_exp against the experts called by hand on the decoded estimate; an absent identity is not asked for."""
    changes = {"objective__midpoint": "one-step", "objective__aux_fraction": 1.0, "objective__aux_max_t": 999}
    objective = build(**changes, **STILL)
    batch = next(b for b in map(objective.draw, map(at, range(50))) if not b["present"].all() and b["present"].any())
    with torch.no_grad():
        watch = Watch(objective.network)
        terms = objective.losses(watch, batch, generator(2))
        call = watch.calls[0]
        output = objective.network(**call)
        a = objective.network.schedule.at(call["t"]).float()
        face = objective.autoencoder.decode(a.sqrt() * call["z_t"] - (1 - a).sqrt() * output)
        who, how = objective.identity["dlib"](face, batch["landmarks"]), objective.dln(face, batch["landmarks"])
    there, mean = batch["present"][:, 0], objective.data.means()["dlib"]
    cosine = F.cosine_similarity(who[there] - mean, batch["id_dlib"][there] - mean)
    torch.testing.assert_close(terms["loss_id"], 1 - cosine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_exp"], (how - batch["expression"]).square().mean(1), rtol=1e-4, atol=1e-5)
    o = preset().objective
    expected = terms["loss_dm"] + o.lambda_id * (1 - cosine).mean() + o.lambda_exp * terms["loss_exp"].mean()
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-5, atol=1e-6)


def test_the_perceptual_loss_is_of_self_triplets_and_their_own_faces(build: Callable[..., DiffusionObjective]) -> None:
    """Against the layers looked through by hand; a network that knows the answer has none; a cross triplet has no answer."""
    changes = {"objective__midpoint": "one-step", "objective__aux_fraction": 1.0, "objective__aux_max_t": 999}
    plain, objective = (build(objective__lambda_perceptual=weight, **changes, **STILL) for weight in (0.0, 0.7))
    objective.network.load_state_dict(plain.network.state_dict())
    batch = plain.draw(at())
    batch["cross"] = torch.tensor([0.0, 1.0] * 3)
    with torch.no_grad():
        watch = Watch(plain.network)
        without, terms = (o.losses(watch, batch, generator(2)) for o in (plain, objective))
        call = watch.calls[0]
        a = plain.network.schedule.at(call["t"]).float()
        made = a.sqrt() * call["z_t"] - (1 - a).sqrt() * plain.network(**call)
        faces = (objective.autoencoder.decode(z) for z in (made, batch["latent"]))
        layers = [objective.identity["dlib"].look(face, batch["landmarks"])[1:] for face in faces]
        expected = losses.perceptual_loss(*layers)[batch["cross"] == 0]
        known = (a.sqrt() * call["z_t"] - batch["latent"]) / (1 - a).sqrt()
        right = objective.losses(lambda z_t, t, **conditions: known, batch, generator(2))["loss_perceptual"]
    torch.testing.assert_close(terms["loss_perceptual"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(terms["loss"], without["loss"] + 0.7 * expected.mean(), rtol=1e-4, atol=1e-5)
    assert "loss_perceptual" not in without and float(right.abs().max()) < 1e-5 < float(expected.min())


def test_an_encoder_that_an_item_lacks_does_not_count_for_it() -> None:
    """Two encoders, cosines 0 and -1: both, the first, the second, none."""
    pred = {"a": torch.tensor([[1.0, 0.0]] * 4), "b": torch.tensor([[0.0, 2.0]] * 4)}
    ref = {"a": torch.tensor([[0.0, 1.0]] * 4), "b": torch.tensor([[0.0, -1.0]] * 4)}
    present = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, True, False])}
    assert losses.identity_loss(pred, ref, present=present).tolist() == [1.5, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("name", ["loss_id", "loss_exp", "loss_perceptual"])
def test_gradients_reach_the_unet_and_are_right(build: Callable[..., DiffusionObjective], name: str) -> None:
    """Against the finite difference along the gradient itself, through midpoint, decoder and expert; the experts stay frozen."""
    objective = build(objective__aux_fraction=1.0, objective__lambda_perceptual=1.0, **STILL)
    batch, network = objective.draw(at()), objective.network

    def loss() -> Tensor:
        return objective.losses(network, batch, generator(1))[name].mean()

    loss().backward()
    gradient = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    reached = {n for n, g in gradient.items() if float(g.abs().max()) > 0}
    assert {"unet.conv_in.weight", "unet.conv_out.weight", "unet.mid_block.resnets.0.conv1.weight"} <= reached
    assert any(n.startswith("tokens.mlps.dlib") for n in reached) and any(n.startswith("tokens.mlps.expression") for n in reached)
    for frozen in (objective.autoencoder, objective.dln, *objective.identity.values()):
        assert not frozen.training and all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    length = float(torch.sqrt(sum(g.square().sum() for g in gradient.values())))
    step = 4e-3 / length

    def moved(by: float) -> float:
        with torch.no_grad():
            for n, p in network.named_parameters():
                if n in gradient:
                    p.add_(by * gradient[n])
            value = float(loss())
            for n, p in network.named_parameters():
                if n in gradient:
                    p.sub_(by * gradient[n])
        return value

    slope = (moved(step) - moved(-step)) / (2 * step)
    assert slope == pytest.approx(length**2, rel=0.05)


def test_bf16_is_near_fp32_and_learns(build: Callable[..., DiffusionObjective]) -> None:
    objective = build(objective__aux_fraction=1.0)
    batch, seen = objective.draw(at()), []
    hook = objective.network.unet.conv_in.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    full = objective.losses(objective.network, batch, generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.losses(objective.network, batch, generator(1))
    hook.remove()
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.05, atol=0.05)
    half["loss"].mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.network.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_no_gradient(build: Callable[..., DiffusionObjective], monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder and each expert run once more on the way back; loss and gradients are those of the plain step."""
    found, calls = [], []
    for checkpointing in (False, True):
        objective = build(objective__aux_fraction=1.0, training__gradient_checkpointing=checkpointing)
        count = dict.fromkeys(("decoder", "dln", "dlib"), 0)

        def counted(name: str, function: Callable[..., Tensor], count: dict[str, int] = count) -> Callable[..., Tensor]:
            def call(*given: Tensor) -> Tensor:
                count[name] += 1
                return function(*given)

            return call

        monkeypatch.setattr(objective.decoder, "decode", counted("decoder", objective.decoder.decode))
        monkeypatch.setattr(objective.dln, "forward", counted("dln", objective.dln.forward))
        monkeypatch.setattr(objective.identity["dlib"], "forward", counted("dlib", objective.identity["dlib"].forward))
        terms = objective.losses(objective.network, objective.draw(at()), generator(1))
        before = dict(count)
        terms["loss"].mean().backward()
        calls.append((before, count))
        found.append((terms["loss"].detach(), {n: p.grad for n, p in objective.network.named_parameters() if p.grad is not None}))
    once, twice = (dict.fromkeys(("decoder", "dln", "dlib"), n) for n in (1, 2))
    assert calls == [(once, once), (once, twice)]
    (plain, gradients), (again, others) = found
    assert torch.equal(plain, again) and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("aux_max_t", [30, 600])
def test_every_rank_and_micro_batch_calls_the_network_as_often(build: Callable[..., DiffusionObjective], aux_max_t: int) -> None:
    """With ZeRO-3 a rank that calls less waits for ever. And never do more items carry the face losses than their share."""
    objective = build(objective__aux_max_t=aux_max_t, objective__aux_fraction=0.34)
    with torch.no_grad():
        for step, micro, rank in np.ndindex(2, 2, 3):
            watch, place = Watch(), Position(step, micro, rank, 3, 2, 0)
            terms = objective.losses(watch, objective.draw(place), place.generator())
            first, second = watch.calls
            allowed = int((first["t"] <= aux_max_t).sum())
            assert len(second["t"]) == max(1, min(2, allowed)) and len(terms["loss_exp"]) <= min(2, allowed)
            assert bool((second["t"] <= max(1, aux_max_t // 2)).all())


def test_min_snr_weighs_l_dm_alone(build: Callable[..., DiffusionObjective]) -> None:
    plain, weighed = build(**STILL), build(objective__min_snr=5.0, **STILL)
    with torch.no_grad():
        watch, batch = Watch(plain.network), plain.draw(at())
        before = plain.losses(watch, batch, generator(1))
        after = weighed.losses(weighed.network, batch, generator(1))
    for name in ("loss_dm", "loss_id", "loss_exp"):
        assert torch.equal(before[name], after[name])
    a = plain.network.schedule.alpha_bar[watch.calls[0]["t"]]
    weight = torch.minimum(a / (1 - a), torch.tensor(5.0)) / (a / (1 - a) + 1)
    torch.testing.assert_close(after["loss"] - before["loss"], ((weight - 1) * before["loss_dm"]).float(), rtol=1e-4, atol=1e-6)


def test_the_small_decoder_is_what_the_losses_look_through(
    build: Callable[..., DiffusionObjective], inputs: Inputs, tmp_path: Path
) -> None:
    from diffsfsr.model.decoder import LossDecoder

    row = preset(objective__loss_decoder="small", objective__aux_fraction=1.0)
    with pytest.raises(NotReady, match=r"the decoder of preset tiny is missing at \(nowhere\)"):
        DiffusionObjective(row, inputs)
    torch.manual_seed(3)
    LossDecoder(row.autoencoder.channels).save_pretrained(tmp_path)
    torch.manual_seed(0)
    objective = DiffusionObjective(row, replace(inputs, decoder=str(tmp_path)))
    plain, seen = build(objective__aux_fraction=1.0), []
    hook = objective.decoder.layers[0].register_forward_hook(lambda module, given, made: seen.append(given[0]))
    monkey = objective.autoencoder.net.decoder.register_forward_hook(lambda *called: pytest.fail("the autoencoder's decoder was called"))
    batch = objective.draw(at())
    terms, others = (o.losses(o.network, batch, generator(1)) for o in (objective, plain))
    hook.remove(), monkey.remove()
    assert len(seen) == 1 and seen[0].requires_grad
    assert torch.equal(terms["loss_dm"], others["loss_dm"]) and not torch.allclose(terms["loss_exp"], others["loss_exp"])
    terms["loss_exp"].mean().backward()
    assert float(objective.network.unet.conv_in.weight.grad.abs().max()) > 0
    assert all(p.grad is None and not p.requires_grad for p in objective.decoder.parameters())


# --- conditions -------------------------------------------------------------------------------------------------------


def test_an_absent_slot_holds_its_null_token(build: Callable[..., DiffusionObjective]) -> None:
    objective = build(objective__lambda_id=0.0, objective__lambda_exp=0.0, **STILL)
    batch, made = objective.draw(at()), []
    batch["present"] = torch.tensor([[True], [False]] * 3)
    network = objective.network
    hook = network.tokens.register_forward_hook(lambda module, given, tokens: made.append(tokens))
    before = objective.losses(network, batch, generator())["loss_dm"]
    changed = clone(batch)
    changed["id_dlib"] = torch.randn(6, 128)
    after = objective.losses(network, changed, generator())["loss_dm"]
    hook.remove()
    there = batch["present"][:, 0]
    null = network.tokens.null[0].expand(3, -1)
    assert torch.equal(made[0][~there, 0], null) and not torch.equal(made[0][there, 0], null)
    assert not torch.isclose(made[0][:, 1], network.tokens.null[1]).all(1).any()
    assert torch.equal(before[~there], after[~there]) and bool((before[there] != after[there]).all())


def test_the_expression_is_told_as_the_scenes_head_shows_it(build: Callable[..., DiffusionObjective]) -> None:
    objective, watch = build(objective__lambda_id=0.0, objective__lambda_exp=0.0, **STILL), Watch()
    objective.dln.drift.normal_(std=0.2, generator=generator())
    batch = objective.draw(at())
    objective.losses(watch, batch, generator())
    told = objective.dln.posed(batch["expression"], batch["landmarks"])
    assert torch.equal(watch.calls[0]["expression"], told) and not torch.isclose(told, batch["expression"]).all(1).any()


def test_a_segmentation_knows_nothing_of_the_scene(build: Callable[..., DiffusionObjective]) -> None:
    """Another scene under the same mask: the network's conditions are the same to the last bit, one channel, the mask itself."""
    changes = {"conditioning__background": "segmentation", "conditioning__mask_channel": False}
    objective = build(objective__lambda_id=0.0, objective__lambda_exp=0.0, **changes, **STILL)
    batch, watch = objective.draw(at()), Watch(objective.network)
    given = [batch, batch | {"masked": torch.randn_like(batch["masked"])}, batch | {"mask": 1 - batch["mask"]}]
    outputs = [objective.losses(watch, each, generator())["loss_dm"] for each in given]
    conditions = [call["condition"] for call in watch.calls]
    assert torch.equal(conditions[0], batch["mask"]) and conditions[0].shape[1] == 1
    assert torch.equal(conditions[1], conditions[0]) and torch.equal(outputs[1], outputs[0])
    assert torch.equal(conditions[2], 1 - batch["mask"])
    assert objective.network.unet.conv_in.in_channels == batch["latent"].shape[1] + 1


def test_slots_are_dropped_as_often_as_the_preset_says(build: Callable[..., DiffusionObjective]) -> None:
    changes = {"conditioning__slot_dropout": 0.3, "conditioning__drop_all": 0.2, "objective__lambda_id": 0.0, "objective__lambda_exp": 0.0}
    objective, watch = build(**changes), Watch()
    batch = objective.draw(at())
    batch["present"] = torch.tensor([[True]] * 5 + [[False]])
    for seed in range(400):
        objective.losses(watch, batch, generator(seed))
    present = torch.stack([call["present"] for call in watch.calls]).double()
    identity, expression = present[:, :5, 0], present[:, :, 1]
    for share, expected in [(identity, 0.7 * 0.8), (expression, 0.8)]:
        assert abs(float(share.mean()) - expected) < 5 * (expected * (1 - expected) / share.numel()) ** 0.5
    assert not present[:, 5, 0].any()
    assert not (identity.bool() & ~expression[:, :5].bool()).any()  # the expression goes only when all go
    assert batch["present"][:5].all()  # the batch itself is left as it was


# --- they learn -------------------------------------------------------------------------------------------------------


def learn(objective: Any, steps: int, lr: float, start: int = 0) -> list[dict[str, float]]:
    trainable = [p for p in objective.network.parameters() if p.requires_grad]
    optimizer, history = torch.optim.Adam(trainable, lr=lr), []
    for step in range(start, start + steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (start + steps - step) / steps)
        terms = objective.losses(objective.network, objective.draw(at(step)), at(step).generator())
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        history.append({name: float(value.detach().mean()) for name, value in terms.items() if value.numel()})
    return history


def test_it_overfits_four_triplets(tmp_path: Path, inputs: Inputs, astronaut: Path) -> None:
    """Noise and t are drawn anew at every step; what can be learned by heart is the four latents."""
    row = preset(training__batch=4, objective__lambda_id=0.0, objective__lambda_exp=0.0, objective__p_self=1.0, **STILL)
    rows = synthetic.training_rows(row, 4, synthetic.faces(astronaut, row.crop)[0].crop_landmarks)
    shard = synthetic.training_shard(tmp_path / "four.parquet", row, rows)
    torch.manual_seed(0)
    objective = DiffusionObjective(row, Inputs((str(shard),), "four", inputs.autoencoder, inputs.dln))
    history = [line["loss"] for line in learn(objective, 400, 4e-3)]
    assert np.mean(history[-20:]) < np.mean(history[:5]) / 10


def test_a_finished_model_is_a_pipeline_with_its_dln(build: Callable[..., DiffusionObjective], tmp_path: Path) -> None:
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.unet import DiffSFSR

    objective = build()
    objective.save(tmp_path)
    again = DiffSFSR.from_folder(tmp_path)
    state = objective.network.state_dict()
    assert again.state_dict().keys() == state.keys() and all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    torch.testing.assert_close(again.tokens.means()["dlib"], objective.data.means()["dlib"])
    assert Dln.load(tmp_path / "dln").version == objective.dln.version
    import json

    assert config.from_dict(json.loads((tmp_path / "preset.json").read_text())) == objective.preset
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    eps = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(add_noise(z_t, eps, t, again.schedule), add_noise(z_t, eps, t, objective.network.schedule))


def test_a_model_is_saved_with_what_glasses_do_to_whom_it_is_told_of(
    build: Callable[..., DiffusionObjective], tmp_path: Path, astronaut: Path, tom_hanks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nine faces of three people, six of which have a frame's bridge painted in; the one without an embedding does not count."""
    from diffsfsr.encoders import glasses
    from diffsfsr.face.glasses import wears_glasses

    objective = build()
    objective.save(tmp_path / "without")
    assert glasses.load(tmp_path / "without") == {}  # no crops, and too few faces
    bare = synthetic.faces(astronaut, 128)[0]
    worn = replace(bare, crop=bare.crop.copy())
    (left, right), y = bare.crop_landmarks[[36, 45], 0].astype(int), int(bare.crop_landmarks[27, 1])
    worn.crop[y : y + 2, left:right] = 20
    assert [wears_glasses(face.crop, face.crop_landmarks) for face in (bare, worn)] == [False, True]
    file = synthetic.face_shard(tmp_path / "faces.parquet", [worn, bare, worn] * 3, [""] * ROWS, ["p0", "p1", "p2"] * 3)
    objective.inputs = replace(objective.inputs, crops=(str(tmp_path / "gone.parquet"), str(file)))
    asked: list[tuple[Any, ...]] = []
    turned = np.arange(ROWS) % 2 == 0
    monkeypatch.setattr(glasses, "worn", lambda *given: asked.append(given) or turned)
    known = {"normal": torch.ones(128), "offset": torch.zeros(()), "shift": torch.ones(128)}
    monkeypatch.setattr(glasses, "told", lambda *given: asked.append(given) or glasses.Glasses(**known))
    objective.save(tmp_path / "model")
    (seen, seem, people), (vectors, wears, again) = asked
    assert seem.tolist() == [i % 3 != 1 for i in range(ROWS)] and people == again == [f"p{i % 3}" for i in range(ROWS)]
    assert wears is turned and list(seen) == list(objective.preset.recognisers) and vectors is seen["dlib"]
    assert np.isnan(vectors).all(1).tolist() == [i == ABSENT for i in range(ROWS)]
    np.testing.assert_array_equal(np.nan_to_num(vectors), objective.data.identity["dlib"].numpy())
    on = DiffusionObjective(preset(), replace(objective.inputs, start_from=str(tmp_path / "model"), crops=()))
    on.save(tmp_path / "on")  # a few people of one's own cannot tell it anew
    assert torch.equal(glasses.load(tmp_path / "on")["dlib"].shift, known["shift"]) and len(asked) == 2


def test_a_model_is_saved_with_where_brows_are(
    build: Callable[..., DiffusionObjective], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffsfsr.encoders import brows

    objective = build()
    objective.save(tmp_path / "few")
    assert brows.load(tmp_path / "few") is None  # too few faces to tell
    monkeypatch.setattr(brows, "_FEWEST", 5)
    objective.save(tmp_path / "model")
    known = brows.load(tmp_path / "model", objective.network.tokens.dims)
    rows = [i for i in range(ROWS) if i != ABSENT]
    data = objective.data
    wanted = brows.told(*(part.numpy()[rows] for part in (data.landmarks, data.expression)), {"dlib": data.identity["dlib"].numpy()[rows]})
    assert known is not None and wanted is not None
    assert all(torch.equal(known.moves[name], part) for name, part in wanted.moves.items())
    monkeypatch.setattr(brows, "told", lambda *given: pytest.fail("told anew"))
    on = DiffusionObjective(preset(), replace(objective.inputs, start_from=str(tmp_path / "model")))
    on.save(tmp_path / "on")  # a few people of one's own cannot tell it anew
    (tmp_path / "model" / brows.BROWS).write_bytes(b"short")
    with pytest.raises(InputError, match=r"is no whole model \(.*brows.safetensors"):
        DiffusionObjective(preset(), replace(objective.inputs, start_from=str(tmp_path / "model")))
    assert torch.equal(brows.load(tmp_path / "on").moves["expression"], known.moves["expression"])  # type: ignore[union-attr]


def test_missing_networks_say_what_to_do(inputs: Inputs) -> None:
    with pytest.raises(NotReady, match=r"the autoencoder of preset tiny is missing at \(nowhere\); run `diffsfsr run train` again"):
        DiffusionObjective(preset(), Inputs(inputs.shards, "x"))
    with pytest.raises(NotReady, match="the dln of preset tiny is missing at /no/where"):
        DiffusionObjective(preset(), Inputs(inputs.shards, "x", inputs.autoencoder, "/no/where"))


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, six_people: Path) -> Inputs:
    path = tmp_path_factory.mktemp("crops") / "faces.parquet"
    synthetic.face_shard(path, synthetic.faces(six_people, 64), ["joy", "anger"] * 3)
    return Inputs((str(path),), "six")


def test_the_autoencoder_learns(six_people: Path, tmp_path: Path) -> None:
    from diffsfsr.model.autoencoder import LatentAutoencoder

    torch.manual_seed(0)
    row = config.override(presets.preset("ae-tiny"), {"crop": 32, "training.batch": 6, "autoencoder.channels": 8})
    shard = synthetic.face_shard(tmp_path / "small.parquet", synthetic.faces(six_people, 32), ["joy"] * 6)
    objective = AutoencoderObjective(row, Inputs((str(shard),), "small"))
    history = learn(objective, 250, 2e-3)
    assert np.mean([line["psnr"] for line in history[-5:]]) > history[0]["psnr"] + 6
    with torch.no_grad():
        images = objective.crops.batch(np.arange(6))["images"]
        terms = objective.losses(objective.network, {"images": images}, generator())
        error = 127.5 * (objective.network(images) - images).double().numpy()
    np.testing.assert_allclose(terms["psnr"], decibels(error), rtol=1e-4)
    flat = decibels(127.5 * (images - images.mean((2, 3), keepdim=True)).double().numpy())
    assert terms["psnr"].mean() > np.mean(flat) + 3  # more than each picture's one best colour, which comes first
    right, below = np.abs(np.diff(error, axis=-1)), np.abs(np.diff(error, axis=-2))
    expected = [(np.abs(e).mean() + r.mean() + b.mean()) / 127.5 for e, r, b in zip(error, right, below, strict=True)]
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-4)
    objective.save(tmp_path)
    latents = LatentAutoencoder.from_pretrained(tmp_path).encode(images).detach()
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3 and (latents.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3


def decibels(error: np.ndarray) -> list[float]:
    """Peak signal to noise by its definition, on the 0..255 scale."""
    return [10 * np.log10(255**2 / (e**2).mean()) for e in error]


def test_the_autoencoder_sees_mirrored_and_masked_faces(crops: Inputs) -> None:
    from diffsfsr.face.masks import hull_mask
    from diffsfsr.model.autoencoder import MASK_FILL

    objective = AutoencoderObjective(config.override(presets.preset("ae-tiny"), {"training.batch": 6}), crops)
    whole = objective.crops.batch(np.arange(6))
    masks = torch.from_numpy(np.stack([hull_mask(points.numpy(), 64) for points in whole["landmarks"]]))[:, None].bool()
    forms = [whole["images"], torch.where(masks, MASK_FILL, whole["images"])]
    forms += [form.flip(-1) for form in forms]
    counts = np.zeros(4)
    for step in range(60):
        batch = objective.draw(at(step))["images"]
        for image, i in zip(batch, at(step).items(6, 6), strict=True):
            matches = [bool(torch.equal(image, form[i])) for form in forms]
            assert sum(matches) == 1
            counts += matches
    share = counts / counts.sum()
    assert np.abs(share - [0.35, 0.15, 0.35, 0.15]).max() < 5 * (0.25 / 360) ** 0.5


SIX = ["joy", "anger"] * 3


def dln_preset(**changes: Any) -> Preset:
    return config.override(presets.preset("dln-tiny"), {name.replace("__", "."): value for name, value in changes.items()})


def test_the_dln_learns_and_its_file_loads(crops: Inputs, tmp_path: Path) -> None:
    from diffsfsr.encoders.dln import Dln

    objective = ExpressionObjective(dln_preset(training__batch=8), crops)
    frozen = {name: value.clone() for name, value in objective.network.dln.frozen.state_dict().items()}
    history = learn(objective, 8, 3e-4)
    assert np.mean([line["loss"] for line in history[-2:]]) < 0.7 * np.mean([line["loss"] for line in history[:2]])
    assert all(torch.equal(value, frozen[name]) for name, value in objective.network.dln.frozen.state_dict().items())
    assert (objective.network.crowd.matrices[0] - torch.eye(16)).abs().max() > 1e-4  # the crowd layer is trained too
    assert {name.split(".")[0] for name, p in objective.network.named_parameters() if p.requires_grad} == {"dln", "crowd"}
    objective.save(tmp_path)
    again = Dln.load(tmp_path)
    assert again.version == objective.network.dln.version and again.dim == 16
    with torch.no_grad():
        images, landmarks = (objective.draw(at())[name] for name in ("images", "landmarks"))
        assert torch.equal(again(images, landmarks), objective.network.dln(images, landmarks))


def test_a_saved_dln_is_less_its_drift_however_often_it_is_saved(crops: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffsfsr.encoders import pose_drift
    from diffsfsr.encoders.dln import Dln

    monkeypatch.setattr(pose_drift, "_FEWEST", 5)
    objective = ExpressionObjective(dln_preset(training__batch=8), crops)
    for name in ("first", "second"):
        objective.save(tmp_path / name)
    first, second = (Dln.load(tmp_path / name) for name in ("first", "second"))
    assert first.drift.any() and first.version == second.version != objective.network.dln.version
    assert not objective.network.dln.drift.any()  # what is trained stays as it is


def test_a_drawn_batch_is_the_triplets_of_its_faces(crops: Inputs) -> None:
    """What the network is given against the crops themselves: the places in the batch lead back to the right pictures."""
    row = dln_preset(training__batch=30)
    objective = ExpressionObjective(row, crops)
    everything = objective.crops.batch(np.arange(6))
    seen = set()
    for step in range(4):
        batch, again = objective.draw(at(step)), objective.draw(at(step))
        assert batch.keys() == again.keys() and all(torch.equal(batch[name], again[name]) for name in batch)
        row_of = [int((everything["images"] - image).abs().flatten(1).sum(1).argmin()) for image in batch["images"]]
        assert len(set(row_of)) == len(row_of) and torch.equal(batch["images"], everything["images"][row_of])
        assert torch.equal(batch["landmarks"], everything["landmarks"][row_of])
        for a, p, n in batch["triplets"].tolist():
            assert a != p and SIX[row_of[a]] == SIX[row_of[p]] != SIX[row_of[n]]
        seen |= set(row_of)
        assert batch["margin"].tolist() == pytest.approx([row.dln.margin] * 30) and batch["annotator"].tolist() == [0] * 30
    assert seen == set(range(6))


def test_the_dlns_loss_is_that_of_each_triplet(crops: Inputs) -> None:
    objective = ExpressionObjective(dln_preset(training__batch=5), crops)
    batch = objective.draw(at())
    margin = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1])
    with torch.no_grad():
        terms = objective.losses(objective.network, batch | {"margin": margin}, generator())
        e = objective.network.dln(batch["images"], batch["landmarks"])
    near, far, far_too = ((e[batch["triplets"][:, i]] - e[batch["triplets"][:, j]]).square().sum(1) for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(
        terms["loss"], (near - far + margin).clamp(min=0) + (near - far_too + margin).clamp(min=0), atol=1e-5, rtol=1e-4
    )
    assert terms["accuracy"].tolist() == ((near < far) & (near < far_too)).float().tolist()


def test_the_dln_learns_from_all_three_sources(crops: Inputs, tmp_path: Path) -> None:
    """Each in its share and as an annotator of its own; a triplet that is of one class has the smaller margin."""
    import pyarrow as pa

    from diffsfsr import tables
    from diffsfsr.training.triplets import ANNOTATIONS

    ids = [f"s/{i}/0" for i in range(6)]
    values = np.zeros((6, 52), np.float32)
    values[:, 44] = [0, 0.1, 0.2, 0.8, 0.9, 1.0]
    teacher = pa.table({"face_id": ids, "blendshapes": pa.array(values.tolist(), pa.list_(pa.float32(), 52))})
    tables.write(tmp_path / "teacher.parquet", teacher, "m")
    told = [
        dict(zip(ANNOTATIONS.names, row, strict=True))
        for row in ((ids[0], ids[5], ids[1], True, "zoe"), (ids[2], ids[3], ids[4], False, "abe"))
    ]
    tables.write(tmp_path / "told.parquet", tables.from_rows(told, ANNOTATIONS), "m")
    given = replace(crops, triplets=(str(tmp_path / "told.parquet"),), teacher=(str(tmp_path / "teacher.parquet"),))
    row = dln_preset(training__batch=12, dln__triplets=["blendshapes", "annotations", "labels"])
    objective = ExpressionObjective(row, given)
    assert objective.miner.annotators == ("blendshapes", "abe", "zoe", "labels")
    assert objective.network.crowd.matrices.shape == (4, 16, 16)
    batch = objective.draw(at())
    who = batch["annotator"].numpy()
    assert [int((who == k).sum()) for k in (0, 3)] == [4, 4] and int(((who == 1) | (who == 2)).sum()) == 4
    assert batch["margin"][who == 2].tolist() == pytest.approx([row.dln.margin_one_class] * int((who == 2).sum()))
    assert batch["margin"][(who == 1) | (who == 3)].tolist() == pytest.approx([row.dln.margin] * int(((who == 1) | (who == 3)).sum()))
    assert objective.losses(objective.network, batch, generator())["loss"].isfinite().all()
    for missing, said in (("triplets", "annotated triplets are missing"), ("teacher", "blendshape coefficients are missing")):
        with pytest.raises(NotReady, match=said):
            ExpressionObjective(row, replace(given, **{missing: ()}))


def test_a_missing_facenet_is_named(crops: Inputs) -> None:
    from diffsfsr.weights import find

    if find("facenet") is not None:
        pytest.skip("FaceNet's published weights are on this machine")
    with pytest.raises(NotReady, match="diffsfsr weights pull facenet"):
        ExpressionObjective(dln_preset(dln__backbone="facenet"), crops)
