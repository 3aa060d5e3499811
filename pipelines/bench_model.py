"""What `diffsfsr bench train` and `bench sample` measure, on a new model of the preset and random latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffsfsr.config import Preset
from pipelines.benches import Pair, device


def network(preset: Preset) -> Any:
    """A new model for the preset on the device, stirred: where weights start at zero, conditions would not reach the output."""
    from diffsfsr.model.unet import DiffSFSR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffSFSR.from_preset(preset, dict.fromkeys(preset.conditioning.identity, 128))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
    return model.to(device())


def conditions(preset: Preset, batch: int) -> dict[str, Any]:
    """Random condition latents and embeddings for a batch, the arguments of the model beside z_t and t."""
    draw = torch.Generator().manual_seed(1)
    h, c = preset.latent, preset.conditioning
    condition = torch.randn((batch, preset.autoencoder.channels + c.mask_channel, h, h), generator=draw)
    identity = {name: torch.randn((batch, 128), generator=draw).to(device()) for name in c.identity}
    expression = torch.nn.functional.normalize(torch.randn((batch, preset.dln.dim), generator=draw), dim=1)
    return {"condition": condition.to(device()), "identity": identity, "expression": expression.to(device())}


def train(preset: Preset) -> Iterator[Pair]:
    """A step of the UNet with the improved midpoint in closed form, against Eq. 2 applied t - s times.

    Forward, Eq. 3 on random latents, the midpoint's estimate compared with z_0 in the place of Eq. 5 and 6, and backward. No
    decoder and no experts, which would cost both the same; no optimiser.
    """
    from diffsfsr.model.diffusion import improved_midpoint

    model, batch = network(preset).train(), preset.training.batch
    t = _spread(preset, batch)
    carriers = torch.nonzero(t <= preset.objective.aux_max_t).flatten()[: max(1, round(preset.objective.aux_fraction * batch))]
    longest = int((t - t // 2)[carriers].max())
    step = partial(_step, model, preset, conditions(preset, batch), t.to(device()), carriers.to(device()))

    def difference() -> float:
        ours, peer = (step(midpoint, exact=True) for midpoint in (improved_midpoint, folded_midpoint))
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, peer, strict=True))

    peer_name = f"the same step, Eq. 2 applied up to {longest} times"
    calls = (partial(step, improved_midpoint), peer_name, partial(step, folded_midpoint), difference)
    yield Pair("UNet training step", batch, *calls, 1e-4, batch, batch, memory=True)


def _spread(preset: Preset, batch: int) -> Tensor:
    """Timesteps (B,) spread evenly over 1..T, in a random order."""
    even = (torch.arange(batch) + 0.5) / batch * preset.schedule.steps
    return even.long().clamp(min=1)[torch.randperm(batch, generator=torch.Generator().manual_seed(2))]


def _step(
    model: Any, preset: Preset, given: dict[str, Any], t: Tensor, items: Tensor, midpoint: Any, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """One step; returns the midpoint's estimate and the gradient at the first layer.

    `exact`: float32 and no noise in the midpoint, so that two ways to it can be compared.
    """
    from diffsfsr.model.diffusion import add_noise, training_target
    from diffsfsr.training.losses import diffusion_loss

    draw, h = torch.Generator().manual_seed(3), preset.latent
    z_0, eps = (torch.randn((len(t), preset.autoencoder.channels, h, h), generator=draw).to(t.device) for _ in range(2))
    z_t = add_noise(z_0, eps, t, model.schedule)
    model.zero_grad(set_to_none=True)
    with torch.autocast(t.device.type, torch.bfloat16, enabled=preset.training.precision == "bf16" and not exact):
        output = model(z_t, t, **given).float()
        chosen = {k: {n: e[items] for n, e in v.items()} if isinstance(v, dict) else v[items] for k, v in given.items()}
        paid = [output[items]]  # the midpoint's first prediction is the one that Eq. 3 has paid for

        def predict_z0(z: Tensor, at: Tensor) -> Tensor:
            return model.z0_from_output(paid.pop() if paid else model(z, at, **chosen).float(), z, at)

        estimate = midpoint(predict_z0, z_t[items], t[items], model.schedule, draw, preset.objective.midpoint_noise and not exact)
    target = training_target(preset.schedule.prediction, z_0, eps, t, model.schedule)
    (diffusion_loss(output, target).mean() + diffusion_loss(estimate.float(), z_0[items]).mean()).backward()
    return estimate.detach(), model.unet.conv_in.weight.grad


def folded_midpoint(predict_z0: Any, z_t: Tensor, t: Tensor, schedule: Any, generator: torch.Generator, noise: bool = True) -> Tensor:
    """Section 3.3 as it is written: Eq. 2 applied t - s times with one z0_hat, a draw of noise each time."""
    from diffsfsr.model.diffusion import gaussian, posterior

    s, now, z = t // 2, t, z_t
    z0_hat = predict_z0(z_t, t)
    while bool((now > s).any()):
        moves = (now > s).view(-1, 1, 1, 1)
        mean, variance = posterior(z0_hat, z, now.clamp(min=1), schedule)
        z = torch.where(moves, mean + variance.sqrt() * gaussian(z, generator) if noise else mean, z)
        now = torch.where(now > s, now - 1, now)
    return torch.where((s == 0).view(-1, 1, 1, 1), z0_hat, predict_z0(z, s.clamp(min=1)))


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(preset: Preset) -> Iterator[Pair]:
    """Latents from noise at the preset's steps and guidance, against a plain diffusers loop, one item at a time."""
    from diffsfsr.model import sampling

    model, row = network(preset).eval(), preset.sampling
    shape = (preset.autoencoder.channels, preset.latent, preset.latent)
    scheduler = sampling.make_scheduler(preset.schedule, row.sampler)
    for batch in (1, 8):
        given = conditions(preset, batch)
        bound = sampling.conditioned(model, given["condition"], given["identity"], given["expression"])
        ours = partial(sampling.sample, bound, shape, scheduler, row.steps, list(range(batch)), row.guidance, device())
        peer = partial(_plain_loop, model, given, shape, sampling.make_scheduler(preset.schedule, row.sampler), row.steps, row.guidance)
        check = partial(_worst, ours, peer, sorted({0, batch - 1}))
        calls = (ours, "diffusers' loop, one at a time", partial(peer, 0), check)
        yield Pair(f"{row.steps} steps of {row.sampler}", batch, *calls, 1e-2, batch)


