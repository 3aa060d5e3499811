"""DiffSFSR as a diffusers pipeline: one folder that reloads anywhere and gives the same picture."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from diffsfsr import config
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.face.images import to_uint8
from diffsfsr.face.masks import latent_mask
from diffsfsr.model.autoencoder import FACTOR, LatentAutoencoder, check_autoencoder, condition_latents
from diffsfsr.model.conditioning import ConditionTokens
from diffsfsr.model.diffusion import NoiseSchedule
from diffsfsr.model.published import Part, scheduler_config, stable_diffusion
from diffsfsr.model.sampling import conditioned, make_scheduler, sample
from diffsfsr.model.unet import DiffSFSR, check_unet

OUTPUTS = ("pt", "np", "pil", "latent")
OnStepEnd = Callable[["DiffSFSRPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


def inference_dtype(device: torch.device) -> torch.dtype:
    """In which precision portraits are made on a device: bf16 on a GPU. On a CPU it gains nothing that outlasts a second run."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass
class FaceOutput(BaseOutput):
    """The faces, by output_type: "pt" (B,3,S,S) float32 in [-1, 1]; "np" (B,S,S,3) uint8; "pil" B pictures; "latent" scaled (B,C,h,w).

    The ranges are this project's, not those of diffusers' own pipelines ([0, 1], float).
    """

    images: Tensor | np.ndarray | list[Image.Image]


