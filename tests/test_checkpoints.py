"""Checkpoints that are whole or absent: crashes, kills, and two ranks that write one folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from diffsfsr.training import checkpoints

ROOT = Path(__file__).resolve().parents[1]


def save(folder: Path, step: int, text: str = "x", keep: int = 3) -> Path:
    return checkpoints.save(folder, step, lambda part: put(part, text), 0, lambda: None, keep)


def put(part: Path, text: str) -> None:
    (part / "deep").mkdir()
    (part / "deep" / "weights").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_newest_of_nothing(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") is None and checkpoints.newest(tmp_path) is None


def test_the_newest_is_the_highest_step_and_only_the_last_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 9_999, 10_000, 10_001):
        assert save(tmp_path, step, str(step)) == tmp_path / f"step-{step:08d}"
    assert names(tmp_path) == ["step-00009999", "step-00010000", "step-00010001"]
    found = checkpoints.newest(tmp_path)
    assert found == (10_001, tmp_path / "step-00010001")
    assert (found[1] / "deep" / "weights").read_text() == "10001"


def test_what_is_not_a_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for name in ("step-4", "step-00000005-copy", ".step-00000006.part", "step-0000000x"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["step-00000003"]


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 2, "good")

    def broken(part: Path) -> None:
        put(part, "half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, 4, broken, 0, lambda: None, 3)
    assert checkpoints.newest(tmp_path) == (2, tmp_path / "step-00000002")
    save(tmp_path, 5, "next")  # another step than the one that failed
    assert names(tmp_path) == ["step-00000002", "step-00000005"]  # and the half is gone


@pytest.mark.parametrize("harm", ["cut", "gone", "more"])
def test_a_checkpoint_that_lost_bytes_is_passed_over(tmp_path: Path, harm: str) -> None:
    for step in (2, 4):
        save(tmp_path, step, "weights")
    file = tmp_path / "step-00000004" / "deep" / "weights"
    if harm == "gone":
        file.unlink()
    else:
        file.write_text("weigh" if harm == "cut" else "weights and more")
    assert checkpoints.newest(tmp_path) == (2, tmp_path / "step-00000002")
    save(tmp_path, 4, "again")
    assert checkpoints.newest(tmp_path) == (4, tmp_path / "step-00000004") and file.read_text() == "again"


def test_a_checkpoint_whose_bytes_changed_is_passed_over(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step, "weights")
    file = tmp_path / "step-00000004" / "deep" / "weights"
    file.write_bytes(bytes(7))
    assert checkpoints.newest(tmp_path) == (2, tmp_path / "step-00000002")
    save(tmp_path, 3, "next", keep=1)  # by the run that went on from 2: the damaged one neither stays nor counts
    assert names(tmp_path) == ["step-00000003"]


def test_a_checkpoint_of_sizes_alone_is_still_one(tmp_path: Path) -> None:
    contents = save(tmp_path, 2, "weights") / "contents.json"
    assert json.loads(contents.read_text()) == {"deep/weights": [7, zlib.crc32(b"weights")]}
    contents.write_text('{"deep/weights": 7}')
    assert checkpoints.newest(tmp_path) == (2, tmp_path / "step-00000002")
    for broken in ('{"deep/weights": 8}', '{"deep/weights": []}', "[]", "12", "{", "{}"):
        contents.write_text(broken)
        assert checkpoints.newest(tmp_path) is None


KILLED = """
import sys, time
from pathlib import Path
from diffsfsr.training import checkpoints

def write(part):
    (part / "weights").write_bytes(b"x" * 100_000)
    Path(sys.argv[2]).touch()
    time.sleep(60)

if sys.argv[3] == "checkpoint":
    checkpoints.save(Path(sys.argv[1]), 4, write, 0, lambda: None, 3)
else:
    checkpoints.replace_folder(Path(sys.argv[1]) / "model", write)
"""


@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_kill_in_the_middle_leaves_the_one_before(tmp_path: Path, what: str) -> None:
    folder, ready = tmp_path / "run", tmp_path / "ready"
    save(folder, 2, "good")
    checkpoints.replace_folder(folder / "model", lambda part: put(part, "good"))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(ready), what], cwd=ROOT)
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and ready.exists()
    assert checkpoints.newest(folder) == (2, folder / "step-00000002")
    assert (folder / "model" / "deep" / "weights").read_text() == "good"
    save(folder, 6)
    checkpoints.replace_folder(folder / "model", lambda part: put(part, "new"))
    assert names(folder) == ["model", "step-00000002", "step-00000006"]  # nothing of the dead one is left
    assert (folder / "model" / "deep" / "weights").read_text() == "new"


def test_replace_folder_is_all_or_nothing(tmp_path: Path) -> None:
    final = tmp_path / "model"
    checkpoints.replace_folder(final, lambda part: put(part, "one"))

    def broken(part: Path) -> None:
        assert (final / "deep" / "weights").read_text() == "one"  # still there while the new one is written
        put(part, "two")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        checkpoints.replace_folder(final, broken)
    assert (final / "deep" / "weights").read_text() == "one" and names(tmp_path) == ["model"]

    def other_file(part: Path) -> None:
        (part / "other").write_text("three")

    checkpoints.replace_folder(final, other_file)
    assert names(final) == ["other"] and names(tmp_path) == ["model"]


def test_two_ranks_write_one_checkpoint(tmp_path: Path) -> None:
    """No rank writes before the folder is there, and it has its name only when the slower one is done."""
    meet = threading.Barrier(2, timeout=30)
    seen: dict[int, bool] = {}

    def rank(number: int, delay: float) -> None:
        def write(part: Path) -> None:
            time.sleep(delay)
            (part / f"rank-{number}").write_text("state")

        final = checkpoints.save(tmp_path, 7, write, number, wait_for(meet), 1)
        seen[number] = (final / "rank-0").exists() and (final / "rank-1").exists()

    for delays in ((0.0, 0.2), (0.2, 0.0)):
        threads = [threading.Thread(target=rank, args=(number, delay)) for number, delay in enumerate(delays)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {0: True, 1: True} and names(tmp_path) == ["step-00000007"]
        seen.clear()


def wait_for(meet: threading.Barrier) -> Callable[[], None]:
    def barrier() -> None:
        meet.wait()

    return barrier
