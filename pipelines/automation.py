"""What starts by itself: a sensor for requests, and the nightly look at the champion."""

import time

import dagster as dg

from assets import partitions
from assets.portraits import BATCH
from assets.resources import QueueResource, RegistryResource
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
def nightly_evaluation(context: dg.ScheduleEvaluationContext, registry: RegistryResource) -> list[dg.RunRequest] | dg.SkipReason:
    """The champion on every data set and task, once a night."""
    if not any("champion" in version.aliases for version in registry.open.versions()):
        return dg.SkipReason("there is no champion yet")
    night = context.scheduled_execution_time.strftime("%Y-%m-%d")
    config = dg.RunConfig(ops={"evaluation_report": {"config": {"model": "champion"}}})
    datasets = context.instance.get_dynamic_partitions(partitions.datasets.name or "")
    keys = [dg.MultiPartitionKey({"dataset": dataset, "task": task}) for dataset in datasets for task in partitions.TASKS]
    return [dg.RunRequest(run_key=f"{night}-{key}", partition_key=str(key), run_config=config) for key in keys]
