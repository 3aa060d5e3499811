"""Every benchmark does the same work as its peer and reports figures that follow from the times; speed itself is not tested."""

from __future__ import annotations

import dataclasses
import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffsfsr import presets
from diffsfsr.errors import InputError
from diffsfsr.model.diffusion import NoiseSchedule, improved_midpoint
from pipelines import bench, bench_encoders, bench_sample, bench_train, benches, cli

KEYS = {"name", "batch", "per_second", "ms_per_item", "peer", "peer_per_second", "ratio", "rounds", "difference"}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "CATALOGUE_ROWS", 500)


def run(what: str, as_json: bool = True, changes: tuple[str, ...] = ()) -> Any:
    return bench.bench(Namespace(what=what, preset="tiny", set=list(changes), seconds=0.01, json=as_json))


EXPECTED = {"train": (1, 2e-2), "sample": (2, 1e-3), "catalogue": (3, 1e-4)}  # rows, largest difference


def test_every_bench_of_the_command_is_tested() -> None:
    assert set(cli.BENCHES) == {*EXPECTED, "encoders"}


@pytest.mark.parametrize(("what", "rows", "tolerance"), [(what, *expected) for what, expected in EXPECTED.items()])
def test_each_bench_agrees_with_its_peers(what: str, rows: int, tolerance: float) -> None:
    found = json.loads(json.dumps(run(what)))
    assert found["bench"] == what and found["preset"] == "tiny" and found["machine"]["cores"] >= 1
    assert len(found["rows"]) == rows
    for row in found["rows"]:
        check(row, tolerance)
        if what in ("train", "sample"):
            assert row["peak_mb"] > 50 and row["peer_peak_mb"] > 50 and row["tflops"] > 0
            shares = [operation["share"] for operation in row["profile"]]
            assert shares == sorted(shares, reverse=True) and 0.2 < sum(shares) <= 1.001


def test_the_peers_do_the_same_at_the_starters_objective_and_sampling() -> None:
    """One step, other recognisers and a perceptual loss, from later on; fresh noise in every step."""
    o, s = presets.preset("starter").objective, presets.preset("starter").sampling
    changes = [f"objective.identity={json.dumps(o.identity)}", f"objective.midpoint={o.midpoint}", f"objective.aux_from={o.aux_from}"]
    changes += [f"objective.lambda_perceptual={o.lambda_perceptual}", f"sampling.eta={s.eta}"]
    for what in ("train", "sample"):
        for row in run(what, changes=tuple(changes))["rows"]:
            check(row, EXPECTED[what][1])


def check(row: dict[str, Any], tolerance: float) -> None:
    assert KEYS <= row.keys() and row["peer"] and row["rounds"] >= 1
    assert 0 <= row["difference"] <= tolerance
    assert row["per_second"] * row["ms_per_item"] == pytest.approx(1000, rel=2e-3)
    assert row["ratio"] == pytest.approx(row["per_second"] / row["peer_per_second"], rel=2e-3)


NETWORKS = {"dlib": 1e-4, "DLN on dlib": 1e-4}
WITH_WEIGHTS = NETWORKS | {name: 1e-4 for name in ("mobilefacenet_arcface", "mobileface_v2", "reid0095")} | {"blendshapes": 2e-3}


