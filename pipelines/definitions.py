"""The whole graph, as `workspace.yaml` and `dg` load it."""

import dagster as dg

from assets import (
    ablations,
    assessment,
    checks,
    drift,
    embeddings,
    evaluation,
    experts,
    faces,
    images,
    methods,
    midpoints,
    portraits,
    registry,
    shards,
    supervision,
    training,
    watch,
    words,
)
from pipelines import automation, jobs
from pipelines.environments import Environment

_ROOMS = [
    images,
    faces,
    embeddings,
    supervision,
    experts,
    assessment,
    shards,
    training,
    evaluation,
    words,
    methods,
    ablations,
    midpoints,
    registry,
    portraits,
]

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(_ROOMS),
    asset_checks=dg.load_asset_checks_from_modules([checks, registry, watch, drift]),
    jobs=jobs.ALL,
    sensors=[automation.queued_requests, automation.new_versions],
    schedules=[automation.nightly_evaluation, automation.nightly_watch],
    resources=Environment.current().resources(),
    executor=dg.in_process_executor,  # a run is a process of its own already, and the libraries take seconds to load
)
