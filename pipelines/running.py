"""One job of the graph, run in this process and recorded on the instance that the UI shows."""

from __future__ import annotations

import os
import socket
from typing import Any

from diffsfsr.errors import InputError, NotReady
from pipelines.environments import Environment

_PROCESS = "diffsfsr/process"  # a run's tag: the process it lives and dies with


def run_job(
    job: str,
    environment: Environment,
    instance: Any,
    settings: dict[str, Any],
    partition: str | None = None,
    ops: dict[str, Any] | None = None,
    fail: bool = True,
) -> Any:
    """What the job's run gave. `settings` is the configuration of the resource of that name; `fail` raises what an asset raised,
    its InputError or NotReady as itself."""
    import dagster as dg

    from pipelines.definitions import defs

    definition = defs.resolve_job_def(job)
    run_config = {
        "resources": {"settings": {"config": settings}} if "settings" in definition.required_resource_keys else {},
        "loggers": {"console": {"config": {"log_level": "INFO" if os.environ.get("DIFFSFSR_DEBUG") else "CRITICAL"}}},
        **({"ops": ops} if ops else {}),
    }
    try:
        return definition.execute_in_process(
            run_config=run_config,
            instance=instance,
            partition_key=partition,
            resources=environment.resources(),  # the definitions' own are those of the environment they were loaded in
            tags={_PROCESS: _this_process()},
            raise_on_error=fail,
        )
    except dg.DagsterExecutionInterruptedError as stopped:
        raise KeyboardInterrupt from stopped
    except Exception as error:
        raise _plain(error) from error


def _plain(error: Exception) -> Exception:
    """What an asset raised, out of what Dagster wraps around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, InputError | NotReady):
            return inner
        inner = inner.__cause__
    return error


def failure(result: Any) -> Exception:
    """What ended a run that was allowed to fail, as an exception."""
    for event in result.all_events:
        error = getattr(event.event_specific_data, "error", None)
        while error is not None:
            kind = {"InputError": InputError, "NotReady": NotReady}.get(error.cls_name or "")
            if kind:
                return kind(error.message.partition(": ")[2].strip())
            error = error.cause
    return RuntimeError(f"the run {result.run_id} failed; see it in the UI or with DIFFSFSR_DEBUG=1")


def end_orphans(instance: Any) -> list[str]:
    """End runs that a killed process of this machine left as started, so that the UI does not show them as going on."""
    from dagster import DagsterRunStatus, RunsFilter

    ended = []
    for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.STARTING])):
        machine, _, process = run.tags.get(_PROCESS, "").rpartition(":")
        if machine == socket.gethostname() and not _alive(int(process)):
            instance.report_run_failed(run, "its process was killed")
            ended.append(run.run_id)
    return ended


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
