"""The decoders that the face losses may look through: the small one learns its teacher, the published one reads unscaled latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from torch import Tensor

from diffsfsr import presets
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.model.autoencoder import LatentAutoencoder
from diffsfsr.model.decoder import LossDecoder, load_loss_decoder
from diffsfsr.training.data import Crops, Position
from diffsfsr.training.objectives import DecoderObjective
from diffsfsr.training.run import Inputs

TINY = presets.preset("tiny")
PRESET: Preset = replace(TINY, name="decoder-tiny", trains="decoder", crop=32, training=replace(TINY.training, batch=6))


def at(step: int = 0) -> Position:
    return Position(step, 0, 0, 1, 1, 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, six_people: Path) -> Inputs:
    """Six faces, and an autoencoder that was never trained, its pictures brought to a contrast: a teacher like any other."""
    folder = tmp_path_factory.mktemp("decoder")
    shard = synthetic.face_shard(folder / "faces.parquet", synthetic.faces(six_people, PRESET.crop), ["joy"] * 6)
    torch.manual_seed(0)
    teacher = LatentAutoencoder("tiny", PRESET.autoencoder.channels, width=16)
    images = Crops([str(shard)], PRESET.crop).batch(np.arange(6))["images"]
    teacher.calibrate([images])
    with torch.no_grad():
        shown, last = teacher(images), teacher.net.decoder.layers[-1]
        middle, contrast = shown.mean((0, 2, 3)), shown.std((0, 2, 3))
        last.weight.mul_(0.4 / contrast.view(-1, 1, 1, 1))
        last.bias.copy_(((last.bias - (middle + 1) / 2) * 0.4 / contrast) + 0.5)  # AutoencoderTiny shows 2 x - 1
    teacher.save_pretrained(folder / "autoencoder")
    return Inputs((str(shard),), "six", autoencoder=str(folder / "autoencoder"))


def psnr(made: Tensor, wanted: Tensor) -> float:
    """On the 0..255 scale, by its definition."""
    error = (made.double() - wanted.double()).numpy() * 127.5
    return float(10 * np.log10(255**2 / (error**2).mean()))


def test_it_learns_what_the_autoencoder_shows(inputs: Inputs, tmp_path: Path) -> None:
    """Of clean latents and of noisy ones, 12 dB nearer than the best picture of one colour; and what is saved is what was trained."""
    torch.manual_seed(0)
    objective = DecoderObjective(PRESET, inputs)
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=3e-3)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (120 - step) / 120)
        terms = objective.losses(objective.network, objective.draw(at(step)), at(step).generator())
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        optimizer.step()
    objective.save(tmp_path)
    again = load_loss_decoder("small", objective.autoencoder, tmp_path)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    teacher = objective.autoencoder
    with torch.no_grad():
        z = teacher.encode(objective.crops.batch(np.arange(6))["images"])
        for noise in (0.0, 0.3):
            latents = z + noise * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
            shown = teacher.decode(latents)
            flat = shown.mean((0, 2, 3), keepdim=True).expand_as(shown)
            assert psnr(again.decode(latents), shown) > psnr(flat, shown) + 12


def test_its_terms_are_those_of_the_teachers_picture(inputs: Inputs) -> None:
    """The latents that the network is given, decoded by the autoencoder, are what it is compared with; a half of the noise is its most."""
    objective, given = DecoderObjective(PRESET, inputs), []

    def network(latents: Tensor) -> Tensor:
        given.append(latents)
        return objective.autoencoder.decode(latents) + 0.1

    batch = objective.draw(at())
    terms = objective.losses(network, batch, at().generator())
    assert terms["mae"].tolist() == pytest.approx([0.1] * 6, abs=1e-5) and float(terms["edges"].abs().max()) < 1e-5
    assert terms["psnr"].tolist() == pytest.approx([20 * np.log10(20)] * 6, abs=1e-2)
    levels = (given[0] - objective.autoencoder.encode(batch["images"])).flatten(1).std(1)
    assert 0 < float(levels.min()) < 0.25 < float(levels.max()) < 0.55
    assert {p.requires_grad for p in objective.autoencoder.parameters()} == {False}


def test_it_is_much_smaller_than_the_decoder_that_it_stands_for() -> None:
    """Multiplications by hand, from the sizes of the convolutions' outputs."""

    def work(decoder: torch.nn.Module, latents: Tensor) -> int:
        count = 0

        def add(module: torch.nn.Conv2d, given: tuple[Tensor], made: Tensor) -> None:
            nonlocal count
            count += made.numel() * module.weight[0].numel()

        hooks = [m.register_forward_hook(add) for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)]  # type: ignore[arg-type]
        with torch.no_grad():
            shape = decoder(latents).shape
        for hook in hooks:
            hook.remove()
        assert shape == (1, 3, 8 * latents.shape[2], 8 * latents.shape[3])
        return count

    for name, times in (("lab", 2), ("paper", 100)):
        row = presets.preset(name)
        with torch.device("meta"):
            whole = LatentAutoencoder.from_config_row(row.autoencoder).net.decoder
            latents = torch.zeros(1, row.autoencoder.channels, row.latent, row.latent)
            assert work(LossDecoder(row.autoencoder.channels), latents) < work(whole, latents) / times


def test_the_published_decoder_shows_the_face_of_unscaled_latents(weights_dir: Path, astronaut: Path) -> None:
    """Latents of its own encoder, scaled as Stable Diffusion scales them: the picture comes back, and so does a gradient."""
    from diffsfsr.encoders.onnx_net import OnnxNet
    from diffsfsr.face.images import to_tensor
    from diffsfsr.weights import find, resolve

    for name in ("vaelight_encoder", "vaelight_decoder"):
        if find(name) is None:
            pytest.skip(f"{name} is not on this machine")
    image = to_tensor(synthetic.faces(astronaut, 128)[0].crop[None])
    autoencoder = LatentAutoencoder("kl", channels=4, width=4)  # of which the scale alone is read
    assert autoencoder.latent_scale.tolist() == pytest.approx([0.18215] * 4)
    decoder = load_loss_decoder("vaelight_decoder", autoencoder)
    with torch.no_grad():
        latents = OnnxNet.load(resolve("vaelight_encoder"))(image) * 0.18215
    latents.requires_grad_(True)
    shown = decoder.decode(latents)
    assert shown.shape == image.shape and psnr(shown.detach(), image) > 20
    (gradient,) = torch.autograd.grad(shown[:, 0, 64, 64].sum(), latents)
    assert float(gradient[..., 4:12, 4:12].abs().max()) > 0 and bool(gradient.isfinite().all())
    assert float(gradient[..., 8, 8].abs().max()) > float(gradient[..., 0, 0].abs().max())  # it looks where the pixel is


def test_without_an_autoencoder_it_says_what_to_do(inputs: Inputs) -> None:
    with pytest.raises(NotReady, match=r"the autoencoder of preset decoder-tiny is missing at \(nowhere\); run `diffsfsr run train`"):
        DecoderObjective(PRESET, replace(inputs, autoencoder=""))
