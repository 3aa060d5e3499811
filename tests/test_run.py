"""A run directory is found again by its configuration, on as many processes as there happen to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic

from diffsfsr.config import Training
from diffsfsr.errors import InputError, NotReady
from diffsfsr.training.data import Position
from diffsfsr.training.run import Inputs, RunDirectory, spread

INPUTS = Inputs(("shard",), "version")


def opened(runs: Path, **training: Any) -> RunDirectory:
    chosen: dict[str, Any] = {f"training.{name}": value for name, value in {"batch": 4, "processes": 2, **training}.items()}
    chosen["objective.aux_fraction"] = 1
    return RunDirectory.open(runs, synthetic.small(chosen), INPUTS)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("images", [8, 16, 24])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_step_sees_as_many_images_however_it_is_spread(batch: int, images: int, world: int) -> None:
    t = spread(Training(batch=batch, accumulation=5, processes=world), images, world)
    assert t.batch * t.accumulation * world == images and 1 <= t.batch <= batch
    assert all(images // world % larger for larger in range(t.batch + 1, batch + 1))


def test_a_step_sees_the_same_images_however_it_is_spread() -> None:
    def seen(t: Training, world: int, step: int) -> list[int]:
        places = [Position(step, micro, rank, world, t.accumulation, 0) for micro in range(t.accumulation) for rank in range(world)]
        return [int(i) for at in places for i in at.items(t.batch, 37)]

    for step in range(7):
        spreads = [seen(spread(Training(batch=batch), 16, world), world, step) for batch in (8, 2, 1) for world in (1, 2, 4, 8, 16)]
        assert all(one == spreads[0] for one in spreads)


def test_another_number_of_processes_finds_the_same_run(tmp_path: Path) -> None:
    run = opened(tmp_path)
    assert opened(tmp_path, processes=1) == run and opened(tmp_path, batch=8) != run
    for processes, batch, accumulation in ((1, 4, 2), (2, 4, 1), (4, 2, 1), (8, 1, 1)):
        t = opened(tmp_path, processes=processes).load()[0].training
        assert (t.processes, t.batch, t.accumulation) == (processes, batch, accumulation)
    with pytest.raises(InputError, match=r"sees 8 images, which training.processes=3 on 1 machine\(s\) cannot share.*divides 8"):
        opened(tmp_path, processes=3)
    with pytest.raises(InputError, match="aux_fraction"):  # one image a process, of which a quarter carries L_id
        spare = RunDirectory.open(tmp_path, synthetic.small({"training.batch": 4}), INPUTS)
        RunDirectory.open(tmp_path, synthetic.small({"training.batch": 4, "training.processes": 4}), INPUTS)
    assert run.load()[0].training.processes == 8 and spare.load()[0].training.processes == 1  # what was refused changed nothing


@pytest.mark.parametrize(
    ("network", "own", "foreign"),
    [
        ("autoencoder", "autoencoder.width", ("unet.layers", "dln.margin", "evaluation.items")),
        ("dln", "dln.margin", ("autoencoder.width", "conditioning.token_width", "sampling.steps")),
        ("decoder", "autoencoder.width", ("unet.layers", "dln.margin", "objective.p_self")),
        ("diffusion", "sampling.steps", ("evaluation.items",)),
    ],
)
def test_a_setting_that_does_not_concern_a_network_does_not_train_it_again(
    tmp_path: Path, network: Any, own: str, foreign: tuple[str, ...]
) -> None:
    def named(*settings: str) -> RunDirectory:
        row = synthetic.small(dict.fromkeys(settings, 1))
        return RunDirectory.open(tmp_path, replace(row, trains=network), INPUTS)

    assert named() == named(*foreign) != named(own)


def test_machines_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(tmp_path)
    monkeypatch.setenv("DIFFSFSR_NODES", "2")
    assert opened(tmp_path, processes=1) == run
    assert run.load()[0].training == replace(synthetic.small({"training.batch": 4}).training, processes=1)
    monkeypatch.setenv("DIFFSFSR_NODES", "two")
    with pytest.raises(InputError, match="DIFFSFSR_NODES=two"):
        run.load()


def test_a_run_of_before_is_read(tmp_path: Path) -> None:
    run = opened(tmp_path)
    facts = json.loads(run.config_file.read_text())
    run.config_file.write_text(json.dumps({name: facts[name] for name in ("preset", "inputs")}))
    assert run.inputs == INPUTS and run.load()[0].training.batch == 4
    run.config_file.write_text("{}")
    for read in (run.load, lambda: run.inputs):
        with pytest.raises(InputError, match="is not a run's configuration"):
            read()


DAMAGED = [b"12", b"null", b'{"a": 1}', b'{"step": "x"}', b"[3]", b'{"step": 3, "lo', b"\xff\xfe{}", b"\x00" * 9, b""]


def test_damaged_statistics_are_passed_over_line_by_line(tmp_path: Path) -> None:
    run, good = RunDirectory(tmp_path), [b'{"step": 1, "loss": 2.0}', b'{"step": 2}', b'{"step": 3}']
    (tmp_path / "stats.jsonl").write_bytes(b"\n".join([good[0], *DAMAGED, good[1], *DAMAGED, good[2]]))
    assert run.stats() == [json.loads(line) for line in good]
    run.forget_stats_after(2)
    assert (tmp_path / "stats.jsonl").read_bytes().splitlines() == good[:2]


def test_a_lost_last_line_leaves_its_metadata_out() -> None:
    from assets.training import final

    lines = [{"step": 1, "loss": 2.0, "psnr": 20.0}, {"step": 2, "psnr": 21.0}]
    assert final(lines, psnr_db="psnr", loss="loss") == {"psnr_db": 21.0} and final([], loss="loss") == {}


@pytest.mark.parametrize("left", [b'{"kind": "InputErr', b"", b"12", b"{}", b'{"kind": [], "message": ""}', b"\xff"])
def test_a_failure_cut_short_is_none(tmp_path: Path, left: bytes) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "failure.json").write_bytes(left)
    run.raise_failure()
    assert not (tmp_path / "failure.json").exists()


def test_a_failure_is_raised_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.fail(NotReady("no faces"))
    with pytest.raises(NotReady, match="no faces"):
        run.raise_failure()
    run.raise_failure()
