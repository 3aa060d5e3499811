r"""The queue of requests for portraits: one SQL table whose rows are taken under leases.

The statements are the same for SQLite (embedded) and Postgres (production); what differs is how two workers are kept
off one row: SQLite has one writer at a time (BEGIN IMMEDIATE), Postgres skips rows that another transaction locked.

    queued --lease--> leased --complete--> done
      ^                 |  \--fail------> failed        (or back to queued, while attempts are left)
      |                 \--lease ran out: taken again, or failed when no attempts are left
      \--retry-- failed | cancelled <--cancel-- queued | leased

A request is delivered at least once, so whatever a holder writes must be idempotent. It ends once: only the holder of a
running lease can complete or fail it. An owner is one attempt's name (a run's id), never reused.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from diffsfsr.errors import InputError, did_you_mean

STATES = ("queued", "leased", "done", "failed", "cancelled")
_BUSY_SECONDS = 60.0
_CREATE_LOCK = 7_255_367  # any number that no other user of the database takes as an advisory lock

REQUESTS = sa.Table(
    "requests",
    sa.MetaData(),
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float(53)),  # seconds since 1970, UTC, as the two below
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("updated", sa.Float(53), nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("reason", sa.Text),
    sa.Index("requests_by_state", "state", "created", "id"),
)


@dataclass(frozen=True)
class Request:
    """One row. Times are seconds since 1970 (UTC); `attempts` counts the leases taken since it was last queued by a person."""

    id: str
    payload: dict[str, Any]
    state: str
    owner: str | None
    lease_until: float | None
    attempts: int
    created: float
    updated: float
    result: dict[str, Any] | None
    reason: str | None


Requests = list[Request]  # inside the class `list` is a method


class Queue:
    """The queue at `url`: a file's path, sqlite:///PATH or postgresql+psycopg2://..., made when first used.

    `clock` gives seconds since 1970; without it Postgres answers by its own clock, so that workers on several machines
    share one, and SQLite by this machine's.
    """

    def __init__(self, url: str | Path, max_attempts: int = 3, clock: Callable[[], float] | None = None) -> None:
        if max_attempts < 1:
            raise InputError(f"queue: max_attempts={max_attempts} is not positive")
        self.max_attempts = max_attempts
        self._clock = clock
        try:
            self._engine = _connect(str(url))
            with self._transaction() as connection:
                if connection.dialect.name == "postgresql":  # two first uses at once would both create the table
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
                REQUESTS.metadata.create_all(connection)
        except sa.exc.ArgumentError as error:
            raise InputError(f"queue: its address names no database that is known here ({error}): set DIFFSFSR_QUEUE_URL") from error
        except sa.exc.DatabaseError as error:
            if "not a database" not in str(error.orig) and "malformed" not in str(error.orig):
                raise
            raise InputError(
                f"queue: {self._engine.url.database} is damaged ({error.orig}): move it away, and a new queue begins"
            ) from error

    # --- whoever orders ---------------------------------------------------------------------------------------------

    def add(self, payload: dict[str, Any]) -> str:
        """Queue one request; returns its id. Raises InputError when `payload` is not plain JSON."""
        return self.add_all([payload])[0]

    def add_all(self, payloads: Iterable[dict[str, Any]]) -> list[str]:
        """Queue several, in order, all or none."""
        checked = [_plain(payload) for payload in payloads]
        ids = [uuid.uuid4().hex for _ in checked]
        with self._transaction() as connection:
            now = self._now(connection)
            # A microsecond apart, so that the order in which they came is the order in which they leave.
            when = [now + 1e-6 * i for i in range(len(ids))]
            rows = [
                {"id": i, "payload": p, "state": "queued", "attempts": 0, "created": t, "updated": now}
                for i, p, t in zip(ids, checked, when, strict=True)
            ]
            if rows:
                connection.execute(REQUESTS.insert(), rows)
        return ids

    def get(self, request_id: str) -> Request:
        """The request of that id, or of the only id that begins so (six characters or more). Raises InputError otherwise."""
        if not re.fullmatch(r"[0-9a-f]{6,32}", request_id):
            raise InputError(f"queue: {request_id!r} is not a request's id; give its first six characters or more")
        with self._transaction(write=False) as connection:
            found = connection.execute(sa.select(REQUESTS).where(REQUESTS.c.id.startswith(request_id)).limit(2)).all()
        if len(found) != 1:
            why = "is not unique: give more characters" if found else "is unknown; `diffsfsr request list` names them"
            raise InputError(f"queue: request {request_id!r} {why}")
        return Request(**found[0]._mapping)

    def list(self, state: str | None = None, limit: int = 100) -> Requests:
        """Requests, newest first. Raises InputError for an unknown state."""
        if state is not None and state not in STATES:
            raise InputError(f"queue: unknown state {state!r}{did_you_mean(state, STATES)}; known: {', '.join(STATES)}")
        query = sa.select(REQUESTS).order_by(REQUESTS.c.created.desc(), REQUESTS.c.id).limit(limit)
        with self._transaction(write=False) as connection:
            found = connection.execute(query.where(REQUESTS.c.state == state) if state else query).all()
        return [Request(**row._mapping) for row in found]

    def waiting(self, limit: int = 1000) -> Requests:
        """Requests that a lease would take now, oldest first: queued ones, and those whose lease ran out."""
        c = REQUESTS.c
        with self._transaction(write=False) as connection:
            free = sa.or_(c.state == "queued", sa.and_(c.state == "leased", c.lease_until <= self._now(connection)))
            found = connection.execute(sa.select(REQUESTS).where(free).order_by(c.created, c.id).limit(limit)).all()
        return [Request(**row._mapping) for row in found]

    def counts(self) -> dict[str, int]:
        """State -> number of requests, every state named."""
        with self._transaction(write=False) as connection:
            found = connection.execute(sa.select(REQUESTS.c.state, sa.func.count()).group_by(REQUESTS.c.state)).all()
        return {state: 0 for state in STATES} | {state: count for state, count in found}

    def cancel(self, request_id: str) -> Request:
        """Cancel a queued or leased request; its holder, if any, will not be able to complete it."""
        return self._move(request_id, ("queued", "leased"), "cancelled", owner=None, lease_until=None)

    def retry(self, request_id: str) -> Request:
        """Queue a failed or cancelled request again, with all its attempts."""
        return self._move(request_id, ("failed", "cancelled"), "queued", owner=None, lease_until=None, attempts=0, reason=None)

    # --- whoever works ----------------------------------------------------------------------------------------------

    def lease(self, n: int, owner: str, seconds: float) -> Requests:
        """Take up to n requests, oldest first, for so many seconds: queued ones, and those whose lease ran out.

        A request whose lease ran out on its last attempt becomes failed instead.
        """
        if n < 1 or not owner or seconds <= 0:
            raise InputError(f"queue: a lease needs n >= 1, an owner and seconds > 0, not n={n}, owner={owner!r}, seconds={seconds}")
        c = REQUESTS.c
        with self._transaction() as connection:
            now = self._now(connection)
            ran_out = sa.and_(c.state == "leased", c.lease_until <= now)
            worn = self._lock(connection, sa.select(c.id).where(ran_out, c.attempts >= self.max_attempts).limit(1000))
            given_up = sa.literal(f"no result after {self.max_attempts} attempts; the last holder did not finish in time")
            _set(connection, worn, state="failed", lease_until=None, updated=now, reason=given_up)
            free = sa.or_(c.state == "queued", sa.and_(ran_out, c.attempts < self.max_attempts))
            ids = self._lock(connection, sa.select(c.id).where(free).order_by(c.created, c.id).limit(n))
            _set(connection, ids, state="leased", owner=owner, lease_until=now + seconds, updated=now, attempts=c.attempts + 1)
            taken = connection.execute(sa.select(REQUESTS).where(c.id.in_(ids)).order_by(c.created, c.id)).all()
        return [Request(**row._mapping) for row in taken]

    def renew(self, request_id: str, owner: str, seconds: float) -> bool:
        """Extend a lease to so many seconds from now. False when it is no longer the owner's."""
        with self._transaction() as connection:
            now = self._now(connection)
            return self._while_held(connection, now, request_id, owner, lease_until=now + seconds)

    def release(self, owner: str) -> int:
        """Queue again what an owner that has died still held; returns how many."""
        held = sa.and_(REQUESTS.c.state == "leased", REQUESTS.c.owner == owner)
        with self._transaction() as connection:
            now = self._now(connection)
            return connection.execute(
                REQUESTS.update().where(held).values(state="queued", owner=None, lease_until=None, updated=now)
            ).rowcount

    def complete(self, request_id: str, owner: str, result: dict[str, Any]) -> bool:
        """The request is done, if its lease is still the owner's. False: it ran out, was taken by another or cancelled."""
        result = _plain(result)
        with self._transaction() as connection:
            now = self._now(connection)
            return self._while_held(connection, now, request_id, owner, state="done", lease_until=None, result=result, reason=None)

    def fail(self, request_id: str, owner: str, reason: str, retry: bool = False) -> bool:
        """The request failed, if its lease is still the owner's; with `retry`, and attempts left, it is queued again."""
        c, text = REQUESTS.c, reason.replace("\0", "").encode("utf-8", "replace").decode()
        again = sa.and_(sa.literal(retry), c.attempts < self.max_attempts)
        state = sa.case((again, "queued"), else_="failed")
        with self._transaction() as connection:
            now = self._now(connection)
            return self._while_held(connection, now, request_id, owner, state=state, lease_until=None, reason=text)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # --- how --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, write: bool = True) -> Iterator[Connection]:
        with self._engine.connect().execution_options(queue_write=write) as connection, connection.begin():
            yield connection

    def _now(self, connection: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
        return time.time()

    def _lock(self, connection: Connection, query: Any) -> Any:
        """The ids that the query finds, theirs until the transaction ends. SQLite's transaction already is the only one."""
        return connection.execute(query.with_for_update(skip_locked=True)).scalars().all()

    def _while_held(self, connection: Connection, now: float, request_id: str, owner: str, **values: Any) -> bool:
        c = REQUESTS.c
        held = sa.and_(c.id == request_id, c.state == "leased", c.owner == owner, c.lease_until > now)
        return connection.execute(REQUESTS.update().where(held).values(updated=now, **values)).rowcount == 1

    def _move(self, request_id: str, states: tuple[str, ...], to: str, **values: Any) -> Request:
        found = self.get(request_id)
        with self._transaction() as connection:
            now = self._now(connection)
            fits = sa.and_(REQUESTS.c.id == found.id, REQUESTS.c.state.in_(states))
            moved = connection.execute(REQUESTS.update().where(fits).values(state=to, updated=now, **values)).rowcount
        found = self.get(found.id)
        if not moved:
            verb = "cancelled" if to == "cancelled" else "retried"
            raise InputError(f"queue: request {found.id[:8]} is {found.state}; only {' or '.join(states)} ones can be {verb}")
        return found


def _set(connection: Connection, ids: Any, **values: Any) -> None:
    if ids:
        connection.execute(REQUESTS.update().where(REQUESTS.c.id.in_(ids)).values(**values))


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"queue: not plain JSON: {error}") from error


def _connect(url: str) -> Engine:
    if "://" not in url:
        url = f"sqlite:///{Path(url).resolve()}"
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    if sa.make_url(url).database:
        Path(str(sa.make_url(url).database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _open(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver's own BEGIN is a deferred one
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                dbapi_connection.execute("PRAGMA journal_mode=WAL")
                return
            except Exception as error:  # changing the mode does not wait for a busy file by itself
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once when another wrote in between.
        write = connection.get_execution_options().get("queue_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
