"""What starts by itself: a sensor for requests, and the nightly look at the champion."""

import time

import dagster as dg

from assets import partitions
from assets.evaluation import prepared_datasets
from assets.portraits import BATCH
from assets.resources import QueueResource, RegistryResource, Settings, WorkspaceResource
from diffsfsr.errors import InputError, NotReady
from pipelines import jobs

_AGAIN_SECONDS = 300


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
    config = {
        "ops": {"evaluation_report": {"config": {"model": "champion"}}},
        "resources": {"settings": {"config": {"preset": settings.preset}}},
    }
    keys = [dg.MultiPartitionKey({"dataset": dataset, "task": task}) for dataset in datasets for task in partitions.TASKS]
    return [dg.RunRequest(run_key=f"{night}-{key}", partition_key=str(key), run_config=config) for key in keys]
