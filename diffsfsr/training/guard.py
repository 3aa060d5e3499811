"""Nothing is left behind: run a command so that it and all that it starts end when they are told to, or when their starter dies.

    python -m diffsfsr.training.guard [--grace SECONDS] [--parent PID] -- COMMAND...

Two nested stages stand between the starter and COMMAND, each a child subreaper (prctl(2)), so that a process which
loses its parent, a daemon included, becomes a child of the guard instead of leaving the tree:

    starter -> outer -> inner -> COMMAND -> ranks ...

SIGINT, SIGTERM, SIGHUP or the starter's death: SIGTERM to the whole tree, SIGKILL after the grace. kill -9 of the outer
stage: the inner one does the same; of the inner stage: the outer one does. kill -9 of both: COMMAND dies by its
parent-death signal, and so does each process that called `die_with_parent`. The exit code is COMMAND's; 128 + the signal
when cancelled or killed; 127 when COMMAND cannot be started.

Only Linux has these calls. Elsewhere a cancel reaches COMMAND's process group, and no more is promised.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None
_POLL = 0.05  # seconds between looks at the children and the parent
_MARGIN = 5.0  # seconds that the outer stage waits longer than the inner one, and that SIGKILL may take to work
_GUARD_PID = "DIFFSFSR_GUARD_PID"  # tells a rank which ancestor it must still have

_received = 0  # the first signal that asked this stage to stop


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Let the kernel send `signum` to this process when its parent dies; a training rank calls it first of all.

    A parent that died before the call is noticed too: under a guard, the guard must still be an ancestor. Linux only;
    elsewhere nothing happens.
    """
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signum)
    guard = os.environ.get(_GUARD_PID)
    if _LINUX and (os.getppid() != parent or (guard is not None and int(guard) not in _ancestors())):
        os.kill(os.getpid(), signum)


def run(command: Sequence[str], grace: float = 15.0, parent: int | None = None) -> int:
    """Run `command` under both stages and return the exit code; this process must have one thread and no other children.

    grace: seconds between SIGTERM and SIGKILL. parent: the process to outlive by nothing, by default this one's parent.
    """
    parent = os.getppid() if parent is None else parent
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _listen()
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        _exit_with(lambda: _inner(command, grace, outer))
    return _supervise(inner, parent, grace + _MARGIN, lambda: _send([inner], signal.SIGTERM))


def _inner(command: Sequence[str], grace: float, outer: int) -> int:
    """The stage that starts the command, in a session of its own so that a terminal's Ctrl-C reaches the outer stage only."""
    os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    me = os.getpid()
    environment = {**os.environ, _GUARD_PID: str(me)} if _LINUX else None
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: _tie_to(me), env=environment)  # noqa: PLW1509
    except OSError as error:
        _say(f"cannot start {command[0]}: {error.strerror}")
        return 127
    child.returncode = 0  # reaped by _supervise, not by Popen
    return _supervise(child.pid, outer, grace, lambda: _send(_tree(child.pid), signal.SIGTERM))


def _supervise(child: int, parent: int, grace: float, terminate: Callable[[], None]) -> int:
    """Wait for `child`, or stop it when asked to or orphaned; then leave no descendant. Returns the exit code."""
    stopped, deadline = 0, float("inf")
    while (code := _reap(child)) is None:
        if not stopped and (_received or os.getppid() != parent):
            stopped, deadline = _received or signal.SIGTERM, time.monotonic() + grace
            terminate()
        if time.monotonic() > deadline:
            _send(_tree(child), signal.SIGKILL)
        time.sleep(_POLL)
    _clear(deadline if stopped else time.monotonic() + min(grace, _MARGIN), asked=bool(stopped))
    return 128 + stopped if stopped else code if code >= 0 else 128 - code


def _clear(deadline: float, asked: bool) -> None:
    """End what the command left running: SIGTERM unless that was sent before, SIGKILL from the deadline on."""
    left = _tree()
    if left and not asked:
        _send(left, signal.SIGTERM)
    while left and time.monotonic() < deadline + _MARGIN:
        if time.monotonic() > deadline:
            _send(left, signal.SIGKILL)
        time.sleep(_POLL)
        _reap()
        left = _tree()
    if left:
        _say(f"could not end {left}")


def _reap(child: int = 0) -> int | None:
    """Collect every child that has ended; the exit code of `child` if it is among them (negative: the signal)."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


# --- the process table ----------------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    """pid -> parent's pid of every process that has not ended; empty where there is no /proc."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat") if _LINUX else ():
        with contextlib.suppress(OSError):
            # proc_pid_stat(5): pid (comm) state ppid ...; comm may hold spaces and parentheses
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(stat.parent.name)] = int(parent)
    return found


def _tree(group: int | None = None) -> list[int]:
    """Every living descendant of this process. Without /proc: minus `group`, which `_send` reads as a process group."""
    if not _LINUX:
        return [-group] if group else []
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _ancestors() -> set[int]:
    parents, pid, found = _parents(), os.getpid(), set[int]()
    while pid := parents.get(pid, 0):
        found.add(pid)
    return found


# --- signals --------------------------------------------------------------------------------------------------------


def _listen() -> None:
    """Note the first of the stop signals. An ignored SIGHUP (nohup) stays ignored; an ignored SIGINT is what a background job inherits."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _note)


def _note(signum: int, _frame: object) -> None:
    global _received
    _received = _received or signum


def _send(pids: Sequence[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _tie_to(parent: int) -> None:
    """In a child, before its exec: die by SIGKILL with `parent`, now if it is gone already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LIBC is not None and _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _exit_with(body: Callable[[], int]) -> NoReturn:
    """End a forked process with body's code, running none of the parent's exit handlers."""
    code = 1
    try:
        code = body()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(text: str) -> None:
    print(f"guard: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module; see its docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="guard", description="Run COMMAND so that nothing of it is left behind.")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--parent", type=int, help="the process whose death ends COMMAND (default: the one that started this)")
    parser.usage = "guard [--grace SECONDS] [--parent PID] -- COMMAND..."
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    if not command:
        parser.error("no COMMAND after --")
    return run(command, options.grace, options.parent)


if __name__ == "__main__":
    sys.exit(main())
