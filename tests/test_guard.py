"""The guard against real process trees. Survivors are found by a token in their environment, not by ancestry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signals and /proc are Linux's")

ROOT = Path(__file__).resolve().parents[1]
GUARD = [sys.executable, "-m", "diffsfsr.training.guard", "--grace", "1"]

# The leader, an ordinary child, a child deaf to SIGTERM, and a daemon that left session and parent.
TREE = """
sleep 300 &
sh -c 'trap "" TERM HUP INT; while :; do sleep 0.2; done' &
(setsid sh -c 'setsid sleep 300 & exit' &)
touch "$READY"
wait
"""

# A rank that asks to die with its parent, under a leader that does nothing for it.
RANK = """
import os, time
from diffsfsr.training.guard import die_with_parent
die_with_parent()
open(os.environ["READY"], "w")
time.sleep(300)
"""
LEADER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {RANK!r}]).wait()"


class Tree:
    """Processes started with one token in their environment."""

    def __init__(self, folder: Path) -> None:
        self.token = f"guard-test-{uuid.uuid4().hex}"
        self.ready = folder / "ready"
        self.environment = {**os.environ, "GUARD_TEST": self.token, "READY": str(self.ready)}

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Hearing SIGHUP, also where the tests run under nohup: what is ignored is inherited, and the guard lets it stay so."""
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, start_new_session=True)
        finally:
            signal.signal(signal.SIGHUP, before)

    def alive(self) -> list[int]:
        """Every living process that inherited the token."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.token.encode() in (entry / "environ").read_bytes() and "\nState:\tZ" not in (entry / "status").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def children(self, pid: int) -> list[int]:
        return [p for p in self.alive() if int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[1]) == pid]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    for pid in made.alive():
        os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def started(tree: Tree, at_least: int = 5) -> bool:
    return wait_for(lambda: tree.ready.exists() and len(tree.alive()) >= at_least)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_whole_tree(tree: Tree, signum: int) -> None:
    guard = tree.start([*GUARD, "--", "sh", "-c", TREE])
    assert started(tree)
    guard.send_signal(signum)
    assert guard.wait(timeout=30) == 128 + signum
    assert tree.alive() == []


def test_a_deaf_process_gets_its_grace(tree: Tree) -> None:
    guard = tree.start([*GUARD, "--", "sh", "-c", TREE])
    assert started(tree)
    before = time.monotonic()
    guard.terminate()
    guard.wait(timeout=30)
    assert 1.0 <= time.monotonic() - before < 15.0


def test_a_leader_that_cleans_up_is_left_the_time(tree: Tree, tmp_path: Path) -> None:
    script = f"trap 'sleep 0.4; touch {tmp_path}/saved; exit 0' TERM; touch $READY; while :; do sleep 0.05; done"
    guard = tree.start([*GUARD, "--", "sh", "-c", script])
    assert started(tree, 3)
    guard.terminate()
    assert guard.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()


def test_death_of_the_starter_ends_the_tree(tree: Tree) -> None:
    code = f"import subprocess; subprocess.Popen({[*GUARD, '--', 'sh', '-c', TREE]!r}).wait()"
    starter = tree.start([sys.executable, "-c", code])
    assert started(tree, 6)
    starter.kill()
    starter.wait()
    assert wait_for(lambda: not tree.alive(), 20), tree.alive()


def test_a_starter_that_is_gone_already(tree: Tree) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    guard = tree.start([*GUARD, "--parent", str(gone.pid), "--", "sh", "-c", TREE])
    guard.wait(timeout=30)
    assert tree.alive() == []


def test_kill_9_of_either_stage_ends_the_tree(tree: Tree) -> None:
    for victim in ("outer", "inner"):
        tree.ready.unlink(missing_ok=True)
        guard = tree.start([*GUARD, "--", "sh", "-c", TREE])
        assert started(tree)
        os.kill(guard.pid if victim == "outer" else tree.children(guard.pid)[0], signal.SIGKILL)
        guard.wait(timeout=30)
        assert wait_for(lambda: not tree.alive(), 20), (victim, tree.alive())


def test_kill_9_of_both_stages_ends_ranks_that_asked_for_it(tree: Tree) -> None:
    guard = tree.start([*GUARD, "--", sys.executable, "-c", LEADER])
    assert started(tree, 4)
    inner = tree.children(guard.pid)[0]
    guard.send_signal(signal.SIGSTOP)  # so that it cannot react to the death of the inner stage
    os.kill(inner, signal.SIGKILL)
    guard.kill()
    guard.wait()
    assert wait_for(lambda: not tree.alive(), 20), tree.alive()


def test_a_rank_that_asks_too_late_ends_too(tree: Tree) -> None:
    code = "from diffsfsr.training.guard import die_with_parent; die_with_parent(); print('survived')"
    environment = {**tree.environment, "DIFFSFSR_GUARD_PID": "999999999"}  # no such ancestor: it died meanwhile
    rank = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert rank.returncode == -signal.SIGKILL and rank.stdout == b""


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9)])
def test_the_exit_code_passes_through(tree: Tree, script: str, code: int) -> None:
    assert tree.start([*GUARD, "--", "sh", "-c", script]).wait(timeout=30) == code


def test_what_a_finished_command_leaves_is_ended(tree: Tree) -> None:
    guard = tree.start([*GUARD, "--", "sh", "-c", "(setsid sleep 300 &); exit 3"])
    assert guard.wait(timeout=30) == 3
    assert tree.alive() == []


def test_a_command_that_is_not_there(tree: Tree) -> None:
    done = subprocess.run([*GUARD, "--", "no-such-command"], cwd=ROOT, env=tree.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 127 and done.stderr == "guard: cannot start no-such-command: No such file or directory\n"