class DiffSFSRPipeline(DiffusionPipeline):
    """Scene, identity and expression -> faces.

    Components unet, vae, tokens and scheduler; the rest of what a preset says about them is in model_index.json. What the UNet
    is told of the scene shows in its input channels. Any diffusers scheduler on the model's own noise levels will do:
    `pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)`.

    Args:
        schedule: config.Schedule as a dict: the noise levels behind every scheduler, and what the network predicts.
        sampling: config.Sampling as a dict: the defaults of a call.
        guidable: whether the null tokens were trained as a whole, which guidance needs.
    """

    _callback_tensor_inputs = ["latents"]
    _interrupt = False

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: LatentAutoencoder,
        tokens: ConditionTokens,
        scheduler: Any,
        schedule: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        guidable: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, tokens=tokens, scheduler=scheduler)
        row = config.Schedule(**(schedule or {}))
        defaults = config.Sampling(**(sampling or {}))
        self.register_to_config(schedule=dataclasses.asdict(row), sampling=dataclasses.asdict(defaults), guidable=guidable)
        if unet.config.in_channels not in _backgrounds(vae.config.channels):
            raise InputError(f"a UNet of {unet.config.in_channels} input channels does not fit latents of {vae.config.channels}")

    @classmethod
    def from_model(cls, model: DiffSFSR, vae: LatentAutoencoder, preset: config.Preset, scheduler: Any = None) -> DiffSFSRPipeline:
        """The pipeline around a trained model's own modules (shared, not copied); the scheduler is the preset's unless given."""
        return cls(
            unet=model.unet,
            vae=vae,
            tokens=model.tokens,
            scheduler=scheduler or make_scheduler(preset.schedule, preset.sampling.sampler),
            schedule=dataclasses.asdict(preset.schedule),
            sampling=dataclasses.asdict(preset.sampling),
            guidable=preset.conditioning.drop_all > 0,
        )

    @classmethod
    def from_stable_diffusion(
        cls, source: str | Path, preset: config.Preset, identity_dims: dict[str, int], dtype: torch.dtype = torch.float32
    ) -> DiffSFSRPipeline:
        """Section 3.1: Stable Diffusion 1.4 as the pipeline that training starts from.

        conv_in takes the condition's channels too, with zeros for weights, and K + 1 new tokens stand in place of the text.

        Args:
            source: "CompVis/stable-diffusion-v1-4" (the zoo's folder where that is on this machine, else the hub or its cache),
                another name on the hub, or a local folder of the same layout: unet/, vae/ and scheduler/.
            preset: what the parts must fit, `presets.preset("paper")` unless there is a reason.
            identity_dims: encoder name -> D, in the preset's order.

        Raises: InputError when a part is missing or damaged, or its config does not fit the preset; all three are looked at
        before any weight is read.
        """
        unet, vae, scheduler = (Part(stable_diffusion(source), part) for part in ("unet", "vae", "scheduler"))
        check_unet(preset, unet)
        check_autoencoder(vae, preset.autoencoder)
        levels = scheduler_config(scheduler, preset.schedule)
        model = DiffSFSR.from_preset(preset, identity_dims, unet_folder=unet, dtype=dtype).eval()
        autoencoder = LatentAutoencoder.from_diffusers(vae, preset.autoencoder, dtype).eval()
        sampler = type(make_scheduler(preset.schedule, preset.sampling.sampler))
        return cls.from_model(model, autoencoder, preset, sampler.from_config(levels))

    @property
    def model(self) -> DiffSFSR:
        """UNet and tokens as the module that training sees."""
        row = config.Schedule(**self.config.schedule)
        return DiffSFSR(self.unet, self.tokens, NoiseSchedule.from_config(row), row.prediction)

    @property
    def background(self) -> str:
        """What the UNet is told of the scene, config.Conditioning.background: "image", or "segmentation" where it sees the mask alone."""
        return _backgrounds(self.vae.config.channels)[self.unet.config.in_channels][0]

    @property
    def mask_channel(self) -> bool:
        """Whether the UNet sees the face mask beside the image."""
        return _backgrounds(self.vae.config.channels)[self.unet.config.in_channels][1]

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress is to skip its remaining steps; a callback sets `pipe._interrupt = True`, as in diffusers."""
        return self._interrupt

    def set_sampler(self, name: str) -> None:
        """Swaps the scheduler by name, on the same noise levels. Raises InputError for an unknown one."""
        self.register_modules(scheduler=make_scheduler(config.Schedule(**self.config.schedule), name))

    @torch.no_grad()
    def __call__(
        self,
        scene: Tensor,
        mask: Tensor,
        identity: dict[str, Tensor | None],
        expression: Tensor | None = None,
        negative_expression: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_max_t: int | None = None,
        eta: float | None = None,
        seeds: Sequence[int] | None = None,
        output_type: str = "pt",
        present: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """One face per item, whole crops; pasting back is the caller's.

        Args:
            scene: (B,3,S,S) in [-1, 1]. mask: (B,1,S,S), 1 on the face.
            identity: encoder name -> (B,D) raw embeddings; an encoder left out is replaced by its null token.
            expression: (B,16) as the scene's head would show it (`Dln.posed`), or None.
            negative_expression: (B,16), what guidance leads away from, in place of no expression; without guidance it has no effect.
            present: (B,K+1) bool, see `ConditionTokens.forward`.
            steps, guidance, guidance_max_t, eta: the trained preset's unless given; see `sample`.
            seeds: one per item; 0..B-1 unless given. generator: in place of seeds, one for all items in turn, or one per item.
            output_type: pt, np, pil or latent, see `FaceOutput`.
            callback_on_step_end: called after each step as callback(pipe, i, timestep, {"latents": (B,C,h,w)}); of the dict that
                it returns, "latents" go on in place of those.
            return_dict: a `FaceOutput`, or the tuple (images,) where it is false.

        Raises: InputError for shapes that do not fit, an unknown output_type, guidance that was not trained, or a scheduler on
        other noise levels than the model's.
        """
        defaults = config.Sampling(**self.config.sampling)
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        guidance_max_t = defaults.guidance_max_t if guidance_max_t is None else guidance_max_t
        eta = defaults.eta if eta is None else eta
        generators = _per_item(generator, len(scene), seeds)
        seeds = list(range(len(scene)) if seeds is None else seeds)
        self._check(scene, mask, expression, negative_expression, seeds, guidance)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        self._check_scheduler()
        self._interrupt = False
        device = self._execution_device
        scene, mask = (x.to(device, self.vae.dtype) for x in (scene, mask))
        condition = condition_latents(self.vae, scene, mask, self.mask_channel, self.background)
        named = {k: None if v is None else v.to(device) for k, v in identity.items()}
        travel = None if expression is None else expression.to(device)
        negative = None if negative_expression is None else negative_expression.to(device)
        shown = None if present is None else present.to(device, torch.bool)
        latents = sample(
            conditioned(self.model, condition.to(self.unet.dtype), named, travel, shown, negative),
            (self.vae.config.channels, *condition.shape[-2:]),
            self.scheduler,
            steps,
            seeds,
            guidance,
            device,
            self._until_interrupted,
            keep=self._kept(scene, mask),
            callback=None if callback_on_step_end is None else self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs),
            generators=generators,
            eta=eta,
            guidance_max_t=guidance_max_t,
        )
        images = latents if output_type == "latent" else self._pictures(latents, output_type)
        return FaceOutput(images=images) if return_dict else (images,)

    def _kept(self, scene: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
        """Section 4.3, without the background condition: the scene's latents, and where they shall not stay (1), while sampling."""
        if self.background == "image":
            return None
        return self.vae.encode(scene).float(), latent_mask(mask, FACTOR).float()

    def _pictures(self, latents: Tensor, output_type: str) -> Tensor | np.ndarray | list[Image.Image]:
        images = self.vae.decode(latents.to(self.vae.dtype)).float().clamp(-1, 1)
        if output_type == "pt":
            return images
        pixels = to_uint8(images)
        return pixels if output_type == "np" else [Image.fromarray(one) for one in pixels]

    def _until_interrupted(self, steps: Iterable[Any]) -> Iterator[Any]:
        for step in self.progress_bar(steps):
            if self._interrupt:
                return
            yield step

    def _step_end(self, callback: OnStepEnd, names: Sequence[str]) -> Callable[[int, Tensor, Tensor], Tensor | None]:
        """diffusers' form of a callback in the form that `sample` takes."""

        def call(i: int, t: Tensor, latents: Tensor) -> Tensor | None:
            given = {"latents": latents} if "latents" in names else {}
            return (callback(self, i, t, given) or {}).get("latents")

        return call

    def _check(
        self, scene: Tensor, mask: Tensor, expression: Tensor | None, negative: Tensor | None, seeds: list[int], guidance: float
    ) -> None:
        side = FACTOR * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if scene.ndim != 4 or scene.shape[1] != 3 or scene.shape[2] % side or scene.shape[3] % side:
            raise InputError(f"scene must be (B, 3, S, S) with S a multiple of {side}, not {tuple(scene.shape)}")
        if mask.shape != (len(scene), 1, *scene.shape[2:]):
            raise InputError(f"mask must be {(len(scene), 1, *scene.shape[2:])} to fit the scene, not {tuple(mask.shape)}")
        if negative is not None and (expression is None or negative.shape != expression.shape):
            raise InputError("negative_expression must be of the same shape as an expression that is given too")
        if len(seeds) != len(scene):
            raise InputError(f"{len(scene)} scenes need as many seeds, not {len(seeds)}")
        if guidance != 1.0 and not self.config.guidable:
            raise InputError(f"guidance={guidance} needs a model trained with conditioning.drop_all above 0; use 1")

    def _check_output(self, output_type: str, inputs: Sequence[str]) -> None:
        if output_type not in OUTPUTS:
            raise InputError(f"unknown output_type {output_type!r}{did_you_mean(output_type, OUTPUTS)}; known: {', '.join(OUTPUTS)}")
        unknown = set(inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs={sorted(unknown)} are not to be had; known: {self._callback_tensor_inputs}"
            )

    def _check_scheduler(self) -> None:
        """A scheduler swapped in must stand on the noise levels, and expect the prediction, that the network was trained on."""
        row, name, settings = config.Schedule(**self.config.schedule), type(self.scheduler).__name__, self.scheduler.config
        levels, trained = getattr(self.scheduler, "alphas_cumprod", torch.zeros(0)), NoiseSchedule.from_config(row).alpha_bar[1:]
        if levels.shape != trained.shape or not torch.allclose(levels.cpu().double(), trained, rtol=0, atol=1e-4):
            can = "rescale_betas_zero_snr" in inspect.signature(type(self.scheduler).__init__).parameters
            lost = row.zero_terminal_snr and not can
            why = "cannot rescale its betas to the zero terminal SNR" if lost else "does not have the noise levels"
            raise InputError(f"{name} {why} that this model was trained on; use another class, by from_config(pipe.scheduler.config)")
        if settings.get("prediction_type") != row.prediction:
            raise InputError(
                f"{name} expects prediction_type={settings.get('prediction_type')}; the model was trained for {row.prediction}"
            )
        if settings.get("clip_sample"):
            raise InputError(f"{name} has clip_sample=True; latents have no bounds: set it to False")


def _backgrounds(channels: int) -> dict[int, tuple[str, bool]]:
    """A UNet's input channels -> (background, mask_channel), for latents of so many channels."""
    return {channels + 1: ("segmentation", False), 2 * channels: ("image", False), 2 * channels + 1: ("image", True)}


def _per_item(
    generator: torch.Generator | Sequence[torch.Generator] | None, items: int, seeds: Sequence[int] | None
) -> list[torch.Generator] | None:
    if generator is None:
        return None
    if seeds is not None:
        raise InputError("give seeds or generator, not both")
    each = [generator] * items if isinstance(generator, torch.Generator) else list(generator)
    if len(each) != items:
        raise InputError(f"{items} scenes need one generator or as many, not {len(each)}")
    return each
