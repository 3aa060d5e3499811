"""`diffsfsr up`: ports, loopback only, and that nothing is left behind, on stand-in servers; the real ones once, slowly."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffsfsr.errors import InputError, NotReady
from pipelines import up
from pipelines.environments import Environment

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "UP_TEST_TOKEN"
SLEEPER = (sys.executable, "-c", "import subprocess, time; print('here', flush=True); subprocess.Popen(['sleep', '300']); time.sleep(300)")
JOBS = {"scan", "prepare", "experts", "encode", "train", "evaluate", "promote", "generate"}


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mark in the environment of every process that the test starts; what is left of them ends with the test."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(TOKEN, value)
    yield value
    for pid in alive(value):
        os.kill(pid, signal.SIGKILL)


def alive(token: str) -> list[int]:
    """Every living process that was started with that token."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes() and "\nState:\tZ" not in (entry / "status").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_the_first_commands_in_a_state_folder_take_turns(tmp_path: Path) -> None:
    """Dagster makes its databases without looking whether another process does so at this moment."""
    first = "from pipelines.environments import Environment; Environment.current().instance().get_runs_count()"
    env = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | {"DIFFSFSR_HOME": str(tmp_path / "home")}
    started = [subprocess.Popen([sys.executable, "-c", first], env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    told = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, told


def free_port() -> int:
    """A port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def command(port: int) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "up", "--port", str(port)]


# --- what would be started --------------------------------------------------------------------------------------------


def test_everything_listens_on_loopback_at_two_ports() -> None:
    found = {server.name: server for server in up.servers(Environment.current(), 4000)}
    assert {name: server.page for name, server in found.items()} == {"dagster-webserver": 4000, "dagster-daemon": None, "mlflow": 4001}
    for server in found.values():
        if server.page is not None:
            assert server.command[server.command.index("--host") + 1] == "127.0.0.1"
            assert server.command[server.command.index("--port") + 1] == str(server.page)


def test_a_password_stays_out_of_the_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_MLFLOW_URI", "postgresql://me:s3cret@db/mlflow")
    found = up.servers(Environment.current(), 4000)
    assert not any("s3cret" in part for server in found for part in server.command)
    assert found[-1].environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://me:s3cret@db/mlflow"


def test_an_mlflow_server_elsewhere_is_used_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_MLFLOW_URI", "http://mlflow:5000")
    assert [server.name for server in up.servers(Environment.current(), 4000)] == ["dagster-webserver", "dagster-daemon"]


@pytest.mark.parametrize("port", [-1, 0, 65535, 70000])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(InputError, match="--port"):
        up.servers(Environment.current(), port)


@pytest.mark.parametrize("taken", [0, 1])
def test_a_busy_port_is_one_line(taken: int, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + taken))
        other.listen()
        done = subprocess.run(command(port), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"diffsfsr: port {port + taken} cannot be used (Address already in use): choose another with --port\n"


def test_a_second_one_on_the_same_state_is_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    lock = tmp_path / "diffsfsr-home" / "locks" / "up.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        done = subprocess.run(command(free_port()), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is running on" in done.stderr and len(done.stderr.splitlines()) == 1


# --- starting and ending, on stand-ins --------------------------------------------------------------------------------


def test_leaving_ends_every_server_and_its_children(token: str, tmp_path: Path) -> None:
    os.environ[TOKEN] = token
    chosen = [up.Server("one", SLEEPER), up.Server("two", SLEEPER)]
    with up.running(chosen, tmp_path):
        # this process carries no token: /proc shows the environment it was started with
        assert wait_for(lambda: len(alive(token)) == 8)  # two stages of guard, the server and its child, twice
        assert wait_for(lambda: "here" in (tmp_path / "one.log").read_text())
    assert alive(token) == []


def test_a_server_that_ends_is_named_with_its_log(token: str, tmp_path: Path) -> None:
    ends = up.Server("two", (sys.executable, "-c", "import sys, time; print('why', file=sys.stderr); time.sleep(1); sys.exit(3)"))
    with pytest.raises(NotReady, match=f"two ended with exit code 3; its log is {tmp_path}/two.log"):
        with up.running([up.Server("one", SLEEPER), ends], tmp_path) as guards:
            up._until(lambda: False, guards, tmp_path, lambda: False)
    assert (tmp_path / "two.log").read_text() == "why\n" and alive(token) == []


def test_pages_that_never_answer(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="did not answer within 0 seconds"):
        up._until(lambda: False, {}, tmp_path, lambda: False, seconds=0.3)


def test_kill_9_leaves_nothing(token: str, tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from pipelines import up
with up.running([up.Server("one", {SLEEPER!r})], Path({str(tmp_path)!r})):
    time.sleep(300)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    assert wait_for(lambda: len(alive(token)) == 5)
    starter.kill()
    starter.wait()
    assert wait_for(lambda: not alive(token), 20), alive(token)


# --- for real ---------------------------------------------------------------------------------------------------------

QUERY = """{ repositoriesOrError { ... on RepositoryConnection { nodes { jobs { name } sensors { name } schedules { name } } } } }"""


def get(port: int, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"} if body else {})
    reply = connection.getresponse()
    return reply.status, reply.read()


def listening(port: int) -> set[str]:
    """The addresses, in hex, that listen on a port: from the kernel's table, not from what the servers say."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_both_pages_answer_and_leave_nothing_behind(end: int, token: str, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "said").open("wb") as said:
        started: Any = subprocess.Popen(command(port), cwd=ROOT, stdout=subprocess.PIPE, stderr=said)
    assert wait_for(lambda: "Ctrl-C" in (tmp_path / "said").read_text() or started.poll() is not None, 200)
    for number in (port, port + 1):
        assert f"http://127.0.0.1:{number}\n" in (tmp_path / "said").read_text()
        assert get(number, "/")[0] == 200
        assert listening(number) == {"0100007F"}  # 127.0.0.1 and no other
    status, reply = get(port, "/graphql", json.dumps({"query": QUERY}))
    (repository,) = json.loads(reply)["data"]["repositoriesOrError"]["nodes"]
    assert status == 200 and JOBS <= {job["name"] for job in repository["jobs"]}
    assert repository["sensors"] == [{"name": "queued_requests"}] and repository["schedules"] == [{"name": "nightly_evaluation"}]
    assert (tmp_path / "diffsfsr-home" / "mlflow.db").exists()
    started.send_signal(end)
    out, _ = started.communicate(timeout=60)
    assert out == b"" and started.returncode == (-end if end == signal.SIGKILL else 0)
    assert wait_for(lambda: not alive(token), 30 if end == signal.SIGKILL else 0), alive(token)
