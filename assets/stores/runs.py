"""Training and evaluation runs in MLflow: one experiment, each run found again by its name.

Everything goes through MlflowClient with the addresses given here; MLflow's global state is left alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from assets.stores.schema import bring_up_to_date
from diffsfsr.errors import InputError, NotReady

if TYPE_CHECKING:
    import numpy as np
    from mlflow.tracking import MlflowClient

# MLflow reads this when it is imported, which may be before a store is opened.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_RUN_TAG = "diffsfsr.run"
_METRICS_PER_BATCH = 1000  # MLflow's own limits
_PARAMS_PER_BATCH = 100


class Runs:
    """The MLflow store at `tracking_uri`: sqlite:///PATH, postgresql+psycopg2://... or the http:// address of a server.

    `artifact_root` (a folder or URL) is where files go when the experiment is first made; None leaves it to a server.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | Path | None = None, name: str = "diffsfsr") -> None:
        self.tracking_uri = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", tracking_uri)
        self.artifact_root = None if artifact_root is None else _as_uri(str(artifact_root))
        self.name = name

    @cached_property
    def _lock(self) -> AbstractContextManager[Any]:
        """Keeps this machine's processes from opening, registering or promoting at once; a server looks after itself."""
        if self.tracking_uri.startswith("http"):
            return nullcontext()
        if self.tracking_uri.startswith("sqlite:///"):
            path = Path(self.tracking_uri.removeprefix("sqlite:///") + ".lock").resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            return FileLock(path)
        key = hashlib.sha256(self.tracking_uri.encode()).hexdigest()[:16]
        return FileLock(Path(tempfile.gettempdir()) / f"diffsfsr-mlflow-{os.getuid()}-{key}.lock")

    def prepare_store(self) -> bool:
        """Bring the database to this MLflow's schema; True when there was something to do. A server does it by itself.

        Two first opens at once would both run the migrations, and one of them would fail.
        """
        if self.tracking_uri.startswith("http"):
            return False
        with self._lock:
            return bring_up_to_date(self.tracking_uri)

    @cached_property
    def _client(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        self.prepare_store()
        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    @cached_property
    def _experiment(self) -> str:
        with self._lock:
            if (found := self._client.get_experiment_by_name(self.name)) is None:
                unless_there(lambda: self._client.create_experiment(self.name, artifact_location=self.artifact_root))
                found = self._client.get_experiment_by_name(self.name)
        if found is None:
            raise NotReady(f"registry: experiment {self.name} was deleted; `mlflow gc` removes it, MLflow's page restores it")
        return found.experiment_id

    # --- runs -------------------------------------------------------------------------------------------------------

    def open_run(self, name: str, kind: str, tags: Mapping[str, str] | None = None, run_id: str | None = None) -> str:
        """The id of the run of that name, made or reopened: a training that resumes goes on in the run it began."""
        if '"' in name or "\\" in name:
            raise InputError(f"registry: a run's name may hold neither quotes nor backslashes: {name!r}")
        wanted = {**(tags or {}), _RUN_TAG: name, "kind": kind}
        experiment = self._experiment
        with self._lock:
            if run_id is None:
                found = self._client.search_runs([experiment], f'tags.`{_RUN_TAG}` = "{name}"', order_by=["attributes.start_time ASC"])
                run_id = found[0].info.run_id if found else None
            if run_id is None:
                return self._client.create_run(experiment, tags=wanted, run_name=name).info.run_id
        for key, value in wanted.items():
            self._client.set_tag(run_id, key, value)
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)

    def log_stats(self, run_id: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Log the numbers of rows {"step": n, key: number, ...}; returns how many. Other values are left out.

        Logging the same row again adds nothing: a metric's time is the run's start plus one millisecond a step.
        """
        from mlflow.entities import Metric

        start = self._client.get_run(run_id).info.start_time
        metrics = [
            Metric(re.sub(r"[^\w\-. /:]", "_", key), float(value), start + int(row["step"]), int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        for i in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[i : i + _METRICS_PER_BATCH])
        return len(metrics)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log settings. MLflow refuses another value for a setting that the run has already."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)) for key, value in params.items()]
        for i in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=entities[i : i + _PARAMS_PER_BATCH])

    def log_folder(self, run_id: str, path: Path, name: str | None = None) -> None:
        """Copy a folder's files, or one file, to the run, under the folder `name`."""
        (self._client.log_artifacts if path.is_dir() else self._client.log_artifact)(run_id, str(path), name)

    def log_picture(self, run_id: str, picture: np.ndarray, name: str) -> None:
        """Store HWC uint8 RGB as `name` (its suffix is the format), in place of an earlier one."""
        self._client.log_image(run_id, picture, artifact_file=name)

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Store rows as the table `name`.json, in place of an earlier one, in the form that MLflow's page shows."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[_finite(row.get(column)) for column in columns] for row in rows]
        path = name if name.endswith(".json") else f"{name}.json"
        self._client.log_text(run_id, json.dumps({"columns": columns, "data": data}), path)
        shown = json.loads(self._client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        if (entry := {"path": path, "type": "table"}) not in shown:
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*shown, entry]))


def unless_there(make: Callable[[], Any]) -> None:
    """Make something in MLflow; another process may have made it first."""
    from mlflow.exceptions import MlflowException

    try:
        make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _as_uri(root: str) -> str:
    return root if "://" in root else Path(root).resolve().as_uri()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
