"""Batches drawn ahead: the same ones, in the same order, and no thread or exception is left behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from diffsfsr.training.data import Batch, Position
from diffsfsr.training.feed import Feed

CPU = torch.device("cpu")
PLACES = [Position(step, micro, 0, 1, 2, 0) for step in range(6) for micro in range(2)]


class Drawn:
    """Draws each place's own numbers, and remembers who asked for what."""

    def __init__(self) -> None:
        self.places: list[Position] = []
        self.threads: set[int] = set()

    def __call__(self, at: Position) -> Batch:
        self.places.append(at)
        self.threads.add(threading.get_ident())
        return {"x": torch.rand(2, generator=at.generator()), "picture": torch.rand(1, 3, 4, 5, generator=at.generator())}


def settled(drawn: Drawn, count: int) -> None:
    end = time.monotonic() + 10
    while len(drawn.places) < count and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)  # one more than it should draw would come now
    assert drawn.places == PLACES[:count]


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_batches_in_order_and_no_more_than_that_ahead(ahead: int) -> None:
    drawn, alone = Drawn(), Drawn()
    with Feed(drawn, PLACES, ahead, CPU, channels_last=False) as feed:
        settled(drawn, min(ahead, len(PLACES)))
        for i, at in enumerate(PLACES):
            batch, expected = feed.next(), alone(at)
            assert batch.keys() == expected.keys() and all(torch.equal(batch[name], value) for name, value in expected.items())
            settled(drawn, min(i + 1 + ahead, len(PLACES)))
        with pytest.raises(IndexError):
            feed.next()
    assert drawn.threads.isdisjoint({threading.get_ident()}) and len(drawn.threads) == 1


def test_an_exception_comes_out_where_its_batch_was_due() -> None:
    def draw(at: Position) -> Batch:
        if at == PLACES[3]:
            raise ValueError("no such face")
        return {"x": torch.tensor(at.part)}

    with pytest.raises(ValueError, match="no such face"), Feed(draw, PLACES, 5, CPU, channels_last=False) as feed:
        for _ in range(3):
            feed.next()
        feed.next()


def test_the_thread_ends_with_the_loop() -> None:
    before, waiting = threading.active_count(), threading.Event()

    def draw(at: Position) -> Batch:
        waiting.wait(0.05)
        return {"x": torch.tensor(at.part)}

    with pytest.raises(KeyboardInterrupt), Feed(draw, PLACES, 4, CPU, channels_last=False) as feed:
        feed.next()
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_pictures_are_laid_out_as_asked_and_waiting_is_measured() -> None:
    def draw(at: Position) -> Batch:
        time.sleep(0.02)
        return Drawn()(at)

    with Feed(draw, PLACES, 0, CPU, channels_last=True) as feed:
        picture = feed.next()["picture"]
        assert picture.is_contiguous(memory_format=torch.channels_last) and 0.02 <= feed.waited < 1
    with Feed(draw, PLACES, 1, CPU, channels_last=False) as feed:
        time.sleep(0.1)
        assert feed.next()["picture"].is_contiguous() and feed.waited < 0.02
