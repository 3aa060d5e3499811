"""What `diffsfsr bench sample` measures: finished faces, beside diffusers' StableDiffusionPipeline with the same UNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffsfsr import config
from diffsfsr.config import Preset
from diffsfsr.model.pipeline import inference_dtype
from diffsfsr.training.cost import Estimate
from pipelines.benches import Pair, device

_PROMPT = 77  # the tokens of a prompt, which the peer attends to at every step
_COMPARED_STEPS = 4  # of the check, which runs in float32


def batches() -> tuple[int, ...]:
    return (1, 16) if device().type == "cuda" else (1, 8)


def sample(preset: Preset) -> Iterator[Pair]:
    """Faces of the preset's size, steps and guidance from ready embeddings, encoding the scene and decoding included.

    The peer has the base network before its input is widened, the same autoencoder and a prompt that is encoded already. Both
    are first run on the same tokens and noise, where they must give the same latents: what was added is silent until trained.
    """
    preset = config.override(preset, {"sampling.guidance_max_t": preset.schedule.steps})  # diffusers' guides every step
    ours, peer = pipelines(preset)
    row, flop = preset.sampling, Estimate(preset).cost().sample
    kind = inference_dtype(device())
    for batch in batches():
        given = Conditions.random(preset, batch)
        call = partial(ours, *given.scene, given.identity, given.expression, seeds=list(range(batch)), output_type="pt")
        text, null = (torch.randn((batch, _PROMPT, preset.conditioning.token_width), device=device(), dtype=kind) for _ in range(2))
        plain = partial(_plain, peer, text, null, row.steps, row.guidance, eta=row.eta, output_type="pt")
        check = partial(difference, preset, batch)
        name = f"{row.steps} steps of {row.sampler}, guidance {row.guidance:g} at every step"
        yield Pair(name, batch, call, "StableDiffusionPipeline, prompt encoded", plain, check, 1e-3, batch, batch, flop)


@dataclass(frozen=True)
class Conditions:
    """Seeded stand-ins for what a request brings: scene (B,3,S,S) and mask (B,1,S,S), embeddings (B,D) and (B,16)."""

    scene: tuple[Tensor, Tensor]
    identity: dict[str, Tensor | None]
    expression: Tensor

    @classmethod
    def random(cls, preset: Preset, batch: int) -> Conditions:
        draw, s = torch.Generator().manual_seed(1), preset.crop
        scene = torch.rand((batch, 3, s, s), generator=draw) * 2 - 1
        mask = torch.zeros((batch, 1, s, s))
        mask[..., s // 4 : -s // 8, s // 4 : -s // 4] = 1
        identity: dict[str, Tensor | None] = {n: torch.randn((batch, 128), generator=draw) for n in preset.conditioning.identity}
        expression = torch.nn.functional.normalize(torch.randn((batch, preset.dln.dim), generator=draw), dim=1)
        return cls((scene, mask), identity, expression)


def pipelines(preset: Preset, exact: bool = False) -> tuple[Any, Any]:
    """Ours with new weights, and diffusers' around the same ones. `exact`: float32."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.model.pipeline import DiffSFSRPipeline
    from diffsfsr.model.sampling import make_scheduler
    from diffsfsr.model.unet import DiffSFSR, unet_settings

    kind = torch.float32 if exact else inference_dtype(device())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffSFSR.from_preset(preset, dict.fromkeys(preset.conditioning.identity, 128))
        vae = LatentAutoencoder.from_config_row(preset.autoencoder)
    ours = DiffSFSRPipeline.from_model(model, vae, preset).to(device(), kind)
    base = UNet2DConditionModel(**{k: v for k, v in unet_settings(preset).items() if "class_embed" not in k})
    weights = {k: v for k, v in model.unet.state_dict().items() if not k.startswith("class_embedding")}
    base.load_state_dict({**weights, "conv_in.weight": weights["conv_in.weight"][:, : preset.autoencoder.channels]})
    scheduler = make_scheduler(preset.schedule, preset.sampling.sampler)
    peer = StableDiffusionPipeline(vae.net, None, None, base, scheduler, None, None, requires_safety_checker=False).to(device(), kind)
    for pipeline in (ours, peer):
        pipeline.set_progress_bar_config(disable=True)
    return ours, peer


def _plain(peer: Any, text: Tensor, null: Tensor, steps: int, guidance: float, **options: Any) -> Any:
    uncond = {"negative_prompt_embeds": null} if guidance > 1 else {}
    return peer(prompt_embeds=text, **uncond, num_inference_steps=steps, guidance_scale=guidance, **options).images


@torch.no_grad()
def difference(preset: Preset, batch: int) -> float:
    """The largest difference of both sides' latents on one prompt, noise and scene, in their standard deviations."""
    from diffsfsr.model.sampling import initial_noise

    ours, peer = pipelines(preset, exact=True)
    given, steps, guidance = Conditions.random(preset, batch), _COMPARED_STEPS, preset.sampling.guidance
    made = ours(*given.scene, given.identity, given.expression, steps=steps, eta=0.0, seeds=list(range(batch)), output_type="latent").images
    there = {name: value.to(device()) for name, value in given.identity.items() if value is not None}
    present = torch.ones((batch, len(ours.tokens.slots)), dtype=torch.bool)
    text, null = (ours.tokens(there, given.expression.to(device()), shown) for shown in (present, ~present))
    noise = initial_noise(made.shape[1:], range(batch), device())
    theirs = _plain(peer, text, null, steps, guidance, latents=noise, output_type="latent")
    return float((made - theirs).abs().max() / theirs.std())
