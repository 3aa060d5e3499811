"""Pictures and numbers of people held out: always the same ones, and training goes on as if nobody had looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch
from test_loop import PlainEngine, lines, same

from diffsfsr.config import Preset
from diffsfsr.errors import InputError
from diffsfsr.face.images import read
from diffsfsr.training.loop import Ema, train
from diffsfsr.training.objectives import DiffusionObjective
from diffsfsr.training.run import Inputs, RunDirectory
from diffsfsr.training.validation import Validation
from diffsfsr.weights import find

SETTINGS = {
    "training.steps": 4,
    "training.batch": 2,
    "training.log_every": 2,
    "training.checkpoint_every": 4,
    "training.validation_items": 3,
}
SETTINGS |= {"objective.aux_fraction": 0.5}


def preset(**changes: Any) -> Preset:
    return synthetic.small(SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> Inputs:
    """Eight faces of four people to train on, twelve of another four to look at; person p4 has most of them."""
    landmarks = synthetic.faces(astronaut, preset().crop)[0].crop_landmarks
    rows = synthetic.training_rows(preset(), 20, landmarks)
    for i, row in enumerate(rows[8:]):
        row |= {"split": "test", "person": f"p{4 + min(i % 7, 3)}"}
    return synthetic.diffusion_inputs(tmp_path_factory.mktemp("inputs"), preset(), rows)


def learn(folder: Path, chosen: Preset, inputs: Inputs) -> tuple[RunDirectory, list[tuple[dict[str, float], Path | None]]]:
    torch.manual_seed(0)
    objective, run, reported = DiffusionObjective(chosen, inputs), RunDirectory(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    validate = Validation(objective) if chosen.training.validate_every else None
    engine = PlainEngine(objective.network, chosen.training)
    train(engine, objective, chosen, run, lambda line, picture=None: reported.append((line, picture)), validate=validate)
    return run, reported


def test_training_does_not_notice(tmp_path: Path, inputs: Inputs) -> None:
    plain, _ = learn(tmp_path / "plain", preset(), inputs)
    seen, reported = learn(tmp_path / "seen", preset(training__validate_every=2), inputs)
    trained = [line for line in lines(seen) if "loss" in line]
    assert trained == lines(plain) and len(trained) == 2
    state = [torch.load(run.checkpoints / "step-00000004" / "state.pt")["network"] for run in (plain, seen)]
    assert same(*state)
    looks = [(line, picture) for line, picture in reported if picture]
    assert [line["step"] for line, _ in looks] == [2, 4] and [line for line, _ in looks] == [
        line for line in lines(seen) if "loss" not in line
    ]
    assert "loss" in lines(seen)[-1]  # whoever reads the last line finds the training's
    side, gap = preset().crop, preset().crop // 32
    pictures = [read(picture) for _, picture in looks]
    assert [picture.name for picture in sorted(seen.validation.iterdir())] == ["step-00000002.png", "step-00000004.png"]
    for one in pictures:
        assert one.shape == (4 * (side + gap) + gap, 3 * (side + gap) + gap, 3)
    inputs_of = [one[: 3 * (side + gap)] for one in pictures]
    assert np.array_equal(*inputs_of) and not np.array_equal(*pictures)


def test_items_are_people_held_out_and_always_the_same(inputs: Inputs) -> None:
    chosen = preset(training__validation_items=40)
    one, other = (Validation(DiffusionObjective(chosen, inputs)) for _ in range(2))
    assert all(torch.equal(value, other.cross[name]) for name, value in one.cross.items())
    held = {tuple(row.flatten().tolist()): i for i, row in enumerate(DiffusionObjective(chosen, inputs).data.latent.float())}
    assert not any(tuple(latent.flatten().tolist()) in held for latent in torch.cat(one.shown))
    assert torch.equal(one.cross["latent"], one.shown[0]) and bool((one.cross["cross"] == 1).all()) and bool((one.own["cross"] == 0).all())


def test_three_people(inputs: Inputs) -> None:
    from diffsfsr.training.data import Triplets, read_shards

    faces = Triplets(list(inputs.shards), preset().autoencoder.channels, preset().latent, ("dlib",), split="test")
    people = np.array(read_shards(list(inputs.shards), "test", ["person"])["person"].to_pylist())
    chosen = people[np.stack(faces.three_people(300, seed=1), 1)]
    assert all(len(set(row)) == 3 for row in chosen)
    counts = [(chosen[:, role] == person).mean() for role in range(3) for person in np.unique(people)]
    assert min(counts) > 0.15  # a person is as likely as another, however many pictures there are
    assert not np.array_equal(faces.three_people(9, seed=1), faces.three_people(9, seed=2))
    with pytest.raises(InputError, match="need three, not 2"):
        few = Triplets.__new__(Triplets)
        few._first, few._by_person, few.latent = np.array([0, 0, 2]), np.arange(3), torch.zeros(3)
        few.three_people(1, 0)


def test_numbers_are_of_the_weights_given(inputs: Inputs) -> None:
    """The averaged weights are looked at, not those being trained; the distances are those of the pictures shown."""
    torch.manual_seed(0)
    objective = DiffusionObjective(preset(), inputs)
    validation, ema = Validation(objective), Ema(objective.network, 0.9)
    numbers, sheet = validation(ema.average)
    with torch.no_grad():
        for p in objective.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    again, same_sheet = validation(ema.average)
    assert again == numbers and np.array_equal(sheet, same_sheet)
    other, other_sheet = validation(dict(objective.network.named_parameters()))
    assert all(other[name] != numbers[name] for name in numbers) and not np.array_equal(sheet, other_sheet)

    output = validation._output(torch.device("cpu"))
    batch, means = validation.cross, objective.network.tokens.means()
    with torch.no_grad():
        made = objective.identity["dlib"](output, batch["landmarks"])
        expected = 1 - torch.cosine_similarity(made - means["dlib"], batch["id_dlib"] - means["dlib"])
        assert other["val_id"] == pytest.approx(float(expected.mean()), rel=1e-5)
        difference = objective.dln(output, batch["landmarks"]) - batch["expression"]
        assert other["val_exp"] == pytest.approx(float(difference.square().mean()), rel=1e-5)


def test_the_network_is_shown_what_training_shows_it(inputs: Inputs) -> None:
    """The masked latents of the shards, not those of a scene decoded and masked anew by whole latent positions; and the expression as
    the scene's head shows it."""
    torch.manual_seed(0)
    validation, seen, told = Validation(DiffusionObjective(preset(), inputs)), list[torch.Tensor](), list[torch.Tensor]()
    dln, cross = validation.objective.dln, validation.cross
    dln.drift.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    validation.network.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    validation.network.tokens.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    with torch.no_grad():
        validation._output(torch.device("cpu"))
    shown = torch.cat([cross["masked"], cross["mask"]], 1)
    assert seen and all(torch.equal(z[: len(shown), -shown.shape[1] :], shown) for z in seen)
    assert told and all(torch.equal(e[: len(shown)], dln.posed(cross["expression"], cross["landmarks"])) for e in told)


def test_a_recogniser_of_the_loss_alone_conditions_nothing(tmp_path: Path, astronaut: Path) -> None:
    """Also while looking: the pictures of a run whose L_id has one more recogniser come from the one that conditions."""
    chosen = preset(training__validate_every=2, objective__identity=["mobileface_v2"], objective__aux_from=0.0)
    if not find("mobileface_v2"):
        pytest.skip("mobileface_v2.onnx is not here: DIFFSFSR_WEIGHTS names no folder with it")
    landmarks = synthetic.faces(astronaut, chosen.crop)[0].crop_landmarks
    rows = synthetic.training_rows(chosen, 20, landmarks)
    for i, row in enumerate(rows[8:]):
        row |= {"split": "test", "person": f"p{4 + i % 4}"}
    folder = tmp_path / "inputs"
    folder.mkdir()
    _, reported = learn(tmp_path / "run", chosen, synthetic.diffusion_inputs(folder, chosen, rows))
    looked = [line for line, picture in reported if picture]
    assert len(looked) == 2 and all(np.isfinite(line["val_id"]) for line in looked)
    assert any(line.get("loss_id", 0) > 0 for line, _ in reported)
