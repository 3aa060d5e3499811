"""Photographs dealt into shards, and faces aligned shard by shard: what is new costs only itself."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from unlucky import Unlucky

from assets import faces as faces_room
from assets.faces import align_shard, aligned_mark, is_aligned, is_masked, mask_shard, unpack
from assets.images import take_stock
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import config, presets, tables
from diffsfsr.face import collection

TINY = config.override(presets.preset("tiny"), {"data.shard": 4, "data.max_outside": 1.0})


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(f"not a picture: {name}".encode())
    return folder


def places(workspace: Workspace) -> dict[str, int]:
    """Photograph -> its shard; each stands in one."""
    found = [(p, s.number) for s in workspace.shards() for p in tables.read(workspace.file("sources", s))["path"].to_pylist()]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_photograph_keeps_its_shard_whatever_comes_and_goes(tmp_path: Path) -> None:
    """Against a model of the promise, over a seeded history of additions and removals."""
    rng = random.Random(0)
    folder, workspace = touch(tmp_path / "photos", "start.jpg"), Workspace(tmp_path / "home")
    remembered: dict[str, int] = {}
    for _ in range(25):
        there = [p.name for p in folder.iterdir()]
        for name in rng.sample(there, rng.randrange(len(there))):
            (folder / name).unlink()
        touch(folder, *(f"{rng.random():.6f}.jpg" for _ in range(rng.randrange(1, 8))))
        shards, changed = take_stock(workspace, "photos", folder, TINY)
        now = places(workspace)
        assert now.keys() == {p.name for p in folder.iterdir()}
        stayed = now.keys() & remembered.keys()
        assert {name: now[name] for name in stayed} == {name: remembered[name] for name in stayed}
        came_or_went = {now[n] for n in now.keys() - remembered.keys()} | {remembered[n] for n in remembered.keys() - now.keys()}
        assert {s.number for s in changed} == came_or_went
        assert max(sum(v == s.number for v in now.values()) for s in shards) <= TINY.data.shard
        assert take_stock(workspace, "photos", folder, TINY) == (shards, [])  # looking again changes nothing
        remembered = now


def test_a_touched_file_changes_nothing_a_changed_one_its_shard(tmp_path: Path) -> None:
    folder, workspace = touch(tmp_path / "photos", *(f"{i}.jpg" for i in range(9))), Workspace(tmp_path / "home")
    take_stock(workspace, "photos", folder, TINY)
    os.utime(folder / "5.jpg", (1, 1))
    assert take_stock(workspace, "photos", folder, TINY)[1] == []
    (folder / "5.jpg").write_bytes(b"another")
    assert take_stock(workspace, "photos", folder, TINY)[1] == [Shard("photos", 1)]
    (folder / "labels.csv").write_text("file,emotion\n8.jpg,joy\nmisspelt.jpg,joy\n")
    assert take_stock(workspace, "photos", folder, TINY)[1] == [Shard("photos", 2)]


def test_labels_of_files_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = touch(tmp_path / "photos", "a.jpg")
    (folder / "labels.csv").write_text("file,emotion\na.jpg,joy\nb.jpg,joy\n")
    take_stock(Workspace(tmp_path / "home"), "photos", folder, TINY)
    assert "names 1 files that are not there, first b.jpg" in capsys.readouterr().err


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The photographs that alignment is given, in order."""
    seen: list[str] = []
    align_each = collection.align_each

    def counted(rows: list[Any], *args: Any) -> Any:
        seen.extend(row["path"] for row in rows)
        return align_each(rows, *args)

    monkeypatch.setattr(collection, "align_each", counted)
    return seen


def all_faces(workspace: Workspace) -> dict[str, str]:
    """Path -> person of every aligned face."""
    table = workspace.table(aligned(TINY), workspace.shards(), ["path", "person"])
    return dict(zip(*table.to_pydict().values(), strict=True))


def test_new_photographs_cost_only_themselves(tmp_path: Path, tom_hanks: Path, astronaut: Path, looked_at: list[str]) -> None:
    folder, workspace = touch(tmp_path / "photos", "x.jpg"), Workspace(tmp_path / "home")
    shutil.copy(tom_hanks, folder / "hanks.png")

    def align_all() -> list[int]:
        looked_at.clear()
        shards, _ = take_stock(workspace, "photos", folder, TINY)
        return [align_shard(workspace, shard, TINY) for shard in shards]

    assert align_all() == [2] and looked_at == ["hanks.png", "x.jpg"]
    assert align_all() == [0] and looked_at == []
    shutil.copy(astronaut, folder / "a.png")
    assert align_all() == [1] and looked_at == ["a.png"]
    assert all_faces(workspace) == {"a.png": "a", "hanks.png": "hanks"}
    (folder / "labels.csv").write_text("file,person\nhanks.png,Tom\n")
    assert align_all() == [0] and all_faces(workspace)["hanks.png"] == "Tom"  # a label is no reason to look again
    (folder / "a.png").unlink()
    assert align_all() == [0] and all_faces(workspace) == {"hanks.png": "Tom"}
    rejected = tables.read(workspace.file("rejects-64", Shard("photos", 0))).to_pylist()
    assert [(row["path"], row["reason"]) for row in rejected] == [("x.jpg", "unreadable")]
    shutil.copy(astronaut, folder / "x.jpg")  # the same name, another picture
    assert align_all() == [1] and looked_at == ["x.jpg"] and all_faces(workspace).keys() == {"hanks.png", "x.jpg"}


