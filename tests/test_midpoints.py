"""The comparison of the midpoints, where the best possible network is known: z_0 drawn from a Gaussian.

There E[z_0 | z_t] is a multiple of z_t, so that each estimate is one of z_t and of the walk's noise, and its mean square error a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch
from torch import Tensor

from diffsfsr import config
from diffsfsr.errors import InputError
from diffsfsr.evaluation import metrics, midpoints
from diffsfsr.evaluation.midpoints import ESTIMATORS, Study
from diffsfsr.model.diffusion import NoiseSchedule

SD = NoiseSchedule.from_config(config.Schedule())
ZERO = NoiseSchedule.from_config(config.Schedule(zero_terminal_snr=True, prediction="v_prediction"))
TWO_STEPS = NoiseSchedule(torch.tensor([1.0, 0.8, 0.8 * 0.4], dtype=torch.float64))  # beta = .2, .6
SPREAD = 0.7  # of z_0


def best(alpha_bar: float) -> float:
    """c in E[z_0 | z_t] = c z_t for z_0 of N(0, SPREAD^2)."""
    return alpha_bar**0.5 * SPREAD**2 / (alpha_bar * SPREAD**2 + 1 - alpha_bar)


def expected(alpha_bar: Tensor, t: int) -> dict[str, float]:
    """Each estimate's mean square error. q(z_s | z_t, z_0) by Bayes' rule from precisions, and Eq. 8 as printed."""
    a, b, s = float(alpha_bar[t]), float(alpha_bar[t // 2]), t // 2
    r = a / b

    def error(factor: float, noise: float = 0.0) -> float:  # of factor z_t + noise g
        return (factor * a**0.5 - 1) ** 2 * SPREAD**2 + factor**2 * (1 - a) + noise**2

    first = best(a)
    if s == 0:  # what the walk ends at is the first estimate
        return dict.fromkeys(ESTIMATORS, error(first))
    precision = 1 / (1 - b) + r / (1 - r)
    at_s = (b**0.5 / (1 - b) * first + r**0.5 / (1 - r)) / precision
    found = {"one step": error(first), "improved, no noise": error(best(b) * at_s)}
    found["improved"] = error(best(b) * at_s, best(b) * precision**-0.5)
    if a:
        eps = (1 - a**0.5 * first) / (1 - a) ** 0.5
        found["original (Eq. 8)"] = error(best(b) * (1 - (1 - r) ** 0.5 * eps) / r**0.5)
    return found


class Network:
    """The best possible one; it counts its calls."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule, self.calls = schedule, 0

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        factors = torch.tensor([best(float(a)) for a in self.schedule.alpha_bar], dtype=torch.float64)
        return factors[t].view(-1, 1, 1, 1).to(z_t) * z_t


def nothing(z_0: Tensor) -> dict[str, Tensor]:
    return {}


def items(network: Network, batches: int = 3, size: int = 4, side: int = 48) -> Iterator[tuple[Tensor, Network, Any]]:
    g = torch.Generator().manual_seed(1)
    for _ in range(batches):
        yield SPREAD * torch.randn(size, 4, side, side, generator=g, dtype=torch.float64), network, nothing


@pytest.mark.parametrize(("schedule", "times"), [(TWO_STEPS, (1, 2)), (SD, (1, 50, 300, 700, 1000)), (ZERO, (2, 500, 1000))])
def test_the_study_finds_the_errors_that_are_known(schedule: NoiseSchedule, times: tuple[int, ...]) -> None:
    network = Network(schedule)
    found = midpoints.study(items(network), schedule, times, torch.Generator().manual_seed(2))
    for at, t in enumerate(times):
        errors = expected(schedule.alpha_bar, t)
        for name in ESTIMATORS:
            measured = found.values[name]["rmse"][at]
            assert measured.shape == (12,)
            if name in errors:
                assert np.mean(measured**2) == pytest.approx(errors[name], rel=0.015), (name, t)
            else:
                assert t == 1000 and schedule.zero_terminal and np.isnan(measured).all()
    assert network.calls == 3 * (4 * len(times) - int(schedule.zero_terminal))  # the first prediction is made once


