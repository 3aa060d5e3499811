"""Finishing a model: its decoder against a discriminator, on latents that its UNet makes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from shell import answer
from synthetic import diffusion_inputs, face_shard, faces, training_rows
from test_portraits import model  # noqa: F401
from test_shipped import exported, workspace  # noqa: F401
from torch import Tensor

from diffsfsr import presets
from diffsfsr.model.autoencoder import LatentAutoencoder
from diffsfsr.model.diffusion import training_target
from diffsfsr.model.unet import DiffSFSR
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.shipped import preset_of
from diffsfsr.training.data import Position
from diffsfsr.training.discriminator import PatchDiscriminator, fooled, hinge
from diffsfsr.training.objectives import FinishObjective

FINISHED = presets.preset("tiny-finished")


def test_a_finishing_is_its_basis_but_for_what_it_trains() -> None:
    for name in ("starter", "lab", "tiny"):
        row, base = presets.preset(f"{name}-finished"), presets.preset(name)
        assert dataclasses.replace(row, name=name, trains="diffusion", training=base.training) == base and row.portrays
        assert presets.tuned(row.name) == row.name and presets.tuned(name) == f"{name}-tuned"


def test_a_discriminator_judges_patches_of_two_sizes() -> None:
    torch.manual_seed(0)
    small, large = PatchDiscriminator()(torch.rand(2, 3, 64, 64))
    assert small.shape == (2, 1, 8, 8) and large.shape == (2, 1, 4, 4)


def test_its_losses() -> None:
    sure = torch.full((2, 1, 4, 4), 3.0), torch.full((2, 1, 2, 2), 3.0)
    wrong = -sure[0], -sure[1]
    assert hinge(sure, wrong).tolist() == [0.0, 0.0] and hinge(wrong, sure).tolist() == [16.0, 16.0]
    assert hinge((sure[0] * 0,), (sure[0] * 0,)).tolist() == [2.0, 2.0]
    assert fooled(sure).tolist() == [-6.0, -6.0] and fooled(wrong).tolist() == [6.0, 6.0]


@pytest.fixture(scope="module")
def objective(exported: Path, six_people: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishObjective:  # noqa: F811
    """On six real faces; the rows of the shard lie in another order and hold a second view of each."""
    folder, people = tmp_path_factory.mktemp("finish"), faces(six_people, FINISHED.crop)
    crops = face_shard(folder / "crops.parquet", people, [""] * len(people))
    rows = training_rows(FINISHED, len(people), people[0].crop_landmarks)
    autoencoder = LatentAutoencoder.from_pretrained(exported / "vae").eval()
    for row, face in zip(rows, people, strict=True):
        image = torch.from_numpy(face.crop).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            row["latent"] = autoencoder.encode(image)[0].half().numpy().reshape(-1)
        row["landmarks"] = face.crop_landmarks.reshape(-1)
    other = [row | {"latent": -row["latent"]} for row in rows]
    inputs = diffusion_inputs(folder, FINISHED, [*rows[::-1], *other])
    inputs = dataclasses.replace(inputs, crops=(str(crops),), start_from=str(exported), autoencoder=str(exported / "vae"))
    return FinishObjective(FINISHED, inputs)


def test_a_latent_is_of_its_photograph(objective: FinishObjective) -> None:
    batch = objective.draw(Position(0, 0, 0, 1, 1, 0))
    with torch.no_grad():
        found = objective.model.autoencoder.encode(batch["images"])
    assert torch.allclose(found, batch["latent"], atol=2e-2)  # the shard's are half precision
    drawn = torch.cat([objective.draw(Position(n, 0, 0, 1, 1, 0))["made"] for n in range(100)])
    assert 0.65 < drawn.float().mean() < 0.85


def test_each_loss_teaches_its_own_network_alone(objective: FinishObjective) -> None:
    batch, network = objective.draw(Position(1, 0, 0, 1, 1, 0)), objective.network
    names = dict(network.named_parameters())

    def taught(loss: str) -> set[str]:
        network.zero_grad(set_to_none=True)
        objective.losses(network, batch, torch.Generator().manual_seed(0))[loss].mean().backward()
        return {name for name, p in names.items() if p.grad is not None and bool(p.grad.any())}

    decoder = {name for name in names if name.startswith("autoencoder.net.decoder")}
    discriminator = {name for name in names if name.startswith("discriminator")}
    learners = {"loss_discriminator": discriminator, **dict.fromkeys(("loss_fooled", "mae", "edges", "loss_perceptual"), decoder)}
    for loss, learner in learners.items():
        assert taught(loss) <= learner and len(taught(loss)) > len(learner) // 2, loss
    assert all(p.requires_grad == (name in decoder | discriminator) for name, p in names.items())


def test_a_unet_that_knows_the_answer_gives_it_back(objective: FinishObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, schedule = objective.draw(Position(2, 0, 0, 1, 1, 0)), objective.unet.schedule
    told: list[set[str]] = []

    def oracle(self: DiffSFSR, z: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        told.append(set(given))
        assert given["present"].all() and len(given["condition"]) == len(z)
        a = schedule.at(t).float()
        eps = (z - a.sqrt() * batch["latent"]) / (1 - a).sqrt()
        return training_target("v_prediction", batch["latent"], eps, t, schedule)

    made = objective._made(batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(made, batch["latent"], atol=0.1)
    monkeypatch.setattr(DiffSFSR, "forward", oracle)
    assert torch.allclose(objective._made(batch, torch.Generator().manual_seed(0)), batch["latent"], atol=1e-4)
    assert told == [{"condition", "identity", "expression", "present"}] * 4


def test_what_is_saved_differs_in_its_decoder_alone(objective: FinishObjective, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    kept = {name: p.detach().clone() for name, p in objective.network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in objective.network.parameters() if p.requires_grad], lr=1e-3)
    batch = objective.draw(Position(3, 0, 0, 1, 1, 0))
    objective.losses(objective.network, batch, torch.Generator().manual_seed(0))["loss"].mean().backward()
    optimizer.step()
    became = {name: p.detach().clone() for name, p in objective.network.decoder.named_parameters()}
    objective.save(tmp_path / "model")
    before, after = (LatentAutoencoder.from_pretrained(folder / "vae").state_dict() for folder in (exported, tmp_path / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("net.decoder") for name in changed)
    for name, end in became.items():
        assert torch.allclose(after[f"net.decoder.{name}"], (before[f"net.decoder.{name}"] + end) / 2, atol=1e-6)
    same, new = (DiffSFSR.from_folder(folder).state_dict() for folder in (exported, tmp_path / "model"))
    assert all(torch.equal(value, new[name]) for name, value in same.items())
    with torch.no_grad():
        for name, p in objective.network.named_parameters():
            p.copy_(kept[name])


def test_a_newcomer_finishes_the_shipped_model(
    exported: Path,  # noqa: F811
    tom_hanks: Path,
    astronaut: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    for name, value in (("STARTER", exported), ("HOME", home)):
        monkeypatch.setenv(f"DIFFSFSR_{name}", str(value))
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    for name, source in (("tom", tom_hanks), ("eileen", astronaut)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        shutil.copy(source, tmp_path / "mine" / name / "1.png")
    data = ("--data", str(tmp_path / "mine"))
    done = answer("run", "train", "--preset", "tiny-finished", "--from", "starter", *data, "--set", "training.steps=2")
    folder = Path(done["folder"])
    assert done["preset"] == "tiny-finished" and done["steps"] == 2 and folder.parent.name.startswith("tiny-finished-")
    for same in ("preset.json", "words.parquet", "dln/dln.json"):
        assert (folder / same).read_bytes() == (exported / same).read_bytes(), same
    before, after = (LatentAutoencoder.from_pretrained(path / "vae").state_dict() for path in (exported, folder))
    assert {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])} == {"decoder"}
    assert Studio(folder).preset == preset_of(exported)
