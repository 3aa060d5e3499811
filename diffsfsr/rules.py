"""What a preset may not be: values out of range, and settings that do not go together."""

from __future__ import annotations

from typing import Any

from diffsfsr.errors import InputError

Preset = Any  # config.Preset, which is built on this module

_GROUPS = 32
_POSITIVE = (
    *("crop", "data.max_pixels", "data.shard", "autoencoder.channels", "autoencoder.width", "dln.dim", "conditioning.token_width"),
    *("unet.layers", "objective.aux_max_t", "training.steps", "training.batch", "training.accumulation", "training.processes"),
    *("training.checkpoint_every", "training.log_every", "training.keep_checkpoints", "training.validation_items"),
    *("sampling.steps", "evaluation.items", "evaluation.batch"),
)
_NOT_NEGATIVE = (
    *("data.min_face", "data.max_yaw", "data.max_outside", "dln.margin", "dln.margin_one_class", "objective.lambda_id"),
    *("objective.lambda_exp", "objective.lambda_perceptual", "objective.min_snr", "training.warmup", "training.decay_from"),
    *("training.weight_decay", "training.grad_clip", "training.ahead", "training.validate_every", "evaluation.seed"),
    *("sampling.guidance", "sampling.guidance_max_t", "objective.feature_weight"),
)


