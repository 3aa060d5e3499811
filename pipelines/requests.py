"""The queue from the command line."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from typing import Any

from diffsfsr.errors import InputError, NotReady
from pipelines.environments import Environment

_POLL_SECONDS = 1.0
ENDED = ("done", "failed", "cancelled")


def _queue() -> Any:
    from assets.stores.queue import Queue

    here = Environment.current()
    here.home.mkdir(parents=True, exist_ok=True)
    return Queue(here.queue)


def add(args: Namespace) -> Any:
    from pipelines.look import order

    wanted = order(args)
    queue = _queue()
    return _shown(queue.get(queue.add(wanted.payload())))


def list_requests(args: Namespace) -> Any:
    if not 0 < args.limit < 2**31:
        raise InputError(f"--limit {args.limit} is not a number of requests: give 1 or more")
    rows = [_shown(request) for request in _queue().list(args.state, args.limit)]
    if args.json:
        return rows
    return "\n".join(f"{r['id'][:12]}  {r['state']:9}  {_word(r['payload']):16}  {r['reason'] or ''}" for r in rows) or "no requests"


def show(args: Namespace) -> Any:
    return _shown(_queue().get(args.id))


def watch(args: Namespace) -> Any:
    """Wait for the end of a request; it is somebody else who works on it (`diffsfsr run generate`, or the sensor)."""
    if not math.isfinite(args.timeout) or args.timeout < 0:
        raise InputError(f"--timeout {args.timeout} is not a number of seconds")
    queue, deadline = _queue(), time.monotonic() + args.timeout
    while True:
        request = queue.get(args.id)
        if request.state in ENDED:
            return _shown(request)
        if time.monotonic() > deadline:
            raise NotReady(
                f"request {request.id} is still {request.state} after {args.timeout:g} s; `diffsfsr run generate` makes what is queued"
            )
        time.sleep(_POLL_SECONDS)


def cancel(args: Namespace) -> Any:
    queue = _queue()
    return _shown(queue.cancel(args.id))


def retry(args: Namespace) -> Any:
    queue = _queue()
    return _shown(queue.retry(args.id))


def _shown(request: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(request)


def _word(payload: Any) -> str:
    """The emotion word, or the task of a request that needs none."""
    return str(payload.get("emotion") or payload.get("task") or "") if isinstance(payload, dict) else ""