@pytest.mark.parametrize(("schedule", "t"), [(TWO_STEPS, 2), (SD, 300), (ZERO, 900)])
def test_the_walk_of_means_gives_the_best_possible_estimate_back(schedule: NoiseSchedule, t: int) -> None:
    """E[E[z_0 | z_s] | z_t] = E[z_0 | z_t]; noise and Eq. 8 lead away from it."""
    z_t, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = midpoints.estimates(Network(schedule), z_t, torch.full((3,), t), schedule, noise)
    assert list(made) == list(ESTIMATORS)
    torch.testing.assert_close(made["improved, no noise"], made["one step"], rtol=1e-9, atol=0)
    assert all((made[name] - made["one step"]).abs().mean() > 1e-3 for name in ("improved", "original (Eq. 8)"))


def test_the_walks_error_is_that_of_the_chain_drawn_step_by_step() -> None:
    """Brute force: Eq. 2 drawn scalar by scalar over 40 steps, by numpy alone, beside the closed form above and the study's walk."""
    rng, steps = np.random.default_rng(0), 40
    alpha = np.concatenate([[1.0], 1 - np.linspace(0.005, 0.15, steps)])
    alpha_bar = np.cumprod(alpha)
    z_0 = SPREAD * rng.normal(size=400_000)
    z = np.sqrt(alpha_bar[-1]) * z_0 + np.sqrt(1 - alpha_bar[-1]) * rng.normal(size=z_0.size)
    guess = best(alpha_bar[-1]) * z
    for t in range(steps, steps // 2, -1):
        beta, before, now = 1 - alpha[t], alpha_bar[t - 1], alpha_bar[t]
        mean = np.sqrt(before) * beta / (1 - now) * guess + np.sqrt(alpha[t]) * (1 - before) / (1 - now) * z
        z = mean + np.sqrt((1 - before) / (1 - now) * beta) * rng.normal(size=z.size)
    brute = np.mean((best(alpha_bar[steps // 2]) * z - z_0) ** 2)
    schedule = NoiseSchedule(torch.tensor(alpha_bar))
    assert expected(schedule.alpha_bar, steps)["improved"] == pytest.approx(brute, rel=0.01)
    found = midpoints.study(items(Network(schedule), 10), schedule, (steps,), torch.Generator().manual_seed(3))
    assert np.mean(found.values["improved"]["rmse"] ** 2) == pytest.approx(brute, rel=0.015)


def test_estimators_share_the_noise_and_a_seed_repeats_them() -> None:
    network = Network(SD)
    runs = [midpoints.study(items(network, 1), SD, (400,), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    for name in ESTIMATORS:
        one, again, other = (run.values[name]["rmse"] for run in runs)
        assert np.array_equal(one, again) and not np.array_equal(one, other)
    gain = runs[0].gain("improved", "rmse", 0)
    both = (runs[0].values[name]["rmse"][0] for name in ("improved", "one step"))
    assert gain == metrics.paired_difference(*both)
    alone = runs[0].interval("improved", "rmse", 0)
    assert gain.high - gain.low < 0.7 * (alone.high - alone.low)  # paired: most of what differs between faces and noises cancels


def test_the_grid_lies_in_the_schedule() -> None:
    assert midpoints.grid(1000) == (50, *range(100, 1001, 100))
    assert midpoints.grid(2) == (1, 2) and midpoints.grid(1) == (1,)


# --- the report -------------------------------------------------------------------------------------------------------


def made_up() -> Study:
    rng = np.random.default_rng(0)
    values = {name: {m: rng.normal(i, 0.1, (3, 20)) for m in midpoints.MEASURES} for i, name in enumerate(ESTIMATORS)}
    values["original (Eq. 8)"] = {m: np.where(np.arange(3)[:, None] == 2, np.nan, v) for m, v in values["original (Eq. 8)"].items()}
    return Study((10, 20, 30), values, {"psnr": np.full(20, np.nan), "identity": rng.normal(0.3, 0.01, 20)})


def test_report_has_the_figures_their_intervals_and_a_plot(tmp_path: Path) -> None:
    from diffsfsr.face.images import read

    found = made_up()
    midpoints.write_report(tmp_path, found, "Title", {"faces": 20})
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    entry = report["measures"]["psnr"]["improved"][1]
    interval = metrics.bootstrap_interval(found.values["improved"]["psnr"][1])
    assert (entry["t"], entry["mean"], entry["low"], entry["high"], entry["count"]) == (20, interval.mean, interval.low, interval.high, 20)
    assert entry["above_one_step"]["mean"] == pytest.approx(interval.mean - found.values["one step"]["psnr"][1].mean())
    assert report["measures"]["rmse"]["original (Eq. 8)"][2] == {"t": 30} | dict.fromkeys(("mean", "low", "high")) | {"count": 0} | {
        "above_one_step": dict.fromkeys(("mean", "low", "high")) | {"count": 0}
    }
    assert set(report[midpoints.TRUE]) == {"identity"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| 30 |")]
    assert len(rows) == 4 and all(row.split("|")[4].strip() == "-" for row in rows) and "- faces: 20" in text
    picture = read(tmp_path / "midpoints.png")
    assert picture.shape[0] > 1000 and picture.shape[1] > 1400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_plot_draws_each_estimator_with_its_means() -> None:
    found = made_up()
    figures = midpoints.plain(found)
    panels = midpoints.plot(figures, "Title").axes
    assert [axes.get_ylabel() for axes in panels] == [label for label, _ in midpoints.MEASURES.values()]
    for axes, measure in zip(panels, midpoints.MEASURES, strict=True):
        for line, name in zip(axes.get_lines(), ESTIMATORS, strict=False):
            means = found.values[name][measure].mean(1)
            known = np.isfinite(means)
            np.testing.assert_allclose(line.get_ydata(), means[known])
            np.testing.assert_allclose(line.get_xdata(), np.array(found.t)[known])
    assert [text.get_text() for text in panels[-1].get_legend().get_texts()] == list(ESTIMATORS)


# --- a saved model on faces -------------------------------------------------------------------------------------------

PRESET = synthetic.small({"evaluation.items": 5, "evaluation.batch": 3})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> tuple[Any, Path]:
    """A workspace with one shard of seven faces, of which six are held out, and an untrained model."""
    from assets.shards import shard_kind
    from assets.stores.workspace import Shard, Workspace
    from diffsfsr import tables
    from diffsfsr.training.objectives import DiffusionObjective
    from diffsfsr.training.run import Inputs

    home = tmp_path_factory.mktemp("home")
    workspace, shard = Workspace(home), Shard("set", 0)
    tables.write_json(workspace.dataset("set") / "folder.json", {"folder": str(home)})
    face = synthetic.faces(astronaut, PRESET.crop)[0]
    for kind in ("sources", f"aligned-{PRESET.crop}"):
        synthetic.face_shard(workspace.file(kind, shard), [face], ["neutral"])
    networks = synthetic.networks(home / "networks", PRESET)
    for kind, folder in networks.items():
        workspace.set_network(kind, PRESET, Path(folder), "1")
    rows = synthetic.training_rows(PRESET, 7, face.crop_landmarks, people=7)
    for row in rows[:6]:
        row["split"] = "test"
    file = synthetic.training_shard(workspace.file(shard_kind(workspace, PRESET), shard), PRESET, rows)
    torch.manual_seed(0)
    objective = DiffusionObjective(replace(PRESET, trains="diffusion"), Inputs((str(file),), "1", **networks))
    objective.save(home / "model")
    return workspace, home / "model"


def test_a_saved_model_is_studied_once_and_a_broken_report_is_made_again(place: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from assets import midpoints as room

    workspace, model = place
    monkeypatch.setattr(midpoints, "grid", lambda steps: (400, steps))
    folder = room.compare_midpoints(workspace, model, PRESET)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["facts"]["faces"] == "5 of 6, held out from training"
    assert set(report["measures"]) == set(midpoints.MEASURES) and set(report[midpoints.TRUE]) == {"identity", "expression"}
    assert {e["count"] for e in report["measures"]["expression"]["improved"]} == {5}
    rows = room.curves(report)
    assert [row["step"] for row in rows] == [400, 1000] and "rmse_original_Eq_8" in rows[0] and "rmse_original_Eq_8" not in rows[1]

    written = (folder / "report.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(midpoints, "study", None)  # it would be called
        assert room.compare_midpoints(workspace, model, PRESET) == folder
    for name, broken in (("report.json", "{}"), ("midpoints.png", None)):
        (folder / name).write_text(broken, encoding="utf-8") if broken else (folder / name).unlink()
        assert room.compare_midpoints(workspace, model, PRESET) == folder
        assert (folder / "report.json").read_bytes() == written and (folder / name).is_file()
    assert room.report_folder(workspace, model, config.override(PRESET, {"evaluation.items": 4})) != folder


def test_what_is_looked_at_is_the_face_that_was_told(place: tuple[Any, Path]) -> None:
    """L_id, L_exp and PSNR of one decoded latent by hand, and the network's conditions by what it is told of the face itself."""
    from assets.midpoints import _faces
    from diffsfsr.portrait.compose import Studio

    workspace, model = place
    studio = Studio(model)
    studio.dln.drift.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    data, _ = _faces(workspace, studio, PRESET)
    (z_0, predict, look), *rest = midpoints.batches(studio, data, 5, 3)
    assert [len(z_0), *(len(z) for z, _, _ in rest)] == [3, 2]
    torch.testing.assert_close(z_0, data.latent[[0, 1, 2]].float())
    with torch.no_grad():
        wrong = z_0 + 0.3 * torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
        seen = look(wrong)
        faces = studio.pipeline.vae.decode(wrong).clamp(-1, 1).numpy()
        truth = studio.pipeline.vae.decode(z_0).clamp(-1, 1).numpy()
        landmarks = data.landmarks[[0, 1, 2]]
        made = studio.identity(torch.from_numpy(faces), landmarks)["dlib"].numpy() - studio.pipeline.tokens.mean_dlib.numpy()
        given = data.identity["dlib"][[0, 1, 2]].numpy() - studio.pipeline.tokens.mean_dlib.numpy()
        shown = studio.dln(torch.from_numpy(faces), landmarks).numpy()
        answer = predict(wrong, torch.full((3,), 500))
        condition = torch.cat([data.masked[[0, 1, 2]].float(), data.mask[[0, 1, 2]].float()], 1)
        told = {"dlib": data.identity["dlib"][[0, 1, 2]]}
        posed = studio.dln.posed(data.expression[[0, 1, 2]], landmarks)
        plain = studio.pipeline.model.predict_z0(wrong, torch.full((3,), 500), condition, told, posed)
    cosine = (made * given).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(given, axis=1)
    np.testing.assert_allclose(seen["identity"], 1 - cosine, atol=1e-4)
    np.testing.assert_allclose(seen["expression"], ((shown - data.expression[[0, 1, 2]].numpy()) ** 2).mean(1), atol=1e-5)
    np.testing.assert_allclose(seen["psnr"], 10 * np.log10(4 / ((faces - truth) ** 2).mean((1, 2, 3))), rtol=1e-4)
    torch.testing.assert_close(answer, plain)


def test_a_model_of_other_latents_is_refused(place: tuple[Any, Path], tmp_path: Path) -> None:
    from assets import midpoints as room
    from diffsfsr.model.autoencoder import LatentAutoencoder

    workspace, model = place
    torch.manual_seed(9)
    LatentAutoencoder.from_config_row(PRESET.autoencoder).save_pretrained(tmp_path / "other")
    old = workspace.need_network("autoencoder", PRESET)
    try:
        workspace.set_network("autoencoder", PRESET, tmp_path / "other", "1")  # the same version, so that the shards are found
        with pytest.raises(InputError, match="another autoencoder"):
            room.compare_midpoints(workspace, model, config.override(PRESET, {"evaluation.seed": 3}))
    finally:
        workspace.set_network("autoencoder", PRESET, *old)