def _at(p: Preset, dotted: str) -> Any:
    value: Any = p
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def refuse_bad_combinations(p: Preset) -> None:
    """Raises InputError for the first rule that a row breaks, naming its settings with their values."""
    down = 8 * 2 ** (len(p.unet.channels) - 1)
    rules = [
        (p.crop % down != 0, f"crop={p.crop} is not a multiple of {down}, which unet.channels={list(p.unet.channels)} needs"),
        (
            len(p.unet.heads) != len(p.unet.channels),
            f"unet.heads={list(p.unet.heads)} and unet.channels={list(p.unet.channels)} differ in length",
        ),
        (
            len(p.unet.attention) not in (0, len(p.unet.channels)),
            f"unet.attention={list(p.unet.attention)} and unet.channels={list(p.unet.channels)} differ in length",
        ),
        (
            p.objective.midpoint == "original" and p.schedule.zero_terminal_snr and p.objective.aux_max_t >= p.schedule.steps,
            f"objective.midpoint=original divides by the signal level, which schedule.zero_terminal_snr=true makes zero at "
            f"step {p.schedule.steps}; set objective.aux_max_t={p.objective.aux_max_t} below it",
        ),
        (
            p.schedule.zero_terminal_snr and p.schedule.prediction == "epsilon",
            "schedule.zero_terminal_snr=true leaves schedule.prediction=epsilon without a signal at the last step; use v_prediction",
        ),
        (not 0 < p.training.learned <= 1, f"training.learned={p.training.learned} is not above 0 and at most 1"),
        (
            p.training.learned < 1 and not p.name.endswith(("-tuned", "-finished")),
            f"training.learned={p.training.learned} is for training on from a model: use `diffsfsr run train --from`",
        ),
        (
            p.sampling.guidance != 1.0 and p.conditioning.drop_all == 0.0,
            f"sampling.guidance={p.sampling.guidance} needs a model trained to do without its tokens, not with "
            f"conditioning.drop_all={p.conditioning.drop_all}",
        ),
        (
            p.sampling.sampler == "pndm" and p.schedule.zero_terminal_snr and p.sampling.steps >= p.schedule.steps,
            f"sampling.sampler=pndm with schedule.zero_terminal_snr=true needs sampling.steps={p.sampling.steps} below {p.schedule.steps}",
        ),
        (
            p.training.offload == "all" and p.training.zero_stage != 3,
            f"training.offload=all moves parameters, which training.zero_stage={p.training.zero_stage} does not divide; use stage 3",
        ),
        (
            p.training.offload == "optimizer" and p.training.zero_stage == 0,
            "training.offload=optimizer needs an optimiser that ZeRO divides, not training.zero_stage=0",
        ),
        (
            p.training.precision == "fp16" and p.training.zero_stage == 0,
            "training.precision=fp16 scales its losses in ZeRO's optimiser, which training.zero_stage=0 has not; use stage 1",
        ),
        (
            p.conditioning.background == "segmentation" and p.conditioning.mask_channel,
            "conditioning.background=segmentation is the mask alone; set conditioning.mask_channel=false",
        ),
        (
            p.trains != "diffusion" and p.training.validate_every > 0,
            f"training.validate_every={p.training.validate_every} with trains={p.trains}: only a diffusion model has pictures to show",
        ),
        (
            p.trains != "diffusion" and p.training.gradient_checkpointing,
            f"training.gradient_checkpointing=true with trains={p.trains} would do nothing: only a diffusion model's step is large",
        ),
        (
            not 0 < p.schedule.beta_start <= p.schedule.beta_end < 1,
            f"schedule.beta_start={p.schedule.beta_start} and schedule.beta_end={p.schedule.beta_end} are not 0 < start <= end < 1",
        ),
        (p.schedule.steps < 2, f"schedule.steps={p.schedule.steps} is no walk: use 2 or more"),
        (
            p.sampling.steps > p.schedule.steps,
            f"sampling.steps={p.sampling.steps} is more than the {p.schedule.steps} of schedule.steps",
        ),
        (
            p.sampling.sampler == "pndm" and p.sampling.steps < 2,
            f"sampling.sampler=pndm with sampling.steps={p.sampling.steps} would start at clean data; use 2 or more",
        ),
        (
            any(c % _GROUPS for c in p.unet.channels),
            f"unet.channels={list(p.unet.channels)} are not multiples of {_GROUPS}, the groups of a UNet's normalisation",
        ),
        (
            any(c % max(h, 1) for c, h in zip(p.unet.channels, p.unet.heads, strict=False)),
            f"unet.heads={list(p.unet.heads)} do not divide unet.channels={list(p.unet.channels)}",
        ),
        (
            p.data.face not in ("only", "largest") and not p.data.face.isdecimal(),
            f"data.face={p.data.face} is not only, largest or an index from the left",
        ),
        *[(_at(p, name) < 0, f"{name}={_at(p, name)} is negative") for name in _NOT_NEGATIVE],
        *[
            (not 0 <= _at(p, name) <= 1, f"{name}={_at(p, name)} is not between 0 and 1")
            for name in ("objective.p_self", "objective.other_photo", "objective.by_label", "objective.aux_fraction", "objective.aux_from")
        ],
        (
            p.trains == "diffusion" and _no_carrier(p),
            f"objective.aux_fraction={p.objective.aux_fraction} of training.batch={p.training.batch} is not one item, so that "
            "objective.lambda_id, lambda_exp and lambda_perceptual would do nothing",
        ),
        (
            p.objective.lambda_perceptual > 0 and "dlib" not in p.recognisers,
            f"objective.lambda_perceptual={p.objective.lambda_perceptual} looks through dlib's layers: name dlib in objective.identity",
        ),
        (not 0 <= p.conditioning.slot_dropout < 1, f"conditioning.slot_dropout={p.conditioning.slot_dropout} is not in [0, 1)"),
        (
            not 0 <= p.sampling.eta < 1,
            f"sampling.eta={p.sampling.eta} is not in [0, 1): at 1, rounding takes the root of a negative number",
        ),
        (
            p.sampling.eta > 0 and p.sampling.sampler != "ddim",
            f"sampling.eta={p.sampling.eta} does nothing with sampling.sampler={p.sampling.sampler}: use ddim, or sampling.eta=0",
        ),
        (not 0 <= p.conditioning.drop_all < 1, f"conditioning.drop_all={p.conditioning.drop_all} is not in [0, 1)"),
        (
            len(set(p.recognisers)) < len(p.recognisers),
            f"conditioning.identity={list(p.conditioning.identity)} and objective.identity={list(p.objective.identity)} name one twice",
        ),
        (len(set(p.data.augment)) < len(p.data.augment), f"data.augment={list(p.data.augment)} names one twice"),
        (not p.dln.triplets, "dln.triplets is empty: name who says which two of three faces look alike"),
        (len(set(p.dln.triplets)) < len(p.dln.triplets), f"dln.triplets={list(p.dln.triplets)} names one twice"),
        (not 0 <= p.data.test_fraction < 1, f"data.test_fraction={p.data.test_fraction} is not in [0, 1)"),
        *[(_at(p, name) < 1, f"{name}={_at(p, name)} is not positive") for name in _POSITIVE],
        (
            p.training.zero_stage == 3 and p.trains == "autoencoder",
            "training.zero_stage=3 with trains=autoencoder leaves no process with the whole network, which calibrating its latents "
            "needs; use a stage up to 2",
        ),
        (
            p.training.zero_stage == 3 and p.trains == "finish",
            "training.zero_stage=3 with trains=finish would divide two small networks that take turns; use a stage up to 2",
        ),
        *[
            (min(values, default=0) < 1, f"{name}={list(values)} are not all positive")
            for name, values in (("unet.heads", p.unet.heads), ("unet.channels", p.unet.channels))
        ],
        (p.crop > 4096, f"crop={p.crop} is more than 4096 pixels"),
        (not 0 <= p.training.seed < 2**63, f"training.seed={p.training.seed} is not between 0 and 2^63 - 1"),
        (p.training.lr <= 0, f"training.lr={p.training.lr} is not positive"),
        (not 0 <= p.training.ema < 1, f"training.ema={p.training.ema} is not in [0, 1)"),
        (not p.conditioning.identity, "conditioning.identity is empty: name at least one identity encoder"),
    ]
    for broken, why in rules:
        if broken:
            raise InputError(f"preset {p.name}: {why}")


def _no_carrier(p: Preset) -> bool:
    return p.objective.sees_faces and round(p.objective.aux_fraction * p.training.batch) == 0
