"""The definitions as a whole: they load offline and lightly, the graph is the design's, and what starts by itself starts rightly."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInstance

from assets.portraits import BATCH
from assets.resources import QueueResource, RegistryResource, WorkspaceResource
from assets.stores.queue import Queue
from assets.stores.workspace import Workspace
from diffsfsr import tables
from pipelines import automation

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "lancedb", "mlflow", "diffusers", "transformers", "dlib", "cv2", "deepspeed", "matplotlib", "onnxruntime")

# DESIGN section 3, asset: what it is made from. An edge drawn there through another asset is that path here.
GRAPH = {
    "source_images": set(),
    "aligned_faces": {"source_images"},
    "face_masks": {"aligned_faces"},
    "identity_embeddings": {"aligned_faces"},
    "expression_embeddings": {"aligned_faces", "dln_model"},
    "catalogue": {"aligned_faces", "identity_embeddings", "expression_embeddings"},
    "emotion_index": {"catalogue"},
    "autoencoder": {"aligned_faces"},
    "expression_teacher": {"aligned_faces"},
    "dln_model": {"aligned_faces", "expression_teacher"},
    "loss_decoder": {"aligned_faces", "autoencoder"},
    "expert_report": {"catalogue", "dln_model"},
    "training_shards": {"catalogue", "face_masks", "autoencoder"},
    "trained_model": {"training_shards", "loss_decoder"},
    "evaluation_report": {"trained_model"},
    "method_rows": {"dln_model"},
    "ablation_table": {"trained_model"},
    "midpoint_study": {"trained_model"},
    "words_report": {"trained_model"},
    "registered_model": {"trained_model", "evaluation_report"},
    "champion": {"registered_model"},
    "portraits": {"champion"},
}
SHARDED = {
    "aligned_faces",
    "face_masks",
    "identity_embeddings",
    "expression_embeddings",
    "catalogue",
    "training_shards",
    "expression_teacher",
}
JOBS = {
    "scan",
    "prepare",
    "teach",
    "assess",
    "experts",
    "train_autoencoder",
    "train_dln",
    "train_decoder",
    "encode",
    "train",
    "evaluate",
    "words",
    "compare",
    "ablations",
    "midpoints",
    "promote",
    "rollback",
    "watch",
    "generate",
}

WARNINGS = {  # what these find stops nothing
    ("emotion_index", "no_test_face_in_training"),
    ("champion", "holds_what_it_promised"),
    ("portraits", "requests_like_training"),
}

LOAD = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and set(str(args[1])) & set("wax+") else None)
from pipelines.definitions import defs
defs.resolve_job_def("prepare")
print(json.dumps({"modules": sorted({name.partition(".")[0] for name in sys.modules}), "opened": opened}))
"""


@pytest.fixture(scope="module")
def graph() -> Any:
    from pipelines.definitions import defs

    return defs.resolve_asset_graph()


