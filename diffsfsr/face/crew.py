"""Processes that work through lists of photographs and survive what the photographs do to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 8  # tasks handed to a worker at a time


class Crew:
    """Processes that are started with the first list of work for them, kept from one list to the next, and killed by `close`.

    A start costs each the import of its libraries and a hundred megabytes of landmark predictor. With one worker, or a handful of
    tasks, the caller's own process does the work.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the processes. A thread that still waits in `map` gets CancelledError."""
        self._closed = True
        self._drop()

    def map(self, work: Callable[[T], R], tasks: list[T], crashed: Callable[[T], R], apart: bool = False) -> Iterator[R]:
        """work(task) for each task in turn; crashed(task), told here, for one that ends the process which works on it.

        `apart`: never in the caller's own process, because one of the tasks is known to have ended a process before.
        """
        if not apart and (self.workers <= 1 or (self._pool is None and len(tasks) < _CHUNK)):
            yield from map(work, tasks)
            return
        done = 0
        while done < len(tasks):
            try:
                for result in self._started(self.workers).map(work, tasks[done:], chunksize=_CHUNK):
                    done += 1
                    yield result
            except (RuntimeError, OSError) as error:
                self._bury(error)  # a worker died on one of the tasks in hand: these one by one, then on as before
                for result in self._one_by_one(work, tasks[done : done + _CHUNK * (self.workers + 1)], crashed):
                    done += 1
                    yield result

    def _one_by_one(self, work: Callable[[T], R], tasks: list[T], crashed: Callable[[T], R]) -> Iterator[R]:
        try:
            for task in tasks:
                try:
                    result = self._started(1).submit(work, task).result()
                except (RuntimeError, OSError) as error:
                    self._bury(error)
                    result = crashed(task)
                yield result
        finally:
            self._drop()

    def _started(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = _pool(workers)  # which starts no process before its first task
        if self._closed:
            raise CancelledError
        return self._pool

    def _bury(self, error: Exception) -> None:
        """Drop a pool of which a worker has died. Raises CancelledError where `close` was what killed it, any other error as it is."""
        if self._closed:
            raise CancelledError from error
        if not isinstance(error, BrokenProcessPool):
            raise error
        self._drop()

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            _kill(pool)


def survives(work: Callable[[T], object], task: T) -> bool:
    """Whether a process of its own lives through work(task). What that raises comes out."""
    died = list[T]()
    with Crew(1) as crew:
        list(crew.map(work, [task], died.append, apart=True))
    return not died


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_begin_work)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes now, and wait until they are gone. What they have in hand is lost: it writes no file.

    A pool's own way waits for that work, however long a hostile picture draws it out. The pool's end of the pipe of results is closed
    first: it would wait in vain for the rest of what a killed process had begun to write there.
    """
    pool._result_queue._writer.close()  # type: ignore[attr-defined]
    for process in list(pool._processes.values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


def _begin_work() -> None:
    """A worker is one core of many: its libraries must not each take all of them. It leaves Ctrl-C to its parent, and ends with it.

    SIGTERM ends it, whatever its parent does about that signal: it is how a pool whose other worker died ends this one.
    """
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["DIFFSFSR_CORES"] = "1"
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # else a worker whose parent was killed would wait for work for ever
