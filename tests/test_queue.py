"""The queue with a clock of the test's own, and with real processes; on SQLite, and on Postgres where one is named."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from assets.stores.queue import STATES, Queue, _connect
from diffsfsr.errors import InputError

POSTGRES = os.environ.get("DIFFSFSR_TEST_POSTGRES")  # read before the fixtures clean the environment
SPAWN = multiprocessing.get_context("spawn")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "state" / "queue.db")
        return
    if not POSTGRES:
        pytest.skip("DIFFSFSR_TEST_POSTGRES is unset: name a scratch database, postgresql+psycopg2://user@host/name")
    schema, admin = f"queue_{uuid.uuid4().hex[:12]}", _connect(POSTGRES)  # a schema of its own: the database may be in use
    with admin.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    yield f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}options=-csearch_path%3D{schema}"
    with admin.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
    admin.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(url: str, clock: Clock) -> Iterator[Queue]:
    made = Queue(url, clock=clock)
    yield made
    made.close()


def test_a_request_goes_from_queued_to_done(queue: Queue, clock: Clock) -> None:
    payload = {"emotion": "happiness", "person": "O'Brien", "seeds": [1, 2], "name": "名\u0000"}
    first, second = queue.add_all([payload, {}])
    assert queue.counts() == dict.fromkeys(STATES, 0) | {"queued": 2}
    clock.now += 5
    [taken] = queue.lease(1, "run-1", 30)
    assert (taken.id, taken.state, taken.owner, taken.attempts) == (first, "leased", "run-1", 1)
    assert (taken.payload, taken.lease_until, taken.created, taken.updated) == (payload, clock.now + 30, clock.now - 5, clock.now)
    assert queue.complete(first, "run-1", {"file": "a.png"})
    done = queue.get(first)
    assert (done.state, done.result, done.lease_until) == ("done", {"file": "a.png"}, None)
    assert [r.id for r in queue.list()] == [second, first]
    assert [r.id for r in queue.list("done")] == [first]
    assert len(queue.list(limit=1)) == 1
    assert queue.lease(5, "run-2", 30)[0].id == second
    assert queue.lease(5, "run-2", 30) == []


def test_only_the_holder_of_a_running_lease_ends_a_request(queue: Queue, clock: Clock) -> None:
    request = queue.add({})
    assert not queue.complete(request, "run-1", {})
    queue.lease(1, "run-1", 30)
    assert not queue.complete(request, "run-2", {}) and not queue.fail(request, "run-2", "no") and not queue.renew(request, "run-2", 9)
    clock.now += 29
    assert queue.renew(request, "run-1", 30)
    clock.now += 29
    assert queue.get(request).state == "leased" and queue.lease(1, "run-2", 30) == []
    clock.now += 1  # the lease is over
    assert not queue.complete(request, "run-1", {}) and not queue.renew(request, "run-1", 30)
    assert [r.attempts for r in queue.lease(1, "run-2", 30)] == [2]
    assert not queue.complete(request, "run-1", {})
    assert queue.complete(request, "run-2", {})
    assert not queue.complete(request, "run-2", {}) and not queue.fail(request, "run-2", "late")
    assert queue.get(request).state == "done"


def test_attempts_run_out(queue: Queue, clock: Clock) -> None:
    request, other = queue.add_all([{}, {}])
    for attempt in (1, 2, 3):
        assert request in [r.id for r in queue.lease(1, f"run-{attempt}", 10)]
        clock.now += 11
    assert [r.id for r in queue.lease(2, "run-4", 10)] == [other]
    failed = queue.get(request)
    assert failed.state == "failed" and failed.attempts == 3 and "after 3 attempts" in str(failed.reason)
    again = queue.retry(request)
    assert (again.state, again.attempts, again.reason) == ("queued", 0, None)
    for attempt, state in ((1, "queued"), (2, "queued"), (3, "failed")):
        queue.lease(1, f"retry-{attempt}", 10)
        assert queue.fail(request, f"retry-{attempt}", "no memory\0", retry=True)
        assert (queue.get(request).state, queue.get(request).reason) == (state, "no memory")
    queue.retry(request)
    queue.lease(1, "last", 10)
    assert queue.fail(request, "last", "no face") and queue.get(request).state == "failed"


def test_cancel_and_retry_refuse_other_states(queue: Queue) -> None:
    queued, leased, done = queue.add_all([{}, {}, {}])
    assert queue.cancel(queued).state == "cancelled"
    assert [r.id for r in queue.lease(1, "run", 30)] == [leased]
    assert queue.cancel(leased).owner is None
    assert not queue.complete(leased, "run", {})
    queue.lease(1, "run", 30)
    queue.complete(done, "run", {})
    for act, which, message in (
        (queue.cancel, done, "is done; only queued or leased"),
        (queue.cancel, queued, "is cancelled; only queued"),
        (queue.retry, done, "only failed or cancelled"),
    ):
        with pytest.raises(InputError, match=message):
            act(which)
    assert queue.retry(queued).state == "queued"
    with pytest.raises(InputError, match="is queued"):
        queue.retry(queued)


def test_ids_states_and_payloads_that_are_wrong(queue: Queue) -> None:
    request = queue.add({})
    assert queue.get(request[:6]).id == request
    for wrong in (request[:5], "", "zzzzzz", "%%%%%%", "______", request.upper() + "X"):
        with pytest.raises(InputError, match="not a request's id"):
            queue.get(wrong)
    with pytest.raises(InputError, match="unknown"):
        queue.get("0" * 32)
    with queue._transaction() as connection:
        connection.execute(sa.text(f"UPDATE requests SET id = '{'ab' * 16}'"))
    second = queue.add({})
    with queue._transaction() as connection:
        connection.execute(sa.text(f"UPDATE requests SET id = '{'ab' * 15}cd' WHERE id = '{second}'"))
    with pytest.raises(InputError, match="not unique"):
        queue.cancel("ababab")
    with pytest.raises(InputError, match="did you mean queued"):
        queue.list("queud")
    for payload in ({"x": float("nan")}, {"x": Path("a")}):
        with pytest.raises(InputError, match="plain JSON"):
            queue.add(payload)
    with pytest.raises(InputError, match="n >= 1"):
        queue.lease(0, "run", 30)


def work(url: str, gate: Any, name: str, taken: Any) -> None:
    gate.wait()
    queue, ids = Queue(url), []  # the first opens race to make the table
    while requests := queue.lease(7, name, 60):
        ids += [r.id for r in requests]
        for request in requests:
            assert queue.complete(request.id, name, {"by": name})
    taken.put(ids)


def test_four_processes_take_each_of_500_requests_once(url: str) -> None:
    gate, taken = SPAWN.Barrier(5), SPAWN.Queue()
    workers = [SPAWN.Process(target=work, args=(url, gate, f"run-{i}", taken)) for i in range(4)]
    for worker in workers:
        worker.start()
    queue = Queue(url)
    ids = queue.add_all({"n": i} for i in range(500))
    gate.wait()
    found = collections.Counter(i for _ in workers for i in taken.get(timeout=60))
    for worker in workers:
        worker.join(30)
    assert found == collections.Counter(ids)
    assert queue.counts() == dict.fromkeys(STATES, 0) | {"done": 500}
    queue.close()


def open_together(url: str, gate: Any) -> None:
    gate.wait()
    Queue(url).add({})


def test_first_opens_at_once(url: str) -> None:
    gate = SPAWN.Barrier(4)
    openers = [SPAWN.Process(target=open_together, args=(url, gate)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [o.exitcode for o in openers] == [0] * 4
    assert Queue(url).counts()["queued"] == 4


def hold(url: str, held: Any) -> None:
    queue = Queue(url)
    queue.lease(1, "doomed", 1.0)
    held.set()
    with queue._transaction():  # killed inside a transaction, for good measure
        time.sleep(60)


def test_a_killed_holder_loses_its_lease(url: str) -> None:
    queue, held = Queue(url), SPAWN.Event()
    request = queue.add({})
    holder = SPAWN.Process(target=hold, args=(url, held))
    holder.start()
    assert held.wait(30)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(10)
    found = _until(lambda: queue.lease(1, "next", 30))
    assert [(r.id, r.attempts) for r in found] == [(request, 2)]
    assert queue.complete(request, "next", {})
    queue.close()


def _until(ask: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_postgres_is_reached_through_the_driver_that_is_installed() -> None:
    for url in ("postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg2://u@h/d"):
        assert _connect(url).url.drivername == "postgresql+psycopg2"


def test_a_queue_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set DIFFSFSR_QUEUE_URL"):
        Queue("bogus://x")
    (tmp_path / "q.db").write_bytes(b"no database" * 500)
    with pytest.raises(InputError, match=r"q.db is damaged \(file is not a database\): move it away"):
        Queue(f"sqlite:///{tmp_path / 'q.db'}")


def test_what_a_dead_owner_held_is_queued_again(tmp_path: Path) -> None:
    queue = Queue(f"sqlite:///{tmp_path / 'q.db'}")
    ids = queue.add_all([{"n": n} for n in range(3)])
    queue.lease(2, "dead", 1000)
    queue.lease(1, "alive", 1000)
    assert queue.release("dead") == 2 and queue.release("dead") == 0
    assert [r.id for r in queue.waiting()] == ids[:2] and queue.get(ids[2]).owner == "alive"
