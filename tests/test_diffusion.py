"""The diffusion equations, against the step-by-step chain, sampled moments, diffusers and oracles."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from torch import Tensor

from diffsfsr import config
from diffsfsr.errors import InputError
from diffsfsr.model import diffusion as d

SD = d.NoiseSchedule.from_config(config.Schedule())
ZERO = d.NoiseSchedule.from_config(config.Schedule(zero_terminal_snr=True, prediction="v_prediction"))
BOTH = pytest.mark.parametrize("schedule", [SD, ZERO], ids=["sd", "zero-snr"])


def batch(rows: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, 4, 4, generator=g, dtype=dtype), torch.randn(rows, 3, 4, 4, generator=g, dtype=dtype)


def times(*t: int) -> Tensor:
    return torch.tensor(t)


def oracle(z_0: Tensor):  # what a perfect network would say, however noisy its input is
    return lambda z_t, t: z_0


class Recorder:
    """A predict_z0 that notes what it was asked."""

    def __init__(self, z_0: Tensor) -> None:
        self.z_0, self.asked = z_0, []

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        self.asked.append((z_t, t))
        return self.z_0


def test_schedule_is_stable_diffusions() -> None:
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
    assert SD.steps == 1000 and SD.alpha_bar[0] == 1 and not SD.zero_terminal
    torch.testing.assert_close(SD.alpha_bar[1:], theirs, atol=2e-6, rtol=0)


def test_zero_terminal_snr_is_diffusers() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    torch.testing.assert_close(ZERO.alpha_bar[1:], theirs, atol=1e-12, rtol=0)
    assert ZERO.alpha_bar[-1] == 0 and ZERO.zero_terminal
    torch.testing.assert_close(ZERO.alpha_bar[1], SD.alpha_bar[1])


@pytest.mark.parametrize(
    "bad", [torch.tensor([0.9, 0.5]), torch.tensor([1.0, 0.5, 0.5]), torch.tensor([1.0, -0.1]), torch.tensor([1.0])], ids=str
)
def test_a_schedule_that_is_none_is_refused(bad: Tensor) -> None:
    with pytest.raises(InputError):
        d.NoiseSchedule(bad.double())


@BOTH
def test_add_noise_is_the_product_of_single_steps(schedule: d.NoiseSchedule) -> None:
    """Eq. 1 against q(x_t | x_{t-1}) applied t times: mean coefficient and variance."""
    mean, variance = 1.0, 0.0
    for t in range(1, 41):
        beta = float(1 - schedule.alpha_bar[t] / schedule.alpha_bar[t - 1])
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert abs(float(d.add_noise(one, none, times(40), schedule)) - mean) < 1e-12
    assert abs(float(d.add_noise(none, one, times(40), schedule)) ** 2 - variance) < 1e-12


@pytest.mark.parametrize("t", [2, 500, 1000])
def test_posterior_is_bayes_rule_of_eq_1(t: int) -> None:
    """Eq. 2 against the product of the two Gaussians that define it (precision-weighted mean)."""
    z_0, z_t = batch(1)
    alpha = float(SD.alpha_bar[t] / SD.alpha_bar[t - 1])
    prior_mean, prior_var = float(SD.alpha_bar[t - 1]) ** 0.5 * z_0, 1 - float(SD.alpha_bar[t - 1])
    precision = 1 / prior_var + alpha / (1 - alpha)
    expected = (prior_mean / prior_var + alpha**0.5 * z_t / (1 - alpha)) / precision
    mean, variance = d.posterior(z_0, z_t, times(t), SD)
    torch.testing.assert_close(mean, expected, atol=1e-10, rtol=0)
    assert abs(float(variance) * precision - 1) < 1e-9


@BOTH
@pytest.mark.parametrize(("t", "s"), [(1000, 500), (1000, 999), (1000, 1), (777, 388), (3, 1), (2, 1), (1, 0), (1000, 0), (40, 40)])
def test_closed_form_is_eq_2_applied_t_minus_s_times(schedule: d.NoiseSchedule, t: int, s: int) -> None:
    z_0, z_t = batch(1)
    mean, variance = z_t, torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    one = torch.ones_like(variance)
    for k in range(t, s, -1):
        mean, added = d.posterior(z_0, mean, times(k), schedule)
        shrink, _ = d.posterior(torch.zeros_like(one), one, times(k), schedule)  # the coefficient of z_k
        variance = shrink**2 * variance + added
    jump_mean, jump_variance = d.posterior_jump(z_0, z_t, times(t), times(s), schedule)
    assert float((jump_mean - mean).abs().max()) < 1e-12
    assert float((jump_variance - variance).abs().max()) < 1e-12


@BOTH
def test_the_jump_keeps_the_marginals_of_eq_1(schedule: d.NoiseSchedule) -> None:
    """z_t ~ q(z_t | z_0), then z_s by the jump, must be q(z_s | z_0): in coefficients, no sampling error."""
    t, s = times(1000, 900, 31), times(500, 450, 15)
    one, none = torch.ones(3, 1, 1, 1, dtype=torch.float64), torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    of_z0, variance = d.posterior_jump(one, none, t, s, schedule)
    of_zt, _ = d.posterior_jump(none, one, t, s, schedule)
    a_t, a_s = schedule.at(t), schedule.at(s)
    torch.testing.assert_close(of_z0 + of_zt * a_t.sqrt(), a_s.sqrt(), atol=1e-12, rtol=0)
    torch.testing.assert_close(of_zt**2 * (1 - a_t) + variance, 1 - a_s, atol=1e-12, rtol=0)


def test_rows_with_their_own_t_are_rows_alone() -> None:
    z_0, z_t = batch(3)
    t = times(1000, 37, 1)
    together, _ = d.posterior_jump(z_0, z_t, t, t // 2, ZERO)
    for i in range(3):
        alone, _ = d.posterior_jump(z_0[i : i + 1], z_t[i : i + 1], t[i : i + 1], t[i : i + 1] // 2, ZERO)
        torch.testing.assert_close(together[i : i + 1], alone, atol=0, rtol=0)


@BOTH
def test_predictions_invert(schedule: d.NoiseSchedule) -> None:
    z_0, eps = batch()
    t = times(1, 250, 700, 999)
    z_t = d.add_noise(z_0, eps, t, schedule)
    for prediction in ("epsilon", "v_prediction"):
        target = d.training_target(prediction, z_0, eps, t, schedule)
        torch.testing.assert_close(d.z0_from_output(prediction, target, z_t, t, schedule), z_0, atol=1e-8, rtol=0)
    torch.testing.assert_close(d.eps_from_z0(z_0, z_t, t, schedule), eps, atol=1e-8, rtol=0)
    assert d.training_target("epsilon", z_0, eps, t, schedule) is eps


def test_v_survives_a_last_step_without_signal_and_eps_says_so() -> None:
    z_0, eps = batch(1)
    t = times(1000)
    z_t = d.add_noise(z_0, eps, t, ZERO)
    torch.testing.assert_close(z_t, eps)
    torch.testing.assert_close(d.z0_from_v(d.v_target(z_0, eps, t, ZERO), z_t, t, ZERO), z_0)
    with pytest.raises(InputError, match="t = 1000"):
        d.z0_from_eps(eps, z_t, t, ZERO)
    with pytest.raises(InputError, match="unknown prediction"):
        d.z0_from_output("sample", z_0, z_t, t, ZERO)


@BOTH
@pytest.mark.parametrize("name", list(d.MIDPOINTS))
@pytest.mark.parametrize("noise", [True, False])
def test_a_perfect_network_gives_back_z_0(schedule: d.NoiseSchedule, name: str, noise: bool) -> None:
    """The oracle speaks eps (v for zero SNR), from the z_t it is shown, so the estimates pass through the conversions too."""
    z_0, eps = batch()
    t = times(1, 3, 500, 999)
    kind = "v_prediction" if schedule.zero_terminal else "epsilon"

    def predict_z0(z: Tensor, at: Tensor) -> Tensor:
        truth = d.training_target(kind, z_0, d.eps_from_z0(z_0, z, at, schedule), at, schedule)
        return d.z0_from_output(kind, truth, z, at, schedule)

    generator = torch.Generator().manual_seed(1)
    made = d.MIDPOINTS[name](predict_z0, d.add_noise(z_0, eps, t, schedule), t, schedule, generator=generator, noise=noise)
    torch.testing.assert_close(made, z_0, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("name", "calls"), [("improved", 2), ("original", 2), ("one-step", 1)])
def test_network_calls(name: str, calls: int) -> None:
    z_0, z_t = batch(3)
    asked = Recorder(z_0)
    d.MIDPOINTS[name](asked, z_t, times(999, 2, 1), SD)
    assert len(asked.asked) == calls
    assert all(bool((t >= 1).all()) for _, t in asked.asked)
    if calls == 2:
        assert asked.asked[1][1].tolist() == [499, 1, 1]


def test_improved_midpoint_asks_where_the_chain_would_stand() -> None:
    """Without noise its second question is the fold of Eq. 2's means; with it, mean plus the given noise at the jump's deviation."""
    z_0, z_t = batch(1)
    mean = z_t
    for k in range(1000, 500, -1):
        mean, _ = d.posterior(z_0, mean, times(k), ZERO)
    asked = Recorder(z_0)
    d.improved_midpoint(asked, z_t, times(1000), ZERO, noise=False)
    torch.testing.assert_close(asked.asked[1][0], mean, atol=1e-12, rtol=0)
    eps = torch.ones_like(z_t)
    d.improved_midpoint(asked, z_t, times(1000), ZERO, generator=eps)
    deviation = d.posterior_jump(z_0, z_t, times(1000), times(500), ZERO)[1].sqrt()
    torch.testing.assert_close(asked.asked[3][0], mean + deviation, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", list(d.MIDPOINTS))
@pytest.mark.parametrize("noise", [True, False])
def test_midpoints_are_a_two_step_ddpm_written_by_hand(name: str, noise: bool) -> None:
    """T = 2, so that t = 2 walks one step to s = 1. Ho et al. 2020's chain in plain float64 numbers, with a network that is no line."""
    beta_1, beta_2 = 0.2, 0.6
    one, two = 1 - beta_1, (1 - beta_1) * (1 - beta_2)  # alpha_bar

    def by_hand(z_2: float, g: float) -> float:
        z_0 = math.tanh(z_2 - 0.2)
        if name == "one-step":
            return z_0
        if name == "improved":
            mean = (one**0.5 * beta_2 * z_0 + (1 - beta_2) ** 0.5 * (1 - one) * z_2) / (1 - two)
            z_1 = mean + (((1 - one) / (1 - two) * beta_2) ** 0.5 * g if noise else 0.0)
        else:
            eps = (z_2 - two**0.5 * z_0) / (1 - two) ** 0.5
            z_1 = (z_2 - beta_2**0.5 * eps) / (1 - beta_2) ** 0.5
        return math.tanh(z_1 - 0.1)

    def predict_z0(z: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(z - 0.1 * t.view(-1, 1, 1, 1).to(z))

    schedule = d.NoiseSchedule(torch.tensor([1.0, one, two], dtype=torch.float64))
    z_2, g = batch(3)
    made = d.MIDPOINTS[name](predict_z0, z_2, times(2, 2, 2), schedule, g, noise)
    expected = [by_hand(z, e) for z, e in zip(z_2.flatten().tolist(), g.flatten().tolist(), strict=True)]
    torch.testing.assert_close(made.flatten(), torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


def test_original_midpoint_is_eq_8_as_printed() -> None:
    z_0, z_t = batch(1)
    asked = Recorder(z_0)
    d.original_midpoint(asked, z_t, times(800), SD)
    a, a1 = float(SD.alpha_bar[800]), float(SD.alpha_bar[400])
    eps = (z_t - a**0.5 * z_0) / (1 - a) ** 0.5
    torch.testing.assert_close(asked.asked[1][0], (z_t - (1 - a / a1) ** 0.5 * eps) / (a / a1) ** 0.5, atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="original midpoint"):
        d.original_midpoint(asked, z_t, times(1000), ZERO)


@pytest.mark.parametrize("name", list(d.MIDPOINTS))
def test_rows_at_the_first_step_keep_the_first_estimate(name: str) -> None:
    _, z_t = batch(2)
    count = [0.0]

    def predict_z0(z: Tensor, at: Tensor) -> Tensor:
        count[0] += 1
        return torch.full_like(z, count[0])

    made = d.MIDPOINTS[name](predict_z0, z_t, times(1, 10), SD)
    assert bool((made[0] == 1).all()) and bool((made[1] == (1 if name == "one-step" else 2)).all())


def test_midpoint_noise_is_the_generators() -> None:
    z_0, z_t = batch(2)
    predict = lambda z, at: 0.3 * z  # noqa: E731
    runs = [d.improved_midpoint(predict, z_t, times(800, 9), ZERO, torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_stay_close_and_keep_their_dtype(dtype: torch.dtype) -> None:
    z_0, z_t = batch(3)
    t = times(1000, 501, 1)
    noise = torch.ones_like(z_t)
    exact = d.improved_midpoint(lambda z, at: 0.5 * z, z_t, t, ZERO, noise)
    made = d.improved_midpoint(lambda z, at: 0.5 * z, z_t.to(dtype), t, ZERO, noise)
    assert made.dtype == dtype
    torch.testing.assert_close(made.double(), exact, atol={torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype], rtol=0)


def test_gradients_reach_both_predictions() -> None:
    z_0, z_t = batch(2)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    made = d.improved_midpoint(lambda z, at: w * z, z_t, times(1000, 7), ZERO, noise=False).sum()
    (slope,) = torch.autograd.grad(made, w)
    with torch.no_grad():
        up, down = (d.improved_midpoint(lambda z, at, v=v: v * z, z_t, times(1000, 7), ZERO, noise=False).sum() for v in (0.501, 0.499))
    assert float(slope) == pytest.approx(float(up - down) / 0.002, abs=1e-9)  # quadratic in w: the central difference is exact


def test_network_and_paper_count_from_one_and_zero() -> None:
    t = times(1, 1000)
    assert d.network_timestep(t).tolist() == [0, 999] and torch.equal(d.paper_timestep(d.network_timestep(t)), t)
