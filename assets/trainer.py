"""What torchrun starts: the training process with its reporters. Rank 0 alone speaks to Dagster and MLflow.

torchrun ... -m assets.trainer RUN_DIR
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from diffsfsr.training import launch
from diffsfsr.training.loop import Report, Stats

_FLUSH_SECONDS = 5.0


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """A report function that logs each line to Dagster, if it launched us, and to MLflow in batches."""
    with contextlib.ExitStack() as stack:
        reporters = [stack.enter_context(r) for r in (_to_dagster(), _to_mlflow()) if r]

        def report_all(line: Stats, picture: Path | None = None) -> None:
            for report in reporters:
                report(line, picture)

        yield report_all


def _to_dagster() -> contextlib.AbstractContextManager[Report] | None:
    if "DAGSTER_PIPES_CONTEXT" not in os.environ:
        return None
    from dagster_pipes import open_dagster_pipes

    @contextlib.contextmanager
    def opened() -> Iterator[Report]:
        with open_dagster_pipes() as pipes:

            def report(line: Stats, picture: Path | None = None) -> None:
                shown = "  ".join(f"{name} {value:.5g}" for name, value in line.items())
                pipes.log.info(f"{shown}  {picture}" if picture else shown)

            yield report

    return opened()


def _to_mlflow() -> contextlib.AbstractContextManager[Report] | None:
    run_id = os.environ.get("DIFFSFSR_MLFLOW_RUN")
    if not run_id:
        return None
    from assets.stores.registry import Registry

    registry = Registry(os.environ["DIFFSFSR_MLFLOW_URI"], os.environ.get("DIFFSFSR_ARTIFACTS") or None)

    @contextlib.contextmanager
    def opened() -> Iterator[Report]:
        waiting: list[Stats] = []
        flushed = time.monotonic()

        def report(line: Stats, picture: Path | None = None) -> None:
            nonlocal flushed
            waiting.append(line)
            if picture:
                registry.log_folder(run_id, picture, picture.parent.name)
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                registry.log_stats(run_id, waiting)
                waiting.clear()
                flushed = time.monotonic()

        try:
            yield report
        finally:
            registry.log_stats(run_id, waiting)

    return opened()


def main(argv: list[str]) -> int:
    if os.environ.get("RANK", "0") != "0":
        return launch.main(argv)
    with reporting() as report:
        return launch.main(argv, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