def test_they_load_offline_writing_nothing_and_without_a_heavy_import(tmp_path: Path) -> None:
    environment = {**os.environ, "DIFFSFSR_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert not set(HEAVY) & set(found["modules"])
    assert "dagster" in found["modules"]
    assert [path for path in found["opened"] if path != os.devnull] == []
    assert list(tmp_path.iterdir()) == []


def test_the_graph_is_the_designs(graph: Any) -> None:
    found = {key.to_user_string(): {p.to_user_string() for p in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()}
    assert found == GRAPH


def test_partitions(graph: Any) -> None:
    by_partitions: dict[Any, set[str]] = {}
    for key in graph.get_all_asset_keys():
        definition = graph.get(key).partitions_def
        by_partitions.setdefault(getattr(definition, "name", None) or type(definition).__name__, set()).add(key.to_user_string())
    assert by_partitions["shards"] == SHARDED
    assert by_partitions["MultiPartitionsDefinition"] == {"evaluation_report", "method_rows"}
    assert by_partitions["datasets"] == {"words_report"}
    assert by_partitions["NoneType"] == GRAPH.keys() - SHARDED - {"evaluation_report", "method_rows", "words_report"}


def test_jobs_sensor_schedule_checks(graph: Any) -> None:
    from pipelines.definitions import defs

    assert {job.name for job in defs.jobs or ()} == JOBS
    assert JOBS <= {job.name for job in defs.get_repository_def().get_all_jobs()}  # as the UI loads them: no name is taken twice
    made = {job: {key.to_user_string() for key in defs.resolve_job_def(job).asset_layer.executable_asset_keys} for job in JOBS}
    assert set().union(*made.values()) == GRAPH.keys()  # everything can be made by hand
    assert made["generate"] == {"portraits"} and made["promote"] == {"registered_model", "champion"}
    assert not any(defs.resolve_job_def(job).run_config for job in JOBS)  # such a job would keep the stores of its loading
    assert made["rollback"] == {"champion"} and made["watch"] == set()
    checked = {job: {key.name for key in defs.resolve_job_def(job).asset_layer.asset_graph.asset_check_keys} for job in JOBS}
    assert checked["promote"] == {"not_worse_than_champion"} and checked["generate"] == checked["rollback"] == set()
    assert checked["watch"] == {"holds_what_it_promised", "requests_like_training"}  # minutes of the gpu: not with every batch
    assert defs.resolve_sensor_def("queued_requests").job_name == "generate"
    schedule = defs.resolve_schedule_def("nightly_evaluation")
    assert (schedule.job_name, schedule.cron_schedule, schedule.execution_timezone) == ("evaluate", "0 3 * * *", "UTC")
    night = defs.resolve_schedule_def("nightly_watch")
    assert (night.job_name, night.cron_schedule, night.execution_timezone) == ("watch", "0 5 * * *", "UTC")
    assert defs.resolve_sensor_def("new_versions").job_name == "evaluate"
    checks = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert checks == {
        ("aligned_faces", "every_photograph_accounted_for"),
        ("catalogue", "one_row_per_face"),
        ("registered_model", "not_worse_than_champion"),
        *WARNINGS,
    }
    assert {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys if not graph.get(key).blocking} == WARNINGS


def test_pools_keep_the_gpu_and_each_table_to_one(graph: Any) -> None:
    pools: dict[str | None, set[str]] = {}
    for key in graph.get_all_asset_keys():
        (pool,) = graph.get(key).pools or {None}
        pools.setdefault(pool, set()).add(key.to_user_string())
    trained, judged = (
        {"autoencoder", "dln_model", "loss_decoder", "trained_model"},
        {"evaluation_report", "method_rows", "ablation_table", "words_report"},
    )
    assert pools["gpu"] == trained | judged | {"midpoint_study", "portraits"}
    assert pools["identity_table"] == {"identity_embeddings"} and pools["expression_table"] == {"expression_embeddings"}
    assert pools["faces_table"] == {"catalogue", "emotion_index"}
    assert pools["registry"] == {"registered_model", "champion"}


def test_every_asset_says_its_grain(graph: Any) -> None:
    for key in graph.get_all_asset_keys():
        first = (graph.get(key).description or "").partition(".")[0]
        assert first.startswith(("One ", "The ", "What ", "From ")), (key, first)


# --- the sensor -------------------------------------------------------------------------------------------------------


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


def requests_of(queue: Queue, url: str, instance: DagsterInstance) -> list[dg.RunRequest]:
    context = dg.build_sensor_context(instance=instance, resources={"queue": QueueResource(url=url)})
    found = automation.queued_requests(context)
    return found.run_requests if isinstance(found, dg.SensorResult) else []


def test_the_sensor_asks_for_one_run_a_batch_once_an_attempt(
    tmp_path: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    monkeypatch.setattr(automation.time, "time", lambda: 900.0)
    queue = Queue(url, clock=lambda: 1000.0)
    assert requests_of(queue, url, instance) == []
    ids = queue.add_all({"n": n} for n in range(2 * BATCH + 1))
    first = requests_of(queue, url, instance)
    assert len(first) == 3
    assert [r.run_key.partition("-")[0] for r in first if r.run_key] == [ids[0], ids[BATCH], ids[2 * BATCH]]
    assert [r.run_key for r in requests_of(queue, url, instance)] == [r.run_key for r in first]  # Dagster starts a key once
    for request in queue.lease(BATCH, "run", 60):
        queue.fail(request.id, "run", "it broke", retry=True)
    again = requests_of(queue, url, instance)
    assert len(again) == 3 and again[0].run_key != first[0].run_key and again[1].run_key == first[1].run_key
    monkeypatch.setattr(automation.time, "time", lambda: 1300.0)  # nothing came of it: once more
    assert not {r.run_key for r in requests_of(queue, url, instance)} & {r.run_key for r in first + again}


# --- the schedule -----------------------------------------------------------------------------------------------------


def nightly(home: Path, instance: DagsterInstance, day: int = 1) -> Any:
    registry = RegistryResource(tracking_uri=f"sqlite:///{home / 'mlflow.db'}", artifact_root=str(home / "mlartifacts"))
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime.datetime(2030, 1, day, 3, tzinfo=datetime.UTC),
        resources={"workspace": WorkspaceResource(home=str(home)), "registry": registry},
    )
    return automation.nightly_evaluation(context)


def test_nothing_is_evaluated_at_night_without_a_champion(tmp_path: Path, instance: DagsterInstance) -> None:
    skipped = nightly(tmp_path, instance)
    assert isinstance(skipped, dg.SkipReason) and "champion" in (skipped.skip_message or "")
    assert list(tmp_path.iterdir()) == []  # looking makes no store


class _Champion:
    version, tags = 7, {"preset": "tiny"}


def test_the_champion_is_evaluated_on_what_is_prepared_for_it(
    tmp_path: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assets.stores.registry import Registry

    monkeypatch.setattr(Registry, "resolve", lambda self, alias: _Champion() if alias == "champion" else None)
    assert isinstance(nightly(tmp_path, instance), dg.SkipReason)
    for name, crop in (("first", 64), ("second", 64), ("large", 512)):
        tables.write_json(Workspace(tmp_path).dataset(name) / "folder.json", {"folder": "/nowhere"})
        for kind in ("sources", f"aligned-{crop}"):
            tables.write(tmp_path / "data" / name / kind / "0000.parquet", tables.from_rows([{"face_id": "a"}], tables.FACES), "mark")
    asked = nightly(tmp_path, instance)
    assert {r.partition_key for r in asked} == {f"{n}|{task}" for n in ("first", "second") for task in ("all", "identity", "expression")}
    assert len({r.run_key for r in asked}) == 6 and not {r.run_key for r in asked} & {r.run_key for r in nightly(tmp_path, instance, 2)}
    config = asked[0].run_config
    assert config["ops"]["evaluation_report"]["config"] == {"model": "champion"}
    assert config["resources"]["settings"]["config"]["preset"] == "tiny"
    from pipelines.definitions import defs

    assert dg.validate_run_config(defs.resolve_job_def("evaluate"), config)


def test_the_champion_is_watched_once_a_night(tmp_path: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    from assets.stores.registry import Registry
    from pipelines.definitions import defs

    def asked(day: int) -> Any:
        registry = RegistryResource(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_root=str(tmp_path / "mlartifacts"))
        when = datetime.datetime(2030, 1, day, 5, tzinfo=datetime.UTC)
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=when, resources={"registry": registry})
        return automation.nightly_watch(context)

    assert isinstance(asked(1), dg.SkipReason) and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Registry, "resolve", lambda self, alias: _Champion())
    assert asked(1).run_key != asked(2).run_key
    assert dg.validate_run_config(defs.resolve_job_def("watch"), asked(1).run_config)


# --- new versions -----------------------------------------------------------------------------------------------------


def new_versions(home: Path, instance: DagsterInstance) -> Any:
    resources = {
        "workspace": WorkspaceResource(home=str(home)),
        "registry": RegistryResource(tracking_uri=f"sqlite:///{home / 'mlflow.db'}", artifact_root=str(home / "mlartifacts")),
    }
    return automation.new_versions(dg.build_sensor_context(instance=instance, resources=resources))


def test_each_new_version_is_evaluated_where_it_has_not_been(tmp_path: Path, instance: DagsterInstance) -> None:
    from assets import version
    from assets.stores.registry import Registry
    from pipelines.definitions import defs

    home = tmp_path / "home"
    home.mkdir()
    assert isinstance(new_versions(home, instance), dg.SkipReason) and list(home.iterdir()) == []  # looking makes no store
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts")
    run = registry.open_run("train", "diffusion")
    for name in ("old", "champion", "new", "newest"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        registry.register(tmp_path / name, run, {"preset": "tiny"})
    registry.promote(2, "ann", "the best")
    assert isinstance(new_versions(home, instance), dg.SkipReason)  # no faces to evaluate on
    tables.write_json(Workspace(home).dataset("first") / "folder.json", {"folder": "/nowhere"})
    for kind in ("sources", "aligned-64"):
        tables.write(home / "data" / "first" / kind / "0000.parquet", tables.from_rows([{"face_id": "a"}], tables.FACES), "mark")
    registry.note(4, **version.evaluation_tags({"first-all": {"run": "r", "report": "m/first-all", "pairs": {}}}))
    asked = new_versions(home, instance).run_requests
    models = [(r.run_config["ops"]["evaluation_report"]["config"]["model"], r.partition_key) for r in asked]
    wanted = [("3", "all"), ("3", "expression"), ("3", "identity"), ("4", "expression"), ("4", "identity")]
    assert sorted(models) == [(model, f"first|{task}") for model, task in wanted]
    keys = [r.run_key for r in asked]
    assert len(set(keys)) == 5 and keys == [r.run_key for r in new_versions(home, instance).run_requests]
    assert dg.validate_run_config(defs.resolve_job_def("evaluate"), asked[0].run_config)