def _worst(ours: Callable[[], Tensor], peer: Callable[[int], Tensor], items: list[int]) -> float:
    """The largest difference of some items, in standard deviations of the peer's latents."""
    made = ours()
    pairs = [(made[i : i + 1], peer(i)) for i in items]
    return max(float((a - b).abs().max() / b.std()) for a, b in pairs)


@torch.no_grad()
def _plain_loop(
    model: Any, given: dict[str, Any], shape: tuple[int, ...], scheduler: Any, steps: int, guidance: float, item: int
) -> Tensor:
    """What a user of diffusers writes: latents (1,C,h,w) of one item, its index being its seed."""
    own = {name: e[item : item + 1] for name, e in given["identity"].items()}
    everything = torch.ones((1, len(own) + 1), dtype=torch.bool, device=device())
    shown = (everything,) if guidance == 1 else (everything, ~everything)
    tokens = torch.cat([model.tokens(own, given["expression"][item : item + 1], present) for present in shown])
    pooled = {"class_labels": tokens.mean(1)} if model.unet.config.class_embed_type else {}
    condition = given["condition"][item : item + 1]
    scheduler.set_timesteps(steps)
    z = torch.randn((1, *shape), generator=torch.Generator().manual_seed(item)).to(device()) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = torch.cat([z, condition], 1).expand(len(tokens), -1, -1, -1)
        output = model.unet(x, t, encoder_hidden_states=tokens, **pooled).sample
        if guidance != 1:
            output = output[1:] + guidance * (output[:1] - output[1:])
        z = scheduler.step(output, t, z).prev_sample
    return z
