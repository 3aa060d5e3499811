"""Samplers against the exact flow of Gaussian data and diffusers' own loop; seeds, guidance, tasks, expression travel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from diffsfsr import config, presets
from diffsfsr.errors import InputError
from diffsfsr.model import diffusion
from diffsfsr.model import sampling as s
from diffsfsr.model.unet import DiffSFSR

SD = config.Schedule()
ZERO = config.Schedule(prediction="v_prediction", zero_terminal_snr=True)
MEAN, SPREAD = 1.5, 0.3


def gaussian_network(row: config.Schedule) -> s.ModelFn:
    """The perfect network for data N(MEAN, SPREAD^2): E[z_0 | z_t] in closed form, as the schedule's kind of output."""
    schedule = diffusion.NoiseSchedule.from_config(row)

    def predict(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        t = t.round().long()  # some schedulers count in floats
        a = schedule.at(t)
        gain = a.sqrt() * SPREAD**2 / (a * SPREAD**2 + 1 - a)
        z_0 = (MEAN + gain * (z.double() - a.sqrt() * MEAN)).to(z)
        eps = diffusion.eps_from_z0(z_0, z, t, schedule)
        return diffusion.training_target(row.prediction, z_0, eps, t, schedule)

    return predict


@pytest.mark.parametrize("row", [SD, ZERO], ids=["sd", "zero-snr"])
@pytest.mark.parametrize("sampler", s.SAMPLERS)
def test_samplers_follow_the_exact_flow(row: config.Schedule, sampler: str) -> None:
    """The probability flow of Gaussian data is linear: the first noise, in deviations from the mean, ends as data, in deviations."""
    errors = {}
    for steps in (25, 100):
        scheduler = s.make_scheduler(row, sampler)
        first = int(s.timesteps(scheduler, steps)[0]) + 1
        a = float(diffusion.NoiseSchedule.from_config(row).alpha_bar[first])
        z_T = s.initial_noise((1, 4, 4), [1, 2, 3])
        expected = MEAN + SPREAD * (z_T - a**0.5 * MEAN) / (a * SPREAD**2 + 1 - a) ** 0.5
        made = s.sample(gaussian_network(row), (1, 4, 4), scheduler, steps, [1, 2, 3])
        errors[steps] = float((made - expected).abs().max())
    assert errors[100] < 0.04 and errors[100] < 0.5 * errors[25], errors


@pytest.mark.parametrize("sampler", s.SAMPLERS)
@pytest.mark.parametrize("row", [SD, ZERO], ids=["sd", "zero-snr"])
def test_any_number_of_steps_ends_at_data(row: config.Schedule, sampler: str) -> None:
    for steps in (4, 7, 25, 30, 61, 103, 122):
        made = s.sample(gaussian_network(row), (1, 2, 2), s.make_scheduler(row, sampler), steps, [0, 1])
        assert bool(torch.isfinite(made).all()) and float((made - MEAN).abs().max()) < 5 * SPREAD, (steps, made)


@pytest.mark.parametrize(
    ("row", "sampler", "first"), [(ZERO, "ddim", 1000), (ZERO, "dpm-solver++", 1000), (ZERO, "unipc", 1000), (SD, "pndm", 982)]
)
def test_where_the_first_step_stands(row: config.Schedule, sampler: str, first: int) -> None:
    seen = []

    def predict(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        seen.append(int(t[0]))
        return torch.zeros_like(z)

    s.sample(predict, (1, 2, 2), s.make_scheduler(row, sampler), 50, [0])
    assert seen[0] == first and min(seen) >= 1 and len(seen) == (51 if sampler == "pndm" else 50)


def test_pndm_never_visits_the_step_without_signal() -> None:
    scheduler = s.make_scheduler(ZERO, "pndm")
    for steps in (2, 3, 10, 50, 500):
        assert int(s.timesteps(scheduler, steps).max()) < 999
    assert float(scheduler.alphas_cumprod[-1]) == 0


@pytest.mark.parametrize("row", [SD, ZERO], ids=["sd", "zero-snr"])
@pytest.mark.parametrize("sampler", ["pndm", "ddim"])
def test_scheduler_levels_are_ours(row: config.Schedule, sampler: str) -> None:
    alpha_bar = diffusion.NoiseSchedule.from_config(row).alpha_bar[1:]
    torch.testing.assert_close(s.make_scheduler(row, sampler).alphas_cumprod.double(), alpha_bar, atol=3e-6, rtol=0)


def test_pndm_is_the_loop_of_diffusers_pipelines() -> None:
    """Stable Diffusion 1.4's scheduler/scheduler_config.json, driven as its pipeline drives it, with a stub network."""
    theirs = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    theirs.set_timesteps(50)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7)) * theirs.init_noise_sigma
    for n in theirs.timesteps:
        scaled = theirs.scale_model_input(latents, n)
        latents = theirs.step(torch.tanh(scaled * (1 + int(n) / 1000)), n, latents).prev_sample

    def stub(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        return torch.tanh(z * (1 + (t.view(-1, 1, 1, 1) - 1) / 1000))

    made = s.sample(stub, (4, 4, 4), s.make_scheduler(SD, "pndm"), 50, [7])
    torch.testing.assert_close(made, latents, atol=1e-5, rtol=1e-5)


def test_ddim_step_is_eq_12_of_its_paper() -> None:
    """Two DDIM steps by hand (Song et al. 2021, sigma = 0), zero terminal SNR."""
    schedule = diffusion.NoiseSchedule.from_config(ZERO)
    network, z = gaussian_network(ZERO), s.initial_noise((1, 2, 2), [4])
    expected = z
    for t, to in ((1000, 500), (500, 0)):
        at, after = torch.tensor([t]), torch.tensor([to])
        z_0 = diffusion.z0_from_v(network(expected, at, at > 0), expected, at, schedule)
        eps = diffusion.eps_from_z0(z_0, expected, at, schedule)
        expected = diffusion.add_noise(z_0, eps, after, schedule)
    made = s.sample(network, (1, 2, 2), s.make_scheduler(ZERO, "ddim"), 2, [4])
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_steps_that_cannot_be_spaced_are_refused() -> None:
    refused = [(ZERO, "ddim", 600), (SD, "pndm", 1000), (ZERO, "pndm", 1000), (SD, "pndm", 600), (SD, "pndm", 1), (ZERO, "ddim", 0)]
    for row, sampler, steps in [*refused, (SD, "unipc", 1001)]:
        with pytest.raises(InputError, match=f"steps={steps}"):
            s.timesteps(s.make_scheduler(row, sampler), steps)
    with pytest.raises(InputError, match="try 250 or 500"):
        s.timesteps(s.make_scheduler(ZERO, "ddim"), 600)
    with pytest.raises(InputError, match="did you mean ddim"):
        s.make_scheduler(SD, "dimm")


# --- seeds and guidance, with a small real network ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[DiffSFSR, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = DiffSFSR.from_preset(presets.preset("tiny"), {"dlib": 128}).eval()
    for p in (model.unet.conv_in.weight, model.unet.class_embedding.linear_2.weight, model.tokens.null):
        torch.nn.init.normal_(p, std=0.2)
    g = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return model, {"condition": normal(3, 5, 8, 8), "dlib": normal(3, 128), "expression": normal(3, 16)}


def bound(small: tuple[DiffSFSR, dict[str, Tensor]], rows: list[int]) -> s.ModelFn:
    model, given = small
    return s.conditioned(model, given["condition"][rows], {"dlib": given["dlib"][rows]}, given["expression"][rows])


@pytest.mark.parametrize("sampler", s.SAMPLERS)
def test_a_seed_gives_one_picture_alone_or_in_a_batch(small, sampler: str) -> None:
    scheduler = s.make_scheduler(ZERO, sampler)
    together = s.sample(bound(small, [0, 1, 2]), (4, 8, 8), scheduler, 4, [11, 12, 13], guidance=2.0)
    alone = s.sample(bound(small, [1]), (4, 8, 8), scheduler, 4, [12], guidance=2.0)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(alone, s.sample(bound(small, [1]), (4, 8, 8), scheduler, 4, [12], guidance=2.0))
    assert not torch.allclose(alone, s.sample(bound(small, [1]), (4, 8, 8), scheduler, 4, [13], guidance=2.0), atol=1e-2)


def test_initial_noise_of_a_seed_is_torchs() -> None:
    noise = s.initial_noise((2, 3), [5, 6])
    assert torch.equal(noise[1], torch.randn(2, 3, generator=torch.Generator().manual_seed(6)))


def test_guidance_is_away_from_null_tokens_with_the_scene_kept(small) -> None:
    """One DDIM step by hand from two separate forwards."""
    model, given = small
    z, t = s.initial_noise((4, 8, 8), [1, 2, 3]), torch.full((3,), 1000)
    with torch.no_grad():
        cond = model(z, t, given["condition"], {"dlib": given["dlib"]}, given["expression"])
        uncond = model(z, t, given["condition"], {}, None)
        assert float((cond - uncond).abs().max()) > 1e-2
        v = uncond + 3.0 * (cond - uncond)
    made = s.sample(bound(small, [0, 1, 2]), (4, 8, 8), s.make_scheduler(ZERO, "ddim"), 1, [1, 2, 3], guidance=3.0)
    torch.testing.assert_close(made, -v, atol=1e-5, rtol=0)  # at T of zero SNR, z_0 = -v


def test_guidance_costs_one_forward_of_twice_the_rows() -> None:
    seen = []

    def predict(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        seen.append((len(z), null.tolist()))
        return torch.zeros_like(z)

    s.sample(predict, (1, 2, 2), s.make_scheduler(ZERO, "ddim"), 4, [0, 1], guidance=2.0)
    assert seen == [(4, [False, False, True, True])] * 4
    seen.clear()
    s.sample(predict, (1, 2, 2), s.make_scheduler(ZERO, "ddim"), 4, [0, 1])
    assert seen == [(2, [False, False])] * 4
    seen.clear()  # at t = 1000, 750, 500 and 250
    s.sample(predict, (1, 2, 2), s.make_scheduler(ZERO, "ddim"), 4, [0, 1], guidance=2.0, guidance_max_t=500)
    assert seen == [(2, [False, False])] * 2 + [(4, [False, False, True, True])] * 2


def test_guidance_up_to_a_timestep_is_none_before_it(small) -> None:
    """By the sampler's own latents after each step: the same as without guidance, and then not."""

    def after(**options: Any) -> list[Tensor]:
        kept: list[Tensor] = []
        s.sample(bound(small, [0]), (4, 8, 8), s.make_scheduler(ZERO, "ddim"), 4, [1], callback=lambda i, n, z: kept.append(z), **options)
        return kept

    plain, late, whole = after(), after(guidance=3.0, guidance_max_t=500), after(guidance=3.0)
    assert [torch.equal(a, b) for a, b in zip(plain, late, strict=True)] == [True, True, False, False]
    assert not torch.equal(plain[0], whole[0])
    assert all(torch.equal(a, b) for a, b in zip(plain, after(guidance=3.0, guidance_max_t=0), strict=True))


def test_the_given_scheduler_is_not_changed() -> None:
    scheduler = s.make_scheduler(ZERO, "pndm")
    s.sample(lambda z, t, null: z, (1, 2, 2), scheduler, 4, [0])
    assert scheduler.num_inference_steps is None and scheduler.ets == []
    assert isinstance(s.make_scheduler(SD, "ddim"), DDIMScheduler)


def test_a_mixed_batch_is_each_item_alone(small) -> None:
    """Other scenes, words and seeds, and items that lack an encoder or the expression."""
    model, given = small
    present = torch.tensor([[True, True], [False, True], [True, False]])
    scheduler = s.make_scheduler(ZERO, "dpm-solver++")

    def made(rows: list[int]) -> Tensor:
        who = {"dlib": given["dlib"][rows]}
        bound = s.conditioned(model, given["condition"][rows], who, given["expression"][rows], present[rows])
        return s.sample(bound, (4, 8, 8), scheduler, 5, [20 + i for i in rows], guidance=2.0)

    together = made([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], made([i]), atol=1e-5, rtol=1e-5)
    named = s.conditioned(model, given["condition"][1:2], {}, given["expression"][1:2])  # as a studio without that encoder has it
    torch.testing.assert_close(together[1:2], s.sample(named, (4, 8, 8), scheduler, 5, [21], guidance=2.0), atol=1e-5, rtol=1e-5)


# --- any scheduler, any source of noise -----------------------------------------------------------------------------------


def borrowed(kind: type, **changes: object) -> object:
    return kind.from_config(s.make_scheduler(SD, "ddim").config, **changes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, LMSDiscreteScheduler, HeunDiscreteScheduler])
def test_schedulers_that_scale_their_input_follow_the_exact_flow(kind: type) -> None:
    scheduler = borrowed(kind)
    made = s.sample(gaussian_network(SD), (1, 4, 4), scheduler, 100, [1, 2])
    fresh = type(scheduler).from_config(scheduler.config)  # type: ignore[attr-defined]
    fresh.set_timesteps(100)
    a = float(diffusion.NoiseSchedule.from_config(SD).alpha_bar[int(fresh.timesteps[0]) + 1])
    z = a**0.5 * s.initial_noise((1, 4, 4), [1, 2]) * float(fresh.init_noise_sigma)  # sigma space is the paper's over sqrt(alpha_bar)
    expected = MEAN + SPREAD * (z - a**0.5 * MEAN) / (a * SPREAD**2 + 1 - a) ** 0.5
    assert float((made - expected).abs().max()) < 0.04


def test_euler_is_the_loop_of_diffusers_pipelines() -> None:
    theirs = borrowed(EulerDiscreteScheduler)
    theirs.set_timesteps(20)  # type: ignore[attr-defined]
    z = s.initial_noise((4, 4, 4), [7]) * theirs.init_noise_sigma  # type: ignore[attr-defined]
    for n in theirs.timesteps:  # type: ignore[attr-defined]
        z = theirs.step(torch.tanh(theirs.scale_model_input(z, n) + n / 1000), n, z).prev_sample  # type: ignore[attr-defined]
    stub = lambda x, t, null: torch.tanh(x + (t.view(-1, 1, 1, 1) - 1) / 1000)  # noqa: E731
    torch.testing.assert_close(s.sample(stub, (4, 4, 4), borrowed(EulerDiscreteScheduler), 20, [7]), z, atol=1e-5, rtol=1e-5)


STOCHASTIC = {
    "euler ancestral": (borrowed(EulerAncestralDiscreteScheduler), 0.0),
    "ddpm": (borrowed(DDPMScheduler), 0.0),
    "sde": (borrowed(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"), 0.0),
    "ddim": (s.make_scheduler(SD, "ddim"), 1.0),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_on_the_way_is_each_items_own(name: str) -> None:
    """In any company an item is the same; with the same first noise but another stream behind it, it is another."""
    scheduler, eta = STOCHASTIC[name]
    run = lambda seeds, **more: s.sample(gaussian_network(SD), (1, 4, 4), scheduler, 10, seeds, eta=eta, **more)  # noqa: E731
    together = run([3, 4, 5])
    torch.testing.assert_close(together[1:2], run([4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(run([5, 4])[1:2], run([4]), atol=1e-5, rtol=0)
    given = run((), generators=[torch.Generator().manual_seed(seed) for seed in (3, 4, 5)])
    assert torch.equal(given, together)
    assert float((run([4]) - run((), generators=[torch.Generator().manual_seed(4)])).abs().max()) == 0
    later = torch.Generator().manual_seed(4)
    first, seed_after = torch.randn(1, 4, 4, generator=later), 99
    assert torch.equal(first, s.initial_noise((1, 4, 4), [4])[0])
    changed = s.sample(
        _restarting(gaussian_network(SD), later, seed_after), (1, 4, 4), scheduler, 10, eta=eta, generators=[later.manual_seed(4)]
    )
    assert float((changed - run([4])).abs().max()) > 1e-2  # fresh noise is indeed drawn, and from the item's generator


def _restarting(network: s.ModelFn, generator: torch.Generator, seed: int) -> s.ModelFn:
    """The network, which sets the generator to another seed at its first call: after the first noise was drawn."""
    calls = iter([True])

    def predict(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        if next(calls, False):
            generator.manual_seed(seed)
        return network(z, t, null)

    return predict


def test_the_spread_of_fresh_noise_is_the_datas() -> None:
    """DDIM with eta 1 draws from the data's own distribution: mean and deviation of 4,096 values."""
    made = s.sample(gaussian_network(SD), (1, 64, 64), s.make_scheduler(SD, "ddim"), 100, [0], eta=1.0)
    assert abs(float(made.mean()) - MEAN) < 0.03 and abs(float(made.std()) / SPREAD - 1) < 0.1


# --- what stays of the scene, and callbacks --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", s.SAMPLERS)
def test_outside_the_mask_the_scene_stays_at_every_level(sampler: str) -> None:
    """Closed form of each level: sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) times the item's first noise; clean at the end."""
    row, alpha_bar = SD, diffusion.NoiseSchedule.from_config(SD).alpha_bar.float()
    scene = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 1:3, 1:3], mask[:, :, 0, 0] = 1, 0.5
    levels = s.timesteps(s.make_scheduler(row, sampler), 8)
    first, seen = s.initial_noise((1, 4, 4), [1, 2]), []
    network = gaussian_network(row)
    scheduler = s.make_scheduler(row, sampler)
    made = s.sample(network, (1, 4, 4), scheduler, 8, [1, 2], keep=(scene, mask), callback=lambda i, n, z: seen.append(z))
    outside = (mask == 0).expand_as(scene)
    for i, z in enumerate(seen[:-1]):
        a = alpha_bar[int(levels[i + 1]) + 1]
        torch.testing.assert_close(z[outside], (a.sqrt() * scene + (1 - a).sqrt() * first)[outside], atol=1e-4, rtol=0)
    assert len(seen) == len(levels) and torch.equal(made[outside], scene[outside]) and torch.equal(made, seen[-1])
    assert float((made - MEAN).abs()[:, :, 1:3, 1:3].max()) < 5 * SPREAD  # inside, data was made
    assert not torch.equal(made[:, :, 0, 0], scene[:, :, 0, 0])
    everything = s.sample(network, (1, 4, 4), scheduler, 8, [1, 2], keep=(scene, torch.ones_like(mask)))
    torch.testing.assert_close(everything, s.sample(network, (1, 4, 4), scheduler, 8, [1, 2]))


def test_keeping_the_scene_in_sigma_space_ends_clean() -> None:
    scene, mask = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(9)), torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    made = s.sample(gaussian_network(SD), (1, 4, 4), borrowed(EulerDiscreteScheduler), 20, [1], keep=(scene, mask))
    assert torch.equal(made[..., :2], scene[..., :2]) and float((made - MEAN)[..., 2:].abs().max()) < 5 * SPREAD


def test_a_callback_sees_each_step_and_may_change_it() -> None:
    seen = []
    scheduler, network = s.make_scheduler(ZERO, "ddim"), gaussian_network(ZERO)

    def watch(i: int, n: Tensor, z: Tensor) -> Tensor | None:
        seen.append((i, int(n)))
        return torch.full_like(z, 7.0) if i == 4 else None

    made = s.sample(network, (1, 2, 2), scheduler, 5, [0], callback=watch)
    assert seen == list(enumerate(s.timesteps(s.make_scheduler(ZERO, "ddim"), 5).tolist()))
    assert torch.equal(made, torch.full_like(made, 7.0))
    seen.clear()
    s.sample(network, (1, 2, 2), scheduler, 5, [0], progress=lambda steps: list(steps)[:2], callback=watch)
    assert len(seen) == 2


# --- choices of input ----------------------------------------------------------------------------------------------------


def test_tasks_are_choices_of_input() -> None:
    assert s.task_inputs("all", "scene", "who", "how") == ("scene", "who", "how")
    assert s.task_inputs("identity", "scene", "who", "how") == ("scene", "who", "scene")
    assert s.task_inputs("identity", "scene", "who") == ("scene", "who", "scene")
    assert s.task_inputs("expression", "scene", "who", "how") == ("scene", "scene", "how")
    assert s.task_inputs("expression", "scene", expression="how") == ("scene", "scene", "how")
    for bad in (("all", "scene", "who", None), ("identity", "scene", None, "how"), ("expression", "scene", "who", None)):
        with pytest.raises(InputError, match="needs an"):
            s.task_inputs(*bad)
    with pytest.raises(InputError, match="did you mean identity"):
        s.task_inputs("identiti", "scene", "who", "how")


def unit(*values: float) -> Tensor:
    x = torch.zeros(16, dtype=torch.float64)
    x[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return x / x.norm()


def test_expression_travels_along_the_great_circle() -> None:
    a, b = unit(1, 0), unit(math.cos(0.4), math.sin(0.4))
    for x in (0.0, 0.25, 1.0, 1.8):
        torch.testing.assert_close(s.expression_strength(a, b, x), unit(math.cos(0.4 * x), math.sin(0.4 * x)))
    torch.testing.assert_close(s.expression_strength(3 * a, 0.1 * b, 1.0), b)
    far = s.expression_strength(a, b, 100.0)
    torch.testing.assert_close(far, -a)


def test_expression_travel_is_safe_at_equal_and_opposite_ends() -> None:
    a = unit(0.3, -0.2, 0.9)
    near = a + 1e-9 * unit(0, 1)
    for b in (a, near):
        torch.testing.assert_close(s.slerp(a, b, 0.5), a, atol=1e-6, rtol=0)
    for x, cosine in ((0.0, 1.0), (0.5, 0.0), (1.0, -1.0)):
        point = s.slerp(a, -a, x)
        assert abs(float(point.norm()) - 1) < 1e-6 and abs(float(point @ a) - cosine) < 1e-6
    assert torch.equal(s.slerp(a, -a, 0.5), s.slerp(a, -a, 0.5))


def test_expression_travel_is_batched() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 16, generator=g), torch.randn(5, 16, generator=g)
    x = torch.linspace(0, 1.5, 5)
    together = s.expression_strength(a, b, x)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(5))
    for i in range(5):
        torch.testing.assert_close(together[i], s.expression_strength(a[i], b[i], float(x[i])))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="strength"):
            s.expression_strength(a, b, bad)


def angles(points: Tensor) -> Tensor:
    return torch.arccos((points[:-1] * points[1:]).sum(-1).clamp(-1, 1))


def test_a_travel_is_even_in_angle_and_ends_at_its_stations() -> None:
    at = lambda *degrees: torch.stack([unit(math.cos(math.radians(d)), math.sin(math.radians(d))) for d in degrees])  # noqa: E731
    way, near = s.travel(5 * at(0, 60, 80), 9)
    torch.testing.assert_close(way, at(*range(0, 81, 10)))
    assert near == [0, 6, 8]
    way, near = s.travel(at(0, 90, 0), 3)  # there and back
    torch.testing.assert_close(way, at(0, 90, 0))
    assert near == [0, 1, 2]
    stations = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    way, near = s.travel(stations, 2)
    torch.testing.assert_close(way, torch.nn.functional.normalize(stations[[0, 3]], dim=-1))
    way, near = s.travel(stations, 400)
    torch.testing.assert_close(way.norm(dim=-1), torch.ones(400))
    steps = angles(way.double())
    assert float(steps.max()) < 1.01 * float(steps.median()) and int((steps < 0.99 * steps.median()).sum()) <= 2  # the two corners
    close = (way[near] * torch.nn.functional.normalize(stations, dim=-1)).sum(-1)
    assert float(close.min()) > math.cos(float(steps.median()))


def test_a_travel_through_equal_or_opposite_stations_is_safe() -> None:
    a, b = unit(0.3, -0.2, 0.9), unit(1)
    way, near = s.travel(torch.stack([a, a, a]), 5)
    torch.testing.assert_close(way, a.expand(5, -1), atol=1e-6, rtol=0)
    assert near == [0, 2, 4]
    way, near = s.travel(torch.stack([a, -a, -a, b, b]), 41)
    assert bool(torch.isfinite(way).all()) and near[1] == near[2] and near[3:] == [40, 40]
    torch.testing.assert_close(way.norm(dim=-1), torch.ones(41, dtype=torch.float64))
    torch.testing.assert_close(way[-1], b, atol=1e-6, rtol=0)
    steps = angles(way)
    assert float(steps.max()) < 1.01 * float(steps.median())
    for stations, frames in ((torch.stack([a]), 5), (torch.stack([a, b]), 1)):
        with pytest.raises(InputError, match="two stations"):
            s.travel(stations, frames)


@pytest.mark.parametrize(("row", "eta"), [(SD, -0.1), (SD, 1.1), (ZERO, 1.0)])
def test_noise_that_cannot_be_drawn_is_refused(row: config.Schedule, eta: float) -> None:
    with pytest.raises(InputError, match=f"eta={eta}"):
        s.sample(gaussian_network(row), (1, 4, 4), s.make_scheduler(row, "ddim"), 10, [0], eta=eta)
