"""Settings: every preset round-trips, and what cannot work is refused by name and value before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from diffsfsr import config, presets
from diffsfsr.config import Preset
from diffsfsr.errors import InputError
from diffsfsr.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_round_trips_through_json(name: str) -> None:
    row = PRESETS[name]
    data = json.loads(json.dumps(config.to_dict(row)))
    again = config.from_dict(data)
    assert again == row and hash(again) == hash(row) and config.to_dict(again) == data
    assert row.name == name == presets.preset(name).name


def test_every_setting_survives_a_change() -> None:
    """Each leaf of the table, changed through its dotted name to another legal value, is what changes and all that changes."""
    others: dict[str, Any] = {
        "data.detector": "yunet", "data.landmarks": "facemesh",
        "crop": 256, "mask": "face_unet", "data.face": "largest", "autoencoder.kind": "kl", "conditioning.identity": ["other"],
        "unet.channels": [32, 64, 96, 128], "unet.heads": [1, 2, 4, 8], "unet.attention": [False, True, True, True],
        "objective.midpoint": "one-step", "objective.aux_fraction": 0.5, "objective.lambda_perceptual": 0.2,
        "training.precision": "fp32", "training.zero_stage": 3, "sampling.sampler": "unipc",
        "schedule.prediction": "epsilon", "schedule.zero_terminal_snr": True, "conditioning.drop_all": 0.25, "sampling.guidance": 1.0,
        "sampling.eta": 0.5,
        "objective.p_self": 0.25, "training.ema": 0.5, "dln.backbone": "facenet", "dln.triplets": ["blendshapes"],
        "conditioning.background": "segmentation", "training.offload": "optimizer", "evaluation.pose": "pnp",
        "objective.aux_from": 0.5, "objective.other_photo": 0.25, "data.augment": ["grey"], "objective.identity": ["dlib-other"],
    }  # fmt: skip
    start = config.override(PRESETS["paper"], {"schedule.prediction": "v_prediction", "sampling.sampler": "ddim"})
    flat = _flat(config.to_dict(start))
    for name, value in flat.items():
        if name == "training.learned":  # for what is trained on from a model alone
            assert config.override(PRESETS["lab-tuned"], {name: 0.5}).training.learned == 0.5
            continue
        if name in ("name", "trains", "experts"):  # what makes it another preset
            with pytest.raises(InputError, match="belongs to the preset"):
                config.override(start, {name: "dln"})
            continue
        new = others.get(name, value + 1 if type(value) is int else value / 2 if type(value) is float else f"{value}x")
        new = not value if type(value) is bool else new
        changed = config.override(start, {name: new if isinstance(new, str) else json.dumps(new)})
        assert _flat(config.to_dict(changed)) == flat | {name: new}
        assert type(_flat(config.to_dict(changed))[name]) is type(value)


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in data.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.step": "1"}, "unknown setting 'training.step' (did you mean steps?); known under training: steps, batch,"),
        ({"trainig.steps": "1"}, "(did you mean training?)"),
        ({"lr": "1"}, "unknown setting 'lr'"),
        ({"crop.size": "1"}, "unknown setting 'crop.size'; known under crop: none"),
        ({"training.steps": "many"}, "training.steps='many' must be of type int"),
        ({"training.steps": "1.5"}, "training.steps=1.5 must be of type int"),
        ({"training.steps": "true"}, "training.steps=True must be of type int"),
        ({"training.lr": "true"}, "training.lr=True must be of type float"),
        ({"training.lr": "NaN"}, "training.lr=nan is not a finite number"),
        ({"training.lr": "Infinity"}, "training.lr=inf is not a finite number"),
        ({"conditioning.mask_channel": "1"}, "conditioning.mask_channel=1 must be of type bool"),
        ({"training.zero_stage": "4"}, "training.zero_stage=4 is not one of 0, 1, 2, 3"),
        ({"training.zero_stage": "true"}, "training.zero_stage=True is not one of"),
        ({"training.zero_stage": "1.0"}, "training.zero_stage=1.0 is not one of"),
        ({"training.precision": "fp8"}, "training.precision='fp8' is not one of fp32, bf16, fp16"),
        ({"conditioning.identity": "dlib"}, "conditioning.identity='dlib' must be a list"),
        ({"unet.channels": "[32, 6.4]"}, "unet.channels=6.4 must be of type int"),
        ({"training": "7"}, "must be a table of settings, not 7"),
    ],
)
def test_what_is_not_a_setting_is_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        config.override(PRESETS["tiny"], changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_unknown_keys_of_a_file_name_the_nearest() -> None:
    data = config.to_dict(PRESETS["tiny"])
    data["training"]["acumulation"] = 2
    with pytest.raises(InputError, match=r"'training.acumulation' \(did you mean accumulation\?\)"):
        config.from_dict(data)
    with pytest.raises(InputError, match=r"'samplng' \(did you mean sampling\?\)"):
        config.from_dict({"name": "x", "samplng": {}})
    with pytest.raises(InputError, match=r"unknown preset 'papr' \(did you mean paper\?\); known: paper, lab"):
        presets.preset("papr")


# What breaks a rule, and every part of the message that has to name a setting with the value it has.
RULES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("lab", {"crop": 104}, ["crop=104", "32", "unet.channels=[96, 160, 256]"]),
    ("lab", {"unet.heads": [2, 3]}, ["unet.heads=[2, 3]", "unet.channels=[96, 160, 256]"]),
    (
        "lab",
        {"objective.midpoint": "original", "objective.aux_max_t": 1000},
        ["objective.midpoint=original", "schedule.zero_terminal_snr=true", "objective.aux_max_t=1000", "step 1000"],
    ),
    ("paper", {"schedule.zero_terminal_snr": True}, ["schedule.zero_terminal_snr=true", "schedule.prediction=epsilon"]),
    ("paper", {"sampling.guidance": 2.5}, ["sampling.guidance=2.5", "conditioning.drop_all=0.0"]),
    (
        "lab",
        {"sampling.sampler": "pndm", "sampling.steps": 1000},
        ["sampling.sampler=pndm", "schedule.zero_terminal_snr=true", "sampling.steps=1000"],
    ),
    ("lab", {"objective.aux_fraction": 0.25, "training.batch": 2}, ["objective.aux_fraction=0.25", "training.batch=2"]),
    ("lab", {"objective.lambda_perceptual": 0.5, "conditioning.identity": ["mobileface_v2"]}, ["objective.lambda_perceptual=0.5", "dlib"]),
    ("lab", {"sampling.eta": 0.5, "sampling.sampler": "dpm-solver++"}, ["sampling.eta=0.5", "sampling.sampler=dpm-solver++"]),
    ("starter", {"training.learned": 0.8}, ["training.learned=0.8", "run train --from"]),
    ("ae-lab", {"training.zero_stage": 3}, ["training.zero_stage=3", "trains=autoencoder"]),
    ("lab-finished", {"training.zero_stage": 3}, ["training.zero_stage=3", "trains=finish"]),
    ("lab", {"training.offload": "all"}, ["training.offload=all", "training.zero_stage=1"]),
    ("lab", {"training.offload": "optimizer", "training.zero_stage": 0}, ["training.offload=optimizer", "training.zero_stage=0"]),
    ("lab", {"training.precision": "fp16", "training.zero_stage": 0}, ["training.precision=fp16", "training.zero_stage=0"]),
    (
        "lab",
        {"conditioning.background": "segmentation"},
        ["conditioning.background=segmentation", "conditioning.mask_channel=false"],
    ),
    ("dln-lab", {"training.gradient_checkpointing": True}, ["training.gradient_checkpointing=true", "trains=dln"]),
    ("dln-lab", {"training.validate_every": 10}, ["training.validate_every=10", "trains=dln"]),
    ("lab", {"unet.channels": [96, 160, 250]}, ["unet.channels=[96, 160, 250]", "32"]),
    ("lab", {"unet.heads": [2, 3, 4]}, ["unet.heads=[2, 3, 4]", "unet.channels=[96, 160, 256]"]),
    ("paper", {"sampling.steps": 1}, ["sampling.sampler=pndm", "sampling.steps=1"]),
    ("lab", {"conditioning.identity": []}, ["conditioning.identity is empty"]),
    ("lab", {"conditioning.identity": ["dlib", "dlib"]}, ["conditioning.identity=['dlib', 'dlib']"]),
    *[("lab", {name: value}, [f"{name}={value}"]) for name, value in {
        "objective.p_self": 1.5, "objective.aux_fraction": 1.5, "conditioning.slot_dropout": 1.0, "conditioning.drop_all": -0.5,
        "data.test_fraction": 1.0, "data.shard": 0, "training.steps": 0, "training.batch": 0, "training.accumulation": 0,
        "training.processes": 0, "training.checkpoint_every": 0, "training.log_every": 0, "training.keep_checkpoints": 0,
        "training.seed": -1, "training.lr": 0.0, "training.ema": 1.0, "training.ahead": -1, "training.validate_every": -1,
        "training.validation_items": 0, "objective.min_snr": -1.0, "objective.aux_max_t": 0, "training.warmup": -3,
        "training.weight_decay": -1.0, "training.grad_clip": -1.0, "objective.lambda_id": -1.0, "training.decay_from": -5,
        "dln.margin": -3.0, "evaluation.seed": -1, "data.min_face": -1, "data.face": "-3", "sampling.guidance": -3.0,
 "sampling.eta": 1.0, "schedule.steps": 1, "schedule.beta_start": 0.0, "schedule.beta_end": 1.5, "sampling.steps": 5000,
        "sampling.guidance_max_t": -1, "objective.by_label": 1.5, "objective.feature_weight": -1.0, "training.learned": 0.0,
    }.items()],
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), RULES, ids=[next(iter(rule[1])) + f"-{i}" for i, rule in enumerate(RULES)])
def test_bad_combinations_are_refused(name: str, changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        config.override(PRESETS[name], changes)
    assert str(error.value).startswith(f"preset {name}: ") and "\n" not in str(error.value)
    assert [part for part in said if part not in str(error.value)] == []


def test_what_lies_just_inside_the_rules_is_allowed() -> None:
    for name, changes in [
        ("lab", {"objective.midpoint": "original", "objective.aux_max_t": 999}),
        ("lab", {"objective.aux_fraction": 0.25, "training.batch": 3}),
        ("lab", {"objective.aux_fraction": 0.25, "training.batch": 1, "objective.lambda_id": 0.0, "objective.lambda_exp": 0.0}),
        ("lab", {"objective.aux_fraction": 0.0, "training.batch": 1}),
        ("lab", {"training.zero_stage": 3}),
        ("dln-lab", {"training.zero_stage": 3}),
        ("lab", {"training.ema": 0.0, "conditioning.slot_dropout": 0.0, "objective.p_self": 1}),
        ("paper", {"sampling.guidance": 2.0, "conditioning.drop_all": 0.1}),
    ]:
        config.override(PRESETS[name], changes)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.partition("-")[0] in ("ae", "dln", "decoder")])
def test_a_presets_experts_share_its_architecture(name: str) -> None:
    kind, _, basis = name.partition("-")
    row, main = PRESETS[name], PRESETS[basis]
    assert row.trains == {"ae": "autoencoder", "dln": "dln", "decoder": "decoder"}[kind] and main.trains == "diffusion"
    same = dataclasses.replace(row, name=main.name, trains=main.trains, training=main.training)
    assert same == main
    assert row.training.ema == 0.0  # an average of weights is not what calibrated the latents


def test_the_papers_row_is_the_papers() -> None:
    """Section 4: learning rate, its fall, the global batch; section 3.3's weights; Stable Diffusion's schedule."""
    p: Preset = PRESETS["paper"]
    assert (p.training.lr, p.training.decay_from, p.training.steps) == (1e-5, 100_000, 200_000)
    assert (p.objective.lambda_id, p.objective.lambda_exp, p.objective.midpoint) == (0.003, 0.01, "improved")
    assert (p.crop, p.latent, p.autoencoder.channels, p.schedule.steps, p.training.ema) == (512, 64, 4, 1000, 0.0)
    assert (p.sampling.sampler, p.sampling.steps, p.sampling.guidance) == ("pndm", 50, 1.0)
    assert (p.conditioning.identity, p.mask, p.dln.backbone) == (("w600k_r50", "dlib", "facenet"), "segformer", "facenet")


def test_what_is_learned_on_lab_holds_for_starter() -> None:
    """They share latents, conditions and schedule; starter differs by its experts, its views of faces, its length and its sampling."""
    starter, lab = PRESETS["starter"], PRESETS["lab"]
    for part in ("crop", "mask", "autoencoder", "schedule", "evaluation"):
        assert getattr(starter, part) == getattr(lab, part)
    assert dataclasses.replace(lab.conditioning, identity=starter.conditioning.identity) == starter.conditioning
    judges = {"reid0095", "blendshapes"}
    assert judges.isdisjoint({*starter.conditioning.identity, *starter.objective.identity, *starter.dln.triplets})


def test_an_ablation_is_its_basis_without_one_part() -> None:
    """Each changes what its name says and nothing else, and learns from the same experts."""
    changed = {
        "no-background": {"conditioning.background", "conditioning.mask_channel"},
        **dict.fromkeys(("no-slot-3", "no-slots-2-3"), {"conditioning.identity"}),
        **dict.fromkeys(("midpoint-original", "midpoint-one-step"), {"objective.midpoint"}),
        "midpoint-no-noise": {"objective.midpoint_noise"},
        "no-face-losses": {"objective.lambda_id", "objective.lambda_exp"},
        **dict.fromkeys(("self-only", "mostly-cross"), {"objective.p_self"}),
        **dict.fromkeys(("no-slot-dropout", "more-slot-dropout"), {"conditioning.slot_dropout"}),
    }
    for basis in ("paper", "lab"):
        whole = _flat(config.to_dict(PRESETS[basis]))
        for name, settings in changed.items():
            row = PRESETS[f"{basis}-{name}"]
            differing = {key for key, value in _flat(config.to_dict(row)).items() if value != whole[key]}
            assert row.experts == basis and differing - {"name", "experts"} <= settings and differing & settings
        left = [len(PRESETS[f"{basis}{name}"].conditioning.identity) for name in ("", "-no-slot-3", "-no-slots-2-3")]
        assert left == [3, 2, 1]


def test_an_ablation_shares_the_tables_of_its_basis() -> None:
    lab = PRESETS["lab"]
    for name in ("lab", "lab-no-slot-3", "lab-no-slots-2-3", "lab-no-background", "dln-lab"):
        assert presets.embedded_by(PRESETS[name]) == lab.conditioning.identity
    other = config.override(PRESETS["lab-no-slot-3"], {"conditioning.identity": ["facenet", "dlib"]})
    assert presets.embedded_by(other) == ("facenet", "dlib")
    assert presets.embedded_by(config.override(lab, {"conditioning.identity": ["dlib"]})) == ("dlib",)
