"""`diffsfsr up`: Dagster's page, its daemon and MLflow's page on this machine, until Ctrl-C.

Neither page has a login, so they listen on the loopback address only. Each server runs under the guard, so that none is
left when this process ends, by whatever end.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffsfsr.errors import InputError, NotReady
from pipelines.environments import Environment

if TYPE_CHECKING:
    from assets.stores.registry import Registry

_LOOPBACK = "127.0.0.1"
_GRACE = 10.0  # seconds that the servers have to end by themselves: a run in progress must have time to be noted as ended
_START = 180.0  # seconds until both pages must answer; a cold disk needs a minute
_POLL = 0.2
_QUIET = {
    "DO_NOT_TRACK": "1",
    "DAGSTER_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # MLflow's own job runners, which nothing here uses
}


@dataclass(frozen=True)
class Server:
    """One process to keep up: `page` is the port it answers on, None for a daemon."""

    name: str
    command: tuple[str, ...]
    page: int | None = None
    health: str = "/"
    environment: dict[str, str] = field(default_factory=dict)  # where a password may stand: a command line is public

    @property
    def address(self) -> str:
        return f"http://{_LOOPBACK}:{self.page}"


def up(args: Namespace) -> None:
    """Run the servers until a signal. Raises InputError for a busy port or a second `up`, NotReady when a server ends."""
    from filelock import FileLock, Timeout

    here, signalled = Environment.current(), _listen()
    here.prepare()
    lock = FileLock(here.home / "locks" / "up.lock", timeout=0)
    Path(lock.lock_file).parent.mkdir(exist_ok=True)
    try:
        with lock:
            chosen = servers(here, args.port)
            for server in chosen:
                if server.page is not None:
                    _require_free(server.page)
            prepare_stores(here)
            with running(chosen, here.home / "logs") as guards:
                _until(lambda: _answering(chosen), guards, here.home / "logs", signalled, _START)
                if not signalled():
                    _announce(chosen, here)
                _until(signalled, guards, here.home / "logs", signalled)
    except Timeout as error:
        raise InputError(f"`diffsfsr up` is running on {here.home} already: use it, or set DIFFSFSR_HOME to another folder") from error


def servers(here: Environment, port: int) -> list[Server]:
    """Dagster's page on `port`, its daemon, and MLflow's page on the next port unless MLflow is a server elsewhere."""
    if not 1 <= port <= 65534:
        raise InputError(f"--port {port} is not between 1 and 65534")
    python, graph = sys.executable, ("-m", "pipelines.definitions")
    page = (python, "-m", "dagster_webserver", "--host", _LOOPBACK, "--port", str(port), *graph)
    daemon = (python, "-m", "dagster._daemon", "run", *graph)
    found = [Server("dagster-webserver", page, port, "/server_info"), Server("dagster-daemon", daemon)]
    if not here.mlflow.startswith("http"):
        root = here.artifacts if "://" in here.artifacts else Path(here.artifacts).resolve().as_uri()
        mlflow = (python, "-m", "mlflow", "server", "--host", _LOOPBACK, "--port", str(port + 1), "--workers", "1", "--no-serve-artifacts")
        stores = {"MLFLOW_BACKEND_STORE_URI": _registry(here).tracking_uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": root}
        found.append(Server("mlflow", mlflow, port + 1, "/health", stores))
    return found


def prepare_stores(here: Environment) -> None:
    """Bring Dagster's and MLflow's databases up to date before several processes open them at once."""
    with here.instance() as instance:
        instance.get_run_records(limit=1)
        instance.all_instigator_state()
    _registry(here).prepare_store()


def _registry(here: Environment) -> Registry:
    from assets.stores.registry import Registry

    return Registry(here.mlflow, here.artifacts)


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(chosen: list[Server], logs: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The servers, each under a guard of its own and with its output in `logs`; all of them ended on leaving."""
    logs.mkdir(parents=True, exist_ok=True)
    guards: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for server in chosen:
            guards[server.name] = _start(server, _log(logs, server.name))
        yield guards
    finally:
        for guard in guards.values():
            guard.terminate()
        for guard in guards.values():
            guard.wait()


def _start(server: Server, log: Path) -> subprocess.Popen[bytes]:
    # The runs that the servers start must find the project wherever `up` was called.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    guard = [sys.executable, "-m", "diffsfsr.training.guard", "--grace", str(_GRACE), "--parent", str(os.getpid()), "--"]
    with log.open("wb") as out:
        # A session of its own: Ctrl-C in the terminal reaches this process only, which then ends the servers.
        return subprocess.Popen(
            [*guard, *server.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **_QUIET, **server.environment, "PYTHONPATH": path},
            start_new_session=True,
        )


def _until(
    done: Callable[[], bool],
    guards: dict[str, subprocess.Popen[bytes]],
    logs: Path,
    signalled: Callable[[], bool],
    seconds: float = float("inf"),
) -> None:
    """Wait for `done`, or a signal. Raises NotReady, naming the log, when a server ends or the time is over."""
    end = time.monotonic() + seconds
    while not signalled() and not done():
        for name, guard in guards.items():
            if (code := guard.poll()) is not None:
                raise NotReady(f"{name} ended with exit code {code}; its log is {_log(logs, name)}")
        if time.monotonic() > end:
            raise NotReady(f"the pages did not answer within {seconds:.0f} seconds; the logs are in {logs}")
        time.sleep(_POLL)


def _log(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"


def _listen() -> Callable[[], bool]:
    """Note SIGINT, SIGTERM and SIGHUP in place of dying by them; the answer says whether one came."""
    received: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _frame: received.append(number))
    return lambda: bool(received)


# --- ports and pages --------------------------------------------------------------------------------------------------


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: connections that are closing do not count
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error


def _answering(chosen: list[Server]) -> bool:
    return all(server.page is None or _status(server.page, server.health) == 200 for server in chosen)


def _status(port: int, path: str) -> int | None:
    """The HTTP status of a page on the loopback, or None where nothing answers."""
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _announce(chosen: list[Server], here: Environment) -> None:
    pages = {server.name: server.address for server in chosen if server.page is not None}
    for title, address in (("Dagster", pages["dagster-webserver"]), ("MLflow", pages.get("mlflow", here.mlflow))):
        print(f"{title:8} {address}", file=sys.stderr)
    print(f"Ctrl-C stops them; their logs are in {here.home / 'logs'}", file=sys.stderr, flush=True)
