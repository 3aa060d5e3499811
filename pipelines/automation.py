"""What starts by itself: sensors for requests and for new versions, and the nightly looks at the champion."""

import time

import dagster as dg

from assets import partitions, version
from assets.evaluation import prepared_datasets
from assets.portraits import BATCH
from assets.resources import QueueResource, RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import ModelVersion
from diffsfsr.errors import InputError, NotReady
from pipelines import jobs

_AGAIN_SECONDS = 300
_DAY = 86_400


@dg.sensor(job=jobs.generate, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def queued_requests(context: dg.SensorEvaluationContext, queue: QueueResource) -> dg.SensorResult | dg.SkipReason:
    """A run of `generate` for every batch of waiting requests.

    The run key names a batch's oldest request, its attempt and the time to five minutes: a batch starts once, and starts again
    where its run came to nothing (no champion yet, say).
    """
    waiting = queue.open.waiting()
    if not waiting:
        return dg.SkipReason("no request is waiting")
    now = int(time.time() // _AGAIN_SECONDS)
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=f"{r.id}-{r.attempts}-{now}") for r in waiting[::BATCH]])


@dg.schedule(job=jobs.evaluate, cron_schedule="0 3 * * *", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING)
def nightly_evaluation(
    context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource, registry: RegistryResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """The champion on every task and every data set that is prepared for its preset, once a night."""
    try:
        champion = registry.open.resolve("champion")
        settings = Settings(preset=champion.tags.get("preset", Settings().preset))
        datasets = prepared_datasets(workspace.open, settings.resolve())
    except (NotReady, InputError) as error:
        return dg.SkipReason(str(error))
    night = context.scheduled_execution_time.strftime("%Y-%m-%d")
    return [_evaluation("champion", settings.preset, key, night) for key in _keys(datasets)]


@dg.schedule(job=jobs.watch, cron_schedule="0 5 * * *", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING)
def nightly_watch(context: dg.ScheduleEvaluationContext, registry: RegistryResource) -> dg.RunRequest | dg.SkipReason:
    """Once a night: the champion on the very items it was promoted on, and whether requests are still like its training faces."""
    try:
        champion = registry.open.resolve("champion")
    except NotReady as error:
        return dg.SkipReason(str(error))
    settings = {"settings": {"config": {"preset": champion.tags.get("preset", Settings().preset)}}}
    return dg.RunRequest(run_key=context.scheduled_execution_time.strftime("%Y-%m-%d"), run_config={"resources": settings})


@dg.sensor(job=jobs.evaluate, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def new_versions(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource, registry: RegistryResource
) -> dg.SensorResult | dg.SkipReason:
    """A run of `evaluate` for each data set and task that a version newer than the champion has not been measured on.

    The run key names the day too: an evaluation that fails is tried again once a day.
    """
    champion, day, asked = registry.open.champion or 0, int(time.time() // _DAY), []
    for found in registry.open.versions():
        if found.version > champion:
            preset = found.tags.get("preset", Settings().preset)
            asked += [_evaluation(str(found.version), preset, key, f"{found.version}-{day}") for key in _missing(found, preset, workspace)]
    return dg.SensorResult(run_requests=asked) if asked else dg.SkipReason("every version newer than the champion has been evaluated")


def _missing(found: ModelVersion, preset: str, workspace: WorkspaceResource) -> list[dg.MultiPartitionKey]:
    """Where a version has yet to be evaluated; nowhere, while nothing is prepared for its preset."""
    try:
        keys = _keys(prepared_datasets(workspace.open, Settings(preset=preset).resolve()))
    except (NotReady, InputError):
        return []
    by_dimension = [key.keys_by_dimension for key in keys]
    names = [version.evaluation_tag(f"{each['dataset']}-{each['task']}") for each in by_dimension]
    return [key for key, name in zip(keys, names, strict=True) if name not in found.tags]


def _keys(datasets: list[str]) -> list[dg.MultiPartitionKey]:
    return [dg.MultiPartitionKey({"dataset": dataset, "task": task}) for dataset in datasets for task in partitions.TASKS]


def _evaluation(model: str, preset: str, key: dg.MultiPartitionKey, once: str) -> dg.RunRequest:
    """One run of `evaluate`; Dagster starts the same model, partition and `once` a single time."""
    config = {
        "ops": {"evaluation_report": {"config": {"model": model}}},
        "resources": {"settings": {"config": {"preset": preset}}},
    }
    return dg.RunRequest(run_key=f"{once}-{key}", partition_key=str(key), run_config=config)
