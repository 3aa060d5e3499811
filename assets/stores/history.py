"""Who made which version the champion, when and why: one tag of the registered model an event, written before the alias moves.

MLflow has no write of two things at once. An event says what is about to be done; that it was done is read off what came after it,
so that a process killed between the two writes leaves an event that is seen to have come to nothing.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

_TAG = "champion."
_KEY = re.compile(r"champion\.\d{5,}\.[0-9a-f]{8}")  # not a note of somebody's own
_LONGEST = 1000  # characters of a reason; MLflow takes 5000 bytes in all


@dataclass(frozen=True)
class Event:
    """One change of the champion, from version `before` (None: there was none) to `after`; `at` is UTC."""

    action: Literal["promote", "rollback"]
    before: int | None
    after: int
    who: str
    why: str
    at: str
    happened: bool = True


def new(action: Literal["promote", "rollback"], before: int | None, after: int, who: str, why: str) -> Event:
    return Event(action, before, after, who, why[:_LONGEST], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def as_tag(event: Event, number: int) -> tuple[str, str]:
    """(key, value) of the number-th event. Two machines that count to the same number at once keep both theirs."""
    told = {key: value for key, value in asdict(event).items() if key != "happened"}
    return f"{_TAG}{number:05d}.{uuid.uuid4().hex[:8]}", json.dumps(told, ensure_ascii=False)


def read(tags: Mapping[str, str], champion: int | None) -> list[Event]:
    """The events, oldest first, out of the tags of a registered model whose champion is that version now."""
    told = [Event(**json.loads(tags[key])) for key in sorted(tags) if _KEY.fullmatch(key)]
    found = [*(event.before for event in told[1:]), champion]  # what the next one, or now, finds as champion
    return [replace(event, happened=later != event.before) for event, later in zip(told, found, strict=False)]


def predecessor(events: Sequence[Event], champion: int) -> int | None:
    """The version that a rollback of the champion returns to: the one below it on the pile that promotions make."""
    pile: list[int] = []
    for event in (e for e in events if e.happened):
        if event.before is not None and pile[-1:] != [event.before]:  # somebody moved the alias by other means
            pile.append(event.before)
        if event.action == "promote":
            pile.append(event.after)
        else:
            pile.pop()
    if pile[-1:] != [champion]:
        pile.append(champion)
    return pile[-2] if len(pile) > 1 else None