def test_other_settings_look_at_everything_again(tmp_path: Path, tom_hanks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, workspace = touch(tmp_path / "photos", "x.jpg"), Workspace(tmp_path / "home")
    shutil.copy(tom_hanks, folder / "hanks.png")
    (shard,), _ = take_stock(workspace, "photos", folder, TINY)
    assert align_shard(workspace, shard, TINY) == 2
    assert align_shard(workspace, shard, config.override(TINY, {"training.steps": 3, "data.shard": 9})) == 0
    strict = config.override(TINY, {"data.min_face": 1000})
    assert aligned_mark(workspace, shard, strict) != aligned_mark(workspace, shard, TINY)
    assert align_shard(workspace, shard, strict) == 2
    assert tables.read(workspace.file(aligned(TINY), shard)).num_rows == 0
    assert align_shard(workspace, shard, TINY) == 2
    monkeypatch.setattr(collection, "VERSION", 99)
    assert align_shard(workspace, shard, TINY) == 2


def test_what_crashed_is_tried_again_apart_and_what_is_made_of_it_follows(tmp_path: Path, tom_hanks: Path) -> None:
    large = config.override(TINY, {"data.shard": 100})
    folder, workspace, diary = touch(tmp_path / "photos", *(f"{i}.jpg" for i in range(8))), Workspace(tmp_path / "home"), tmp_path / "diary"
    for name in ("1.png", "2.png"):
        shutil.copy(tom_hanks, folder / name)
    (shard,), _ = take_stock(workspace, "photos", folder, large)
    with Unlucky(2, "2.png", diary, deaths=2) as crew:  # among the others, then alone
        assert align_shard(workspace, shard, large, crew) == 10
    rejects = tables.read(workspace.file("rejects-64", shard)).to_pylist()
    assert [row["path"] for row in rejects if row["detail"] == "its decoder crashed"] == ["2.png"]
    assert not is_aligned(workspace, shard, large) and all_faces(workspace) == {"1.png": "1"}
    assert len(mask_shard(workspace, shard, large)) == 1 and is_masked(workspace, shard, large)

    with Unlucky(1, "2.png", diary, deaths=2) as crew:
        assert align_shard(workspace, shard, large, crew) == 1
    assert int(diary.read_text().split()[-1]) != os.getpid()  # it might have ended this process
    assert is_aligned(workspace, shard, large) and all_faces(workspace) == {"1.png": "1", "2.png": "2"}
    assert not is_masked(workspace, shard, large) and len(mask_shard(workspace, shard, large)) == 2


def test_masks_follow_the_faces(tmp_path: Path, tom_hanks: Path) -> None:
    folder, workspace = touch(tmp_path / "photos"), Workspace(tmp_path / "home")
    shutil.copy(tom_hanks, folder / "hanks.png")
    (shard,), _ = take_stock(workspace, "photos", folder, TINY)
    align_shard(workspace, shard, TINY)
    (covered,) = mask_shard(workspace, shard, TINY)
    row = tables.read(workspace.file("masks-64", shard)).to_pylist()[0]
    face = tables.read(workspace.file(aligned(TINY), shard)).to_pylist()[0]
    mask = unpack(row["mask"], 64)
    assert row["face_id"] == face["face_id"] and mask.shape == (64, 64) and mask.mean() == pytest.approx(covered)
    x, y = (round(sum(face["landmarks"][i::2]) / 68) for i in (0, 1))
    assert mask[y, x] == 1 and mask[0].sum() == 0 and 0.1 < covered < 0.6
    before = workspace.file("masks-64", shard).stat().st_mtime_ns
    assert mask_shard(workspace, shard, TINY) == [covered]
    assert workspace.file("masks-64", shard).stat().st_mtime_ns == before


def test_a_shard_that_was_cut_short_is_made_again(tmp_path: Path, tom_hanks: Path, looked_at: list[str]) -> None:
    folder, workspace = touch(tmp_path / "photos", "x.jpg"), Workspace(tmp_path / "home")
    shutil.copy(tom_hanks, folder / "hanks.png")
    (shard,), _ = take_stock(workspace, "photos", folder, TINY)
    align_shard(workspace, shard, TINY)
    file = workspace.file(aligned(TINY), shard)
    file.write_bytes(file.read_bytes()[:-100])  # what no kill leaves, but a full disk or a foreign hand may
    looked_at.clear()
    assert align_shard(workspace, shard, TINY) == 1 and looked_at == ["hanks.png"]
    assert all_faces(workspace) == {"hanks.png": "hanks"}


def test_a_kill_within_a_shard_costs_little(tmp_path: Path, tom_hanks: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces_room, "_KEEP_EVERY", 3)
    large = config.override(TINY, {"data.shard": 100})
    folder, workspace = touch(tmp_path / "photos", *(f"{i}.jpg" for i in range(8))), Workspace(tmp_path / "home")
    shutil.copy(tom_hanks, folder / "1.jpg")
    (shard,), _ = take_stock(workspace, "photos", folder, large)
    align_each = collection.align_each

    def killed(*args: Any) -> Any:
        for number, result in enumerate(align_each(*args)):
            if number == 5:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(collection, "align_each", killed)
        with pytest.raises(KeyboardInterrupt):
            align_shard(workspace, shard, large)
    assert not workspace.file(aligned(large), shard).exists()  # nothing that another stage could take for the whole
    looked_at.clear()
    assert align_shard(workspace, shard, large) == 5 and looked_at == [f"{i}.jpg" for i in range(3, 8)]
    assert all_faces(workspace) == {"1.jpg": "1"}
    assert {p.parent.name for p in workspace.dataset("photos").rglob("*.parquet")} == {"sources", "aligned-64", "rejects-64"}
    assert align_shard(workspace, shard, large) == 0
