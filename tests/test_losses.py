"""The objective's terms: values by hand, and gradients through a decoder and an encoder against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffsfsr.errors import InputError
from diffsfsr.model.autoencoder import LatentAutoencoder
from diffsfsr.model.diffusion import NoiseSchedule
from diffsfsr.training import losses


def test_diffusion_loss_by_hand() -> None:
    pred, target = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    pred[0, 0, 0, 0], pred[0, 1, 0, 1] = 1.0, 3.0  # squares 1 and 9 over 4 elements
    target[1] = 2.0
    assert losses.diffusion_loss(pred, target).tolist() == [2.5, 4.0]


def test_diffusion_loss_counts_the_weighted_positions_only() -> None:
    pred, target = torch.zeros(3, 2, 1, 2), torch.zeros(3, 2, 1, 2)
    pred[:, 0, 0, 0], pred[:, 1, 0, 1] = 1.0, 3.0
    mask = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]]).view(3, 1, 1, 2)
    # position means are 0.5 and 4.5
    assert losses.diffusion_loss(pred, target, mask).tolist() == [0.5, 3.5, 0.0]
    torch.testing.assert_close(losses.diffusion_loss(pred, target, torch.full((3, 1, 1, 2), 7.0)), losses.diffusion_loss(pred, target))


def test_diffusion_loss_has_no_gradient_outside_its_mask_and_none_that_is_nan() -> None:
    pred = torch.ones(2, 2, 2, 2, requires_grad=True)
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0] = 1
    losses.diffusion_loss(pred, torch.zeros_like(pred), mask).sum().backward()
    expected = torch.zeros(2, 2, 2, 2)
    expected[0, :, 0, 0] = 1.0
    torch.testing.assert_close(pred.grad, expected)


def test_eyes_and_mouth_are_found_in_a_grid() -> None:
    landmarks = torch.zeros(1, 68, 2)  # whatever else is at the corner does not count
    landmarks[:, 36:42], landmarks[:, 42:48], landmarks[:, 48:] = (
        torch.tensor([20.0, 20.0]),
        torch.tensor([60.0, 20.0]),
        torch.tensor([36.0, 68.0]),
    )
    found = losses.facial_features(landmarks, 128, 16)[0, 0]  # a position is 8 pixels, the deviation a fifth of 40
    assert [found[y, x].item() for y, x in ((2, 2), (2, 7), (8, 4))] == [1.0, 1.0, 1.0]
    assert found[2, 3].item() == pytest.approx(math.exp(-0.5)) and found[4, 2].item() == pytest.approx(math.exp(-2))
    assert found[0, 0].item() == pytest.approx(math.exp(-4)) and found[15, 15].item() < 1e-6
    torch.testing.assert_close(losses.facial_features(landmarks / 2, 64, 16)[0, 0], found)


def test_identity_loss_by_hand() -> None:
    pred = {"a": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "b": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
    ref = {"a": torch.tensor([[0.0, 2.0], [5.0, 0.0]]), "b": torch.tensor([[3.0, 4.0], [0.0, -1.0]])}
    # a: cosines 0 and 1; b: cosines 1 and -1
    assert losses.identity_loss(pred, ref).tolist() == pytest.approx([0.5, 1.0])
    assert losses.identity_loss({"a": pred["a"]}, ref).tolist() == pytest.approx([1.0, 0.0])
    assert losses.identity_loss(pred, {"a": None, "b": ref["b"]}).tolist() == pytest.approx([0.0, 2.0])
    with pytest.raises(InputError, match="no identity encoder"):
        losses.identity_loss({"a": pred["a"]}, {"b": ref["b"]})


def test_identity_loss_is_centred() -> None:
    """Two vectors that all but agree are opposite once their common mean is taken away."""
    mean = torch.tensor([10.0, 0.0])
    pred, ref = {"dlib": torch.tensor([[10.0, 1.0]])}, {"dlib": torch.tensor([[10.0, -1.0]])}
    assert float(losses.identity_loss(pred, ref)) == pytest.approx(1 - 99 / 101)
    assert float(losses.identity_loss(pred, ref, {"dlib": mean})) == pytest.approx(2.0)


def test_perceptual_loss_by_hand() -> None:
    """Alike, at right angles and opposite in a layer of one position each; a second layer of two positions, one of them alike. How
    strongly a layer answers does not count."""
    pred = [torch.tensor([[1.0, 0], [1, 0], [1, 0]]).view(3, 2, 1, 1), torch.tensor([[[1.0, 1], [0, 0]]] * 3).view(3, 2, 1, 2)]
    ref = [torch.tensor([[5.0, 0], [0, 1], [-2, 0]]).view(3, 2, 1, 1), torch.tensor([[[1.0, 0], [0, 3]]] * 3).view(3, 2, 1, 2)]
    assert losses.perceptual_loss(pred, ref).tolist() == pytest.approx([0.5, 1.5, 2.5])


def test_expression_and_total_by_hand() -> None:
    pred, ref = torch.zeros(2, 16), torch.zeros(2, 16)
    pred[0, 0], pred[1] = 4.0, 0.5
    l_exp = losses.expression_loss(pred, ref)
    assert l_exp.tolist() == [1.0, 0.25]
    l_dm, l_id = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])
    assert losses.total_loss(l_dm, l_id, l_exp, 0.1, 10.0).tolist() == pytest.approx([11.05, 4.6])
    assert losses.total_loss(l_dm, None, l_exp, 0.1, 2.0).tolist() == [3.0, 2.5]
    assert losses.total_loss(l_dm, None, None, 1.0, 1.0) is l_dm


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        # alpha_bar 0.9, 0.5, 0.2, 0 have SNR 9, 1, 0.25, 0; gamma 5 clips the first alone
        ("epsilon", [5 / 9, 1.0, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25, 0.0]),
    ],
)
def test_min_snr_by_hand(prediction: str, expected: list[float]) -> None:
    schedule = NoiseSchedule(torch.tensor([1.0, 0.9, 0.5, 0.2, 0.0], dtype=torch.float64))
    weight = losses.min_snr_weight(prediction, torch.tensor([1, 2, 3, 4]), schedule, 5.0)
    assert weight.dtype == torch.float32 and weight.tolist() == pytest.approx(expected, abs=1e-6)
    assert losses.min_snr_weight(prediction, torch.tensor([3, 1]), schedule, 0.1).tolist() == pytest.approx(
        {"epsilon": [0.1 / 0.25, 0.1 / 9], "v_prediction": [0.1 / 1.25, 0.1 / 10]}[prediction]
    )


def test_min_snr_weighs_an_error_of_z_0_alike_for_both_predictions() -> None:
    """The same wrong z_0 said in eps and in v: after weighting both losses are min(SNR, gamma) times its square."""
    schedule = NoiseSchedule(torch.linspace(1, 0.02, 50, dtype=torch.float64))
    t = torch.arange(1, 50)
    a, wrong = schedule.at(t).flatten(), 0.3
    error = {"epsilon": (a / (1 - a)).sqrt() * wrong, "v_prediction": wrong / (1 - a).sqrt()}  # from Eq. 1 and the definition of v
    for prediction, value in error.items():
        weighted = losses.min_snr_weight(prediction, t, schedule, 5.0).double() * value**2
        torch.testing.assert_close(weighted, (a / (1 - a)).clamp(max=5) * wrong**2, rtol=1e-5, atol=1e-9)


def test_reconstruction_losses_by_hand() -> None:
    """One pixel of one channel off by 1, of 3 x 2 x 2: one difference to the right of 6 is off, and one downwards."""
    images = torch.zeros(2, 3, 2, 2)
    rebuilt = images.clone()
    rebuilt[1, 0, 0, 0] = 1.0
    terms = losses.reconstruction_losses(rebuilt, images)
    assert terms["mae"].tolist() == pytest.approx([0, 1 / 12]) and terms["edges"].tolist() == pytest.approx([0, 1 / 6 + 1 / 6])
    assert terms["loss"].tolist() == pytest.approx([0, 5 / 12]) and float(terms["psnr"][1]) == pytest.approx(16.81, abs=0.01)


def face_losses() -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    vae = LatentAutoencoder("tiny", channels=2, width=4).double().eval().requires_grad_(False)

    def encoder(dim: int) -> nn.Module:
        layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4 * 4, dim))
        return layers.double().requires_grad_(False)

    who, how = encoder(8), encoder(16)
    ref_id, ref_exp, mean = torch.randn(2, 8).double(), torch.randn(2, 16).double(), torch.randn(8).double()
    return {
        "identity": lambda z: losses.identity_loss({"e": who(vae.decode(z))}, {"e": ref_id}, {"e": mean}).sum(),
        "expression": lambda z: losses.expression_loss(how(vae.decode(z)), ref_exp).sum(),
    }


@pytest.mark.parametrize("name", ["identity", "expression"])
def test_gradient_through_decoder_and_encoder_is_the_finite_difference(name: str) -> None:
    loss = face_losses()[name]
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, 2, 2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    assert float(gradient.abs().max()) > 1e-6
    with torch.no_grad():
        for _ in range(8):
            direction, h = torch.randn(z.shape, generator=g, dtype=torch.float64), 1e-6
            slope = float(loss(z + h * direction) - loss(z - h * direction)) / (2 * h)
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_a_weight_says_where_a_reconstruction_counts() -> None:
    images, rebuilt = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    rebuilt[:, :, :, 4:] = 0.5
    plain, even = losses.reconstruction_losses(rebuilt, images), losses.reconstruction_losses(rebuilt, images, torch.ones(2, 1, 8, 8))
    assert all(torch.allclose(plain[name], even[name]) for name in plain)
    left = torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1
    found = losses.reconstruction_losses(rebuilt, images, left)
    assert found["mae"].tolist() == [0, 0] and torch.equal(found["psnr"], plain["psnr"])
    assert torch.allclose(found["edges"], torch.tensor(0.0))  # the step is to the right of what counts
