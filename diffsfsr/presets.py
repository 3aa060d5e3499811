"""The table of presets: one row a named configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from diffsfsr.config import (
    Autoencoder,
    Conditioning,
    Data,
    Dln,
    Evaluation,
    Objective,
    Preset,
    Sampling,
    Schedule,
    Training,
    Unet,
    override,
)
from diffsfsr.errors import InputError, did_you_mean

# Two processes of one thread each: they meet once a step, where the threads of one process would meet in every layer, each time
# waiting for the one whose core another program holds.
_TWO_CORES = Training(batch=8, processes=2, zero_stage=1, checkpoint_every=250, log_every=20)
_SMALL = Preset(
    name="small",
    crop=128,
    conditioning=Conditioning(token_width=256, drop_all=0.1, mask_channel=True, pooled=True),
    unet=Unet(channels=(96, 160, 256), layers=1, heads=(2, 2, 4)),
    schedule=Schedule(prediction="v_prediction", zero_terminal_snr=True),
    # Ten times the paper's weights, for a hundredth of its steps: at its own the face losses are a fiftieth of the gradient.
    objective=Objective(lambda_id=0.03, lambda_exp=0.1, aux_fraction=0.25, aux_max_t=600, aux_from=0.75, other_photo=0.5),
    training=replace(_TWO_CORES, steps=20_000, lr=2e-4, warmup=200, decay_from=15_000, ema=0.999, checkpoint_every=400),
    sampling=Sampling(sampler="ddim", steps=25, guidance=2.0),
    evaluation=Evaluation(items=200, judge="any", pose="any"),
)
# Half an hour of two cores, so that ablations can be compared.
_LAB = replace(_SMALL.training, steps=3200, decay_from=2500, validate_every=400)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        name="paper",
        mask="segformer",
        conditioning=Conditioning(identity=("w600k_r50", "dlib", "facenet")),
        autoencoder=Autoencoder(kind="kl", channels=4, source="sd-1.4-vae"),
        dln=Dln(backbone="facenet", triplets=("annotations",)),
        unet=Unet(source="sd-1.4-unet"),
        training=Training(processes=8, validate_every=5000),
    ),
    "lab": replace(
        _SMALL,
        name="lab",
        conditioning=replace(_SMALL.conditioning, identity=("mobilefacenet_arcface", "dlib", "mobileface_v2")),
        dln=Dln(triplets=("labels", "blendshapes")),
        training=_LAB,
    ),
    "lab-commercial": replace(
        _SMALL,
        name="lab-commercial",
        commercial_only=True,
        data=Data(detector="yunet", landmarks="facemesh"),
        conditioning=replace(_SMALL.conditioning, identity=("dlib", "mobileface_v2")),
        dln=Dln(triplets=("labels", "blendshapes")),
        training=_LAB,
        evaluation=replace(_SMALL.evaluation, judge="reid0095", pose="pnp"),  # "any" may find one whose terms are not free
    ),
    "starter": replace(
        _SMALL,
        name="starter",
        data=Data(augment=("flip", "colour", "grey", "blur")),
        dln=Dln(triplets=("labels", "landmarks")),
        unet=replace(_SMALL.unet, channels=(96, 160, 224), attention=(False, True, True), scale_shift=True),
        objective=replace(
            _SMALL.objective,
            lambda_id=0.2,
            lambda_exp=6.0,
            lambda_perceptual=0.5,
            identity=("mobilefacenet_arcface", "mobileface_v2"),
            midpoint="one-step",
            aux_from=0.26,
            p_self=0.75,
        ),
        training=replace(_SMALL.training, steps=13_800, batch=16, lr=3e-4, decay_from=11_600, validate_every=1000),
        sampling=Sampling(
            sampler="ddim",
            steps=25,
            guidance=1.4,
            guidance_max_t=500,
            negative=True,
            eta=0.9,
            without_glasses=True,
            own_brows=True,
            scene_light=True,
        ),
    ),
    "demo": replace(
        _SMALL,
        name="demo",
        data=Data(max_outside=0.5),
        autoencoder=Autoencoder(width=48),
        unet=Unet(channels=(32, 64, 128), layers=1, heads=(1, 1, 2)),
        objective=Objective(aux_fraction=0.25, aux_max_t=600, p_self=0.8),
        training=replace(_TWO_CORES, steps=220, batch=4, lr=4e-4, warmup=10, decay_from=110, ema=0.98, checkpoint_every=50, log_every=10),
        evaluation=Evaluation(items=6, judge="any", pose="any"),
    ),
    "tiny": replace(
        _SMALL,
        name="tiny",
        crop=64,
        data=Data(shard=4),
        autoencoder=Autoencoder(channels=4, width=16),
        conditioning=Conditioning(token_width=32, drop_all=0.1, mask_channel=True, pooled=True),
        unet=Unet(channels=(32, 64), layers=1, heads=(1, 1)),
        objective=replace(_SMALL.objective, aux_from=0.0),
        training=Training(
            steps=20, batch=4, lr=1e-3, decay_from=15, ema=0.99, precision="fp32", zero_stage=1, checkpoint_every=10, log_every=5
        ),
        sampling=Sampling(sampler="ddim", steps=4, guidance=2.0),
        evaluation=Evaluation(items=8, batch=8, judge="any", pose="any"),
    ),
}

# The networks that a preset trains before its diffusion model, under the same launcher: `ae-lab`, `dln-lab`, `decoder-lab`, ...
_LONG_RUNS = (
    replace(_TWO_CORES, steps=2000, lr=1e-3, warmup=50, decay_from=1000),
    replace(_TWO_CORES, steps=600, batch=48, lr=1e-4, warmup=20, decay_from=300, log_every=50),  # a batch is of triplets
    replace(_TWO_CORES, steps=1500, lr=2e-3, warmup=50, decay_from=750),
)
_EXPERTS = {  # preset: (autoencoder, DLN, loss decoder)
    "lab": _LONG_RUNS,
    "lab-commercial": _LONG_RUNS,
    "starter": (replace(_LONG_RUNS[0], steps=8000, lr=6e-4, decay_from=5000), *_LONG_RUNS[1:]),  # what it loses, no portrait has
    "demo": (
        replace(_TWO_CORES, steps=220, batch=4, lr=1e-3, warmup=10, decay_from=110, checkpoint_every=75, log_every=10),
        replace(_TWO_CORES, steps=12, batch=6, lr=1e-4, decay_from=6, precision="fp32", checkpoint_every=6, log_every=2),
        replace(_TWO_CORES, steps=220, batch=4, lr=2e-3, warmup=10, decay_from=110, checkpoint_every=75, log_every=10),
    ),
    "tiny": (
        PRESETS["tiny"].training,
        replace(PRESETS["tiny"].training, steps=4, batch=12, decay_from=2, lr=1e-4, checkpoint_every=2, log_every=1),
        PRESETS["tiny"].training,
    ),
}
_NETWORKS: dict[str, Literal["autoencoder", "dln", "decoder"]] = {"ae": "autoencoder", "dln": "dln", "decoder": "decoder"}
for _name, _rows in _EXPERTS.items():
    for (_prefix, _network), _training in zip(_NETWORKS.items(), _rows, strict=True):
        _alone = replace(_training, ema=0.0)  # an average of weights is not what calibrated the latents
        PRESETS[f"{_prefix}-{_name}"] = replace(PRESETS[_name], name=f"{_prefix}-{_name}", trains=_network, training=_alone)
# Steps and rates are ours. The autoencoder is imported; a DLN is published by nobody in a form that this project reads: FEC trains it.
PRESETS["dln-paper"] = replace(
    PRESETS["paper"],
    name="dln-paper",
    trains="dln",
    training=Training(steps=20_000, batch=64, lr=1e-4, warmup=500, decay_from=10_000, processes=8),
)
PRESETS["decoder-paper"] = replace(
    PRESETS["paper"],
    name="decoder-paper",
    trains="decoder",
    training=Training(steps=20_000, lr=1e-3, warmup=500, decay_from=10_000, processes=8),
)

# What the method owes to each of its parts: the same preset without it, on the same experts. `lab-no-background`, ...
_ABLATIONS: dict[str, dict[str, Any]] = {
    "no-background": {"conditioning.background": "segmentation", "conditioning.mask_channel": False},  # the paper's Table 3
    "no-slot-3": {"conditioning.identity": slice(2)},
    "no-slots-2-3": {"conditioning.identity": slice(1)},
    "midpoint-original": {"objective.midpoint": "original"},
    "midpoint-one-step": {"objective.midpoint": "one-step"},
    "midpoint-no-noise": {"objective.midpoint_noise": False},
    "no-face-losses": {"objective.lambda_id": 0.0, "objective.lambda_exp": 0.0},
    "self-only": {"objective.p_self": 1.0},
    "mostly-cross": {"objective.p_self": 0.2},
    "no-slot-dropout": {"conditioning.slot_dropout": 0.0},
    "more-slot-dropout": {"conditioning.slot_dropout": 0.3},
}
for _basis in ("paper", "lab"):
    for _name, _changes in _ABLATIONS.items():
        _identity = PRESETS[_basis].conditioning.identity
        _row = override(PRESETS[_basis], {key: list(_identity[v]) if isinstance(v, slice) else v for key, v in _changes.items()})
        PRESETS[f"{_basis}-{_name}"] = replace(_row, name=f"{_basis}-{_name}", experts=_basis)

# Ten minutes of two cores from a trained model to one that knows the people of a folder better: `run train --preset starter --from
# starter`. The face losses are on from the first step, which is not the network's first; the average forgets where it began. A preset of
# its own, so that what was tuned never takes the place of what was trained.
_TUNING = replace(_TWO_CORES, steps=360, lr=1e-4, warmup=20, decay_from=180, ema=0.98, checkpoint_every=60, log_every=10)
_TUNINGS = {
    **dict.fromkeys(("starter", "lab", "lab-commercial"), _TUNING),
    "tiny": replace(PRESETS["tiny"].training, steps=4, decay_from=2, checkpoint_every=2, log_every=1),
}
TUNED = {f"{_basis}-tuned": _basis for _basis in _TUNINGS}  # name -> the preset whose model it trains on from
for _name, _basis in TUNED.items():
    _row = PRESETS[_basis]
    PRESETS[_name] = replace(_row, name=_name, objective=replace(_row.objective, aux_from=0.0), training=_TUNINGS[_basis])

# The same models with a decoder that finishes what their UNet makes: `run train --preset starter-finished --from starter`.
# Half of the way is most of the sharpness, and costs no likeness.
_FINISHING = replace(_TWO_CORES, steps=600, lr=1e-4, warmup=20, decay_from=400, ema=0.99, learned=0.5, checkpoint_every=100)
_FINISHES = {"starter": _FINISHING, "lab": _FINISHING, "lab-commercial": _FINISHING, "tiny": replace(_TUNINGS["tiny"], learned=0.5)}
for _basis, _training in _FINISHES.items():
    _name = f"{_basis}-finished"
    TUNED[_name] = _basis
    PRESETS[_name] = replace(PRESETS[_basis], name=_name, trains="finish", training=_training)


def tuned(name: str) -> str:
    """The preset by which models of that one are trained on. Raises InputError where there is none."""
    found = name if name in TUNED else f"{preset(name).name}-tuned"
    if found not in TUNED:
        known = ", ".join(dict.fromkeys(TUNED.values()))
        raise InputError(f"models of preset {name} are not trained on by a command: choose one of {known}")
    return found


def preset(name: str) -> Preset:
    """The row of that name. Raises InputError naming the nearest known preset."""
    if name not in PRESETS:
        main = [row.name for row in PRESETS.values() if row.portrays and not row.experts]
        more = "what they train (ae-lab, dln-lab, decoder-lab) and their ablations (lab-no-background, ...)"
        raise InputError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; known: {', '.join(main)}, {more}")
    return PRESETS[name]


def embedded_by(p: Preset) -> tuple[str, ...]:
    """The recognisers that a preset's faces are embedded by: an ablation that is told fewer of them shares its basis's tables."""
    own = p.recognisers
    basis = PRESETS[p.experts].recognisers if p.experts else own
    return basis if set(own) <= set(basis) else own
