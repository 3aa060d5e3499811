"""Batches drawn by a thread before they are needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from diffsfsr.training.data import Batch, Position


class Feed:
    """`draw` at each of `places`, in their order, at most `ahead` of them before `next` asks; its exceptions come out of `next`.

    A batch's tensors lie on the device; with `channels_last`, those of four dimensions in that layout, which convolutions in
    half precision run several times faster on, on a CPU too. The thread ends with the context.
    """

    def __init__(
        self, draw: Callable[[Position], Batch], places: Iterable[Position], ahead: int, device: torch.device, channels_last: bool
    ) -> None:
        self._draw, self._places, self._device, self._channels_last = draw, iter(places), device, channels_last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._drawn: deque[Future[Batch]] = deque()
        self.waited = 0.0  # seconds that `next` took
        for _ in range(ahead):
            self._ask()

    def next(self) -> Batch:
        """The next place's batch. Raises IndexError after the last."""
        started = time.perf_counter()
        self._ask()
        batch = self._drawn.popleft().result()
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        self.waited += time.perf_counter() - started
        return batch

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *reason: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _ask(self) -> None:
        for place in self._places:
            self._drawn.append(self._thread.submit(self._make, place))
            return

    def _make(self, place: Position) -> Batch:
        return {name: self._prepared(value) for name, value in self._draw(place).items()}

    def _prepared(self, value: Tensor) -> Tensor:
        """In its layout, and where a GPU can fetch it while it computes."""
        if self._channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value.pin_memory() if self._device.type == "cuda" else value
