"""A crew whose workers die of one photograph. A light module of its own: each worker imports it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from diffsfsr.face.crew import Crew


class Unlucky(Crew):
    """`deadly`: the photograph; `diary`: a file that notes who looked at what; after so many looks at it nobody dies any more."""

    def __init__(self, workers: int, deadly: str, diary: Path, deaths: int) -> None:
        super().__init__(workers)
        self._fate = partial(_unlucky, deadly, diary, deaths)

    def map(self, work: Any, tasks: Any, *others: Any) -> Any:
        return super().map(partial(self._fate, work), tasks, *others)


def _unlucky(deadly: str, diary: Path, deaths: int, work: Any, task: Any) -> Any:
    with diary.open("a") as file:
        print(task[0]["path"], os.getpid(), file=file)
    if task[0]["path"] == deadly and diary.read_text().count(deadly) <= deaths:
        os._exit(1)
    return work(task)