@pytest.mark.parametrize("given", [False, True])
def test_encoders_that_are_here_agree_with_their_peers(
    given: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given:
        request.getfixturevalue("weights_dir")
    else:
        monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    monkeypatch.setattr(bench_encoders, "BATCHES", (1, 3) if given else (3,))
    rows = json.loads(json.dumps(run("encoders")))["rows"]
    for row in rows:
        (measure,) = [name for name in (*WITH_WEIGHTS, "detect", "align") if row["name"].split(",")[0] == name]
        check(row, {"detect": 0, "align": 0.05, **WITH_WEIGHTS}[measure])
    networks = [(row["name"], row["batch"], row["peer"]) for row in rows if row["name"] in WITH_WEIGHTS]
    assert {name for name, _, _ in networks} >= set(WITH_WEIGHTS if given else NETWORKS)
    assert len(set(networks)) == len(networks) and {batch for _, batch, _ in networks} == set(bench_encoders.BATCHES)
    detectors = {"dlib", "yunet"} if given else {"dlib"}
    assert {row["name"].split(", ")[1] for row in rows if row["name"].startswith("detect")} >= detectors
    if given:
        feats = [row["name"] for row in rows if row["peer"] == "insightface's get_feat"]
        assert set(feats) >= {"mobilefacenet_arcface", "mobileface_v2"} and "reid0095" not in feats  # that one takes BGR


def test_the_table_names_every_row_and_its_peer() -> None:
    row = {"name": "thing", "batch": 8, "per_second": 1234.5, "ms_per_item": 0.81, "peer": "their thing"}
    row |= {"peer_per_second": 2.0, "ratio": 617.2}
    machine = {"processor": "P", "cores": 2, "threads": 1, "load": 9.0, "accelerator": "none", "torch": "2"}
    text = bench.table({"bench": "b", "preset": "tiny", "machine": machine, "rows": [row]})
    assert "thing" in text and "their thing" in text and "617.2" in text and "busy" in text


def pair(**changes: Any) -> benches.Pair:
    given = {"name": "ours", "batch": 4, "ours": lambda: time.sleep(0.02), "peer_name": "theirs", "peer": lambda: time.sleep(0.01)}
    return benches.Pair(**{**given, "difference": lambda: 0.0, "tolerance": 0.0, "items": 4, "peer_items": 1, **changes})


class Clock:
    """Time that passes only where a call says that it takes some."""

    now = 0.0

    def taking(self, seconds: float, done: Callable[[], object] = object) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            done()

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_figures_follow_from_known_times(clock: Clock) -> None:
    turns: list[str] = []
    ours, peer = clock.taking(0.02, lambda: turns.append("ours")), clock.taking(0.01, lambda: turns.append("peer"))
    row = bench.measure(pair(ours=ours, peer=peer), 0.2)
    assert turns == ["ours", "peer"] * row["rounds"] and row["rounds"] == 7  # of 30 ms each
    assert row["ms_per_item"] == pytest.approx(5)  # 20 ms for 4 items
    assert row["ratio"] == pytest.approx(2)  # 10 ms for one item of the peer


def test_a_long_call_is_not_repeated_for_ever(clock: Clock) -> None:
    assert bench.measure(pair(ours=clock.taking(0.1), peer=clock.taking(0.01)), 0.01)["rounds"] == 1


@pytest.mark.parametrize("difference", [0.5, float("nan"), float("inf")])
def test_what_differs_is_not_timed(difference: float) -> None:
    with pytest.raises(RuntimeError, match="ours and theirs differ by"):
        bench.measure(pair(difference=lambda: difference, tolerance=0.1), 0.01)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bad_arguments_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="--seconds"):
        bench.bench(Namespace(what="train", preset="tiny", set=[], seconds=seconds, json=True))
    with pytest.raises(InputError, match="did you mean tiny"):
        bench.bench(Namespace(what="train", preset="tinny", set=[], seconds=1, json=True))


def test_the_peak_is_that_of_the_call() -> None:
    large = bench._peak(lambda: np.ones(60_000_000).sum())
    small = bench._peak(lambda: None)
    assert 400 < large - small < 600  # 480 MB of float64


def test_the_fold_is_the_closed_form_and_sees_a_wrong_one() -> None:
    """The peer itself: in float64, with the noise left out, both midpoints are one."""
    preset = presets.preset("tiny")
    schedule = NoiseSchedule.from_config(preset.schedule)
    g = torch.Generator().manual_seed(0)
    z = torch.randn((4, 4, 8, 8), generator=g, dtype=torch.float64)
    t = torch.tensor([1, 2, 333, 1000])

    def predict(z_t: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z_t + at.view(-1, 1, 1, 1) / 1000)

    ours = improved_midpoint(predict, z, t, schedule, noise=False)
    assert (bench_train.folded_midpoint(predict, z, t, schedule, g, noise=False) - ours).abs().max() < 1e-12
    wrong = dataclasses.replace(preset.schedule, beta_end=0.013)
    assert (bench_train.folded_midpoint(predict, z, t, NoiseSchedule.from_config(wrong), g, noise=False) - ours).abs().max() > 1e-6


def test_the_peer_of_sampling_follows_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that agreeing with it means something: other tokens give other latents."""
    preset, plain = presets.preset("tiny"), bench_sample._plain
    assert bench_sample.difference(preset, 2) < 1e-3
    monkeypatch.setattr(bench_sample, "_plain", lambda peer, text, null, *rest, **kw: plain(peer, -text, null, *rest, **kw))
    assert bench_sample.difference(preset, 2) > 1e-2


def test_the_peer_of_training_encodes_for_itself(tmp_path: Path) -> None:
    """So that agreeing with it means something: other pictures give other losses, and the weights are those of ours."""
    step = bench_train.Step(bench_train.at_hand(presets.preset("tiny")), tmp_path)
    with step.feed:
        assert step.difference() < 2e-2
        step.images = -step.images
        assert step.difference() > 2e-2
