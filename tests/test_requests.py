"""The queue from the command line: each verb against the queue itself."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shell import answer, run

from assets.stores.queue import Queue
from diffsfsr.portrait.order import Order


@pytest.fixture
def there(tmp_path: Path, tom_hanks: Path, astronaut: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(tom_hanks, tmp_path / "hanks.png")
    shutil.copy(astronaut, tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def queue(there: Path) -> Queue:
    return Queue(Path(os.environ["DIFFSFSR_HOME"]) / "queue.db")


def add(*more: str) -> dict[str, Any]:
    return answer("request", "add", "--selfie", "hanks.png", "--scene", "scene.png", "--emotion", "joy", *more)


def test_add_queues_the_order_with_its_paths_made_absolute(there: Path, queue: Queue) -> None:
    shown = add("--seed", "7", "--strength", "0.5", "--task", "identity", "--steps", "9", "--sampler", "ddim", "--face", "largest")
    wanted = Order("joy", (str(there / "hanks.png"),), str(there / "scene.png"), "", "identity", 0.5, 9, "ddim", 7, "largest")
    request = queue.get(shown["id"])
    assert Order.from_payload(request.payload) == wanted and shown["payload"] == request.payload
    assert (shown["state"], shown["attempts"], shown["result"], shown["reason"]) == ("queued", 0, None, None)
    assert abs(shown["created"] - time.time()) < 60


def test_list_shows_the_newest_first_by_state(there: Path, queue: Queue) -> None:
    assert answer("request", "list") == []
    ids = [add("--seed", str(seed))["id"] for seed in range(4)]
    assert [r["id"] for r in answer("request", "list")] == ids[::-1]
    queue.cancel(ids[1])
    assert [r["id"] for r in answer("request", "list", "--state", "cancelled")] == [ids[1]]
    assert [r["id"] for r in answer("request", "list", "--state", "queued", "--limit", "2")] == [ids[3], ids[2]]
    lines = run("request", "list").out.splitlines()
    assert len(lines) == 4 and lines[2].split() == [ids[1][:12], "cancelled", "joy"]
    plain = answer("request", "add", "--selfie", "hanks.png", "--scene", "scene.png", "--task", "identity")["id"]  # it needs no word
    assert run("request", "list").out.splitlines()[0].split() == [plain[:12], "queued", "identity"]


def test_show_takes_the_first_characters(there: Path) -> None:
    made = add()
    assert answer("request", "show", made["id"][:8]) == made
    assert f"id: {made['id']}" in run("request", "show", made["id"]).out


def test_cancel_and_retry(there: Path, queue: Queue) -> None:
    request = add()["id"]
    assert run("request", "retry", request).code == 2  # it has not ended
    assert answer("request", "cancel", request)["state"] == "cancelled"
    assert run("request", "cancel", request).code == 2
    assert queue.waiting() == []
    assert answer("request", "retry", request[:8])["state"] == "queued"
    queue.lease(1, "run", 60)
    queue.fail(request, "run", "no face")
    shown = answer("request", "show", request)
    assert (shown["state"], shown["reason"], shown["attempts"]) == ("failed", "no face", 1)
    again = answer("request", "retry", request)
    assert (again["state"], again["reason"], again["attempts"]) == ("queued", None, 0)


def test_watch_waits_for_the_end(there: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.requests._POLL_SECONDS", 0.05)
    request = add()["id"]
    waited = run("request", "watch", request, "--timeout", "0.2", "--json")
    assert (waited.code, waited.out) == (1, "") and "still queued after 0.2 s" in waited.err and waited.err.count("\n") == 1

    def work() -> None:
        time.sleep(0.3)
        queue.lease(1, "run", 60)
        queue.complete(request, "run", {"portrait": "/x.png"})

    worker = threading.Thread(target=work)
    worker.start()
    ended = answer("request", "watch", request, "--timeout", "30")
    worker.join()
    assert (ended["state"], ended["result"]) == ("done", {"portrait": "/x.png"})


def test_the_queue_may_lie_elsewhere(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_QUEUE_URL", f"sqlite:///{there / 'other.db'}")
    request = add()["id"]
    assert Queue(there / "other.db").get(request).state == "queued"
    assert not (Path(os.environ["DIFFSFSR_HOME"]) / "queue.db").exists()


def test_nothing_is_queued_by_a_refused_order(there: Path, queue: Queue) -> None:
    (there / "scene.png").unlink()
    ran = run("request", "add", "--selfie", "hanks.png", "--scene", "scene.png", "--emotion", "joy", "--json")
    assert ran.code == 2 and queue.list() == []
    assert json.loads(run("request", "list", "--json").out) == []
