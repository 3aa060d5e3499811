"""The registry on a SQLite store of its own, with real processes for the first open and a real server for the remote case."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.stores.registry import CHALLENGER, CHAMPION, Registry, content_hash
from diffsfsr.errors import InputError, NotReady

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at MLflow's schema, copied by each test instead of migrated again."""
    path = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    registry = Registry(f"sqlite:///{path}")
    assert registry.prepare_store() and not registry.prepare_store()
    return path


@pytest.fixture
def registry(tmp_path: Path, prepared: Path) -> Registry:
    home = tmp_path / "stüdio's home"
    home.mkdir()
    shutil.copy(prepared, home / "mlflow.db")
    return Registry(f"sqlite:///{home}/mlflow.db", home / "mlartifacts", cache=home / "models")


def model_folder(parent: Path, content: str) -> Path:
    folder = parent / f"model {content}"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.bin").write_bytes(content.encode() * 1000)
    (folder / "config.json").write_text("{}")
    return folder


def open_together(home: str, gate: Any, found: Any) -> None:
    registry = Registry(f"sqlite:///{home}/mlflow.db", f"{home}/mlartifacts")
    gate.wait()
    did = registry.prepare_store()
    found.put((did, registry.open_run("first", "training")))


def test_two_first_opens_at_once_migrate_once_and_share_a_run(tmp_path: Path) -> None:
    gate, found = SPAWN.Barrier(2), SPAWN.Queue()
    openers = [SPAWN.Process(target=open_together, args=(str(tmp_path), gate, found)) for _ in range(2)]
    for opener in openers:
        opener.start()
    answers = [found.get(timeout=180) for _ in openers]
    for opener in openers:
        opener.join(30)
    assert sorted(did for did, _ in answers) == [False, True]
    assert answers[0][1] == answers[1][1]


# --- a first start that is killed -------------------------------------------------------------------------------------


def killed_after(words: str, start: Callable[[], object]) -> None:
    """`start` in a process of its own that is killed right after its first statement of SQL with those words."""

    def child() -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        @event.listens_for(Engine, "after_cursor_execute")
        def _kill(connection: object, cursor: object, statement: str, *_: object) -> None:
            if words in statement:
                os.kill(os.getpid(), signal.SIGKILL)

        start()

    process = multiprocessing.get_context("fork").Process(target=child)  # MLflow is imported already, and nothing is open
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def by_mlflow(uri: str) -> None:
    """What MLflow does with a database at its own first start."""
    import mlflow.store.db.utils as db

    engine = db.create_sqlalchemy_engine_with_retry(uri)
    (db._initialize_tables if db._is_empty_database(engine) else db._upgrade_db)(engine)


MOMENTS = ("CREATE TABLE metrics", "CREATE TABLE _alembic_tmp_metrics", "CREATE TABLE secrets", "ALTER TABLE _alembic_tmp_spans RENAME")


def test_a_start_after_first_starts_that_were_killed(prepared: Path, tmp_path: Path) -> None:
    """At the first tables, in the middle of a table's change, between two, and near the end."""
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlartifacts")
    for words in MOMENTS:
        killed_after(words, registry.prepare_store)
    assert registry.open_run("first", "training") and not registry.prepare_store()
    assert sorted(p.name for p in tmp_path.glob("mlflow*")) == ["mlflow.db", "mlflow.db.lock"]


def test_what_mlflow_left_half_made_is_begun_again(prepared: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed_after(MOMENTS[1], lambda: by_mlflow(uri))
    with pytest.raises(Exception, match="duplicate column|already exists"):  # the fault itself
        by_mlflow(uri)
    assert Registry(uri, tmp_path / "mlartifacts").open_run("first", "training")
    assert not list(tmp_path.glob("*.before-*"))  # there was nothing in it


def test_nobody_is_told_to_move_away_a_database_that_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assets.stores import schema

    def locked(path: Path) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(schema, "_revision", locked)
    (tmp_path / "mlflow.db").write_bytes(b"in use")
    with pytest.raises(NotReady, match="another program holds it; end that and try again") as told:
        Registry(f"sqlite:///{tmp_path}/mlflow.db").prepare_store()
    assert "move it away" not in str(told.value)


def test_a_database_with_anything_in_it_is_never_lost(prepared: Path, tmp_path: Path) -> None:
    """Half-made, it is left as it is; of an earlier MLflow, it is migrated, killed once on the way, and kept beside."""
    uri, insert = (
        f"sqlite:///{tmp_path}/mlflow.db",
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'mine', 'active')",
    )
    killed_after(MOMENTS[1], lambda: by_mlflow(uri))
    query(tmp_path / "mlflow.db", insert)
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(NotReady, match="mlflow.db cannot be brought to this MLflow's schema .*backup"):
        Registry(uri).prepare_store()
    assert (tmp_path / "mlflow.db").read_bytes() == before
    (tmp_path / "mlflow.db").unlink()
    killed_after("CREATE TABLE alembic_version", lambda: by_mlflow(uri))  # the tables of the first MLflow of all
    query(tmp_path / "mlflow.db", insert)
    killed_after(MOMENTS[2], Registry(uri).prepare_store)
    assert Registry(uri).prepare_store() and Registry(uri)._client.get_experiment("7").name == "mine"
    (kept,) = tmp_path.glob("mlflow.db.before-*")
    assert query(kept, "SELECT name FROM experiments") == [("mine",)]


def query(file: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(statement).fetchall()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_found_again_by_its_name(registry: Registry) -> None:
    first = registry.open_run("2026 O'Brien", "training", {"preset": "tiny"})
    registry.end_run(first)
    assert registry._client.get_run(first).info.status == "FINISHED"
    assert registry.open_run("2026 O'Brien", "training", {"preset": "lab"}) == first
    run = registry._client.get_run(first)
    assert (run.info.status, run.data.tags["preset"], run.data.tags["kind"]) == ("RUNNING", "lab", "training")
    assert registry.open_run("another", "training") != first
    assert registry.open_run("any name", "training", run_id=first) == first
    with pytest.raises(InputError, match="quotes"):
        registry.open_run('a"b', "training")


def test_stats_are_logged_in_batches_and_once(registry: Registry) -> None:
    run = registry.open_run("stats", "training")
    rows: list[dict[str, Any]] = [{"step": i, "loss": 1.0 / (i + 1), "lr(x)": i, "note": "text", "flag": True} for i in range(600)]
    assert registry.log_stats(run, rows) == 1200
    assert registry.log_stats(run, rows[500:]) == 200  # a resumed training logs its last steps again
    registry.log_stats(run, [{"step": 600, "loss": math.nan}])
    history = registry._client.get_metric_history(run, "loss")
    assert [(m.step, m.value) for m in history[:600]] == [(r["step"], r["loss"]) for r in rows]
    assert len(history) == 601 and math.isnan(history[600].value)
    assert registry._client.get_run(run).data.metrics["lr_x_"] == 599
    registry.log_params(run, {f"training.p{i}": i for i in range(150)})
    assert len(registry._client.get_run(run).data.params) == 150


def test_tables_pictures_and_folders_replace_earlier_ones(registry: Registry, tmp_path: Path) -> None:
    import PIL.Image

    run = registry.open_run("artifacts", "evaluation")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for value in (1.0, math.nan):
        registry.log_table(run, [{"task": "all", "ID": value}, {"task": "identity", "n": 3}], "report/scores")
        registry.log_picture(run, picture, "report/grid.png")
    registry.log_folder(run, model_folder(tmp_path, "a"), "extra")
    registry.log_folder(run, tmp_path / "model a" / "config.json")
    root = Path(registry.artifact_root.removeprefix("file://").replace("%C3%BC", "ü").replace("%27", "'").replace("%20", " "))  # type: ignore[union-attr]
    files = root / run / "artifacts"
    table = json.loads((files / "report" / "scores.json").read_text())
    assert table == {"columns": ["task", "ID", "n"], "data": [["all", None, None], ["identity", None, 3]]}
    assert len(json.loads(registry._client.get_run(run).data.tags["mlflow.loggedArtifacts"])) == 1
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(files / "report" / "grid.png")), picture)
    assert (files / "config.json").read_text() == "{}"
    assert content_hash(files / "extra") == content_hash(tmp_path / "model a")


def test_versions_are_known_by_their_content(registry: Registry, tmp_path: Path) -> None:
    run = registry.open_run("train", "training")
    a, b = model_folder(tmp_path, "a"), model_folder(tmp_path, "b")
    assert registry.register(a, run, {"steps": "10"}) == 1
    assert registry.register(b, run) == 2  # the same run, further trained: the first version's files stay
    assert registry.resolve(CHALLENGER).version == 2
    assert registry.register(a, registry.open_run("again", "training"), {"steps": "11"}) == 1
    challenger = registry.resolve(CHALLENGER)
    assert (challenger.version, challenger.tags["steps"], challenger.run_id) == (1, "11", run)
    assert challenger.path is not None and content_hash(challenger.path) == content_hash(a)
    assert (challenger.path / "unet" / "weights.bin").read_bytes() == b"a" * 1000
    assert [(mv.version, mv.aliases) for mv in registry.versions()] == [(2, ()), (1, (CHALLENGER,))]
    with pytest.raises(InputError, match="not a folder"):
        registry.register(tmp_path / "none", run)


def test_the_content_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "a")
    seen = {content_hash(folder)}
    (folder / "config.json").write_text("{ }")
    seen.add(content_hash(folder))
    (folder / "config.json").rename(folder / "conf.json")
    seen.add(content_hash(folder))
    (folder / "unet" / "weights.bin").rename(folder / "weights.bin")
    seen.add(content_hash(folder))
    assert len(seen) == 4
    for name in ("README.md", "evaluation.json"):  # what is said of a model is no part of it
        (folder / name).write_text("{}")
    assert content_hash(folder) in seen
    (folder / "unet" / "README.md").write_text("")
    assert content_hash(folder) not in seen


def test_a_note_of_somebodys_own_is_no_event(registry: Registry, tmp_path: Path) -> None:
    registry.register(model_folder(tmp_path, "a"), registry.open_run("train", "training"))
    registry.promote(1, "ann", "the first")
    registry._client.set_registered_model_tag(registry.name, "champion.notes", "ask Ann first")
    assert [(event.after, event.why) for event in registry.history()] == [(1, "the first")]


def test_promotion_moves_the_champion_and_rollback_returns_it(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="diffsfsr run train"):
        registry.resolve(CHAMPION)
    assert registry.versions() == []
    run = registry.open_run("train", "training")
    for content in "abc":
        registry.register(model_folder(tmp_path, content), run)
    for absent in (CHAMPION, 4, "9" * 30, "\u00b2", "no body"):
        with pytest.raises(NotReady, match="diffsfsr run promote"):
            registry.resolve(absent)
    first = registry.promote(1, "ann", "the first")
    assert first.version == registry.champion == 1
    with pytest.raises(NotReady, match="no champion before"):
        registry.rollback("bo", "?")
    second = registry.promote(3, "bo", "better ID by 0.02 [0.01, 0.03]")
    assert second.version == 3 and registry.promote(3, "cy", "again").version == 3  # it is the champion already
    with pytest.raises(NotReady, match="no model 9"):
        registry.promote(9, "bo", "typo")
    assert registry.resolve(CHAMPION).version == 3
    assert registry.rollback("dee", "worse on beards").version == 1
    told = [(e.action, e.before, e.after, e.who, e.why, e.happened) for e in registry.history()]
    assert told == [
        ("promote", None, 1, "ann", "the first", True),
        ("promote", 1, 3, "bo", "better ID by 0.02 [0.01, 0.03]", True),
        ("rollback", 3, 1, "dee", "worse on beards", True),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event.at) for event in registry.history())
    assert {mv.version: mv.aliases for mv in registry.versions()} == {3: (CHALLENGER,), 2: (), 1: (CHAMPION,)}
    shutil.rmtree(registry.resolve(3).path)  # type: ignore[arg-type]
    with pytest.raises(NotReady, match="gone"):
        registry.promote(3, "bo", "no files")
    assert registry.resolve(CHAMPION).version == 1 and len(registry.history()) == 3


def test_rollbacks_go_back_the_way_that_promotions_came(registry: Registry, tmp_path: Path) -> None:
    run = registry.open_run("train", "training")
    for content in "abc":
        registry.register(model_folder(tmp_path, content), run)
    for version in (1, 2, 1, 3):
        registry.promote(version, "ann", f"try {version}")
    registry._client.set_registered_model_alias(registry.name, CHAMPION, "2")  # by hand, on MLflow's page
    assert [registry.rollback("bo", "back").version for _ in range(4)] == [3, 1, 2, 1]
    with pytest.raises(NotReady, match="no champion before"):
        registry.rollback("bo", "once too often")


def test_a_promotion_in_place_of_another_champion_than_was_compared_is_refused(registry: Registry, tmp_path: Path) -> None:
    run = registry.open_run("train", "training")
    for content in "abc":
        registry.register(model_folder(tmp_path, content), run)
    registry.promote(1, "ann", "the first", instead_of=None)
    registry.promote(2, "bo", "better than 1", instead_of=1)
    for judged_against in (None, 1):
        with pytest.raises(NotReady, match="changed meanwhile and is version 2; run `diffsfsr run promote` again"):
            registry.promote(3, "cy", "better than 1", instead_of=judged_against)
    assert registry.champion == 2 and len(registry.history()) == 2


def promote_together(uri: str, version: int, gate: Any, found: Any) -> None:
    registry = Registry(uri)
    registry.versions()
    gate.wait()
    try:
        found.put(registry.promote(version, f"process {version}", "better than 1", instead_of=1).version)
    except NotReady as error:
        found.put(str(error))


def test_of_two_promotions_at_once_one_is_told_to_compare_again(registry: Registry, tmp_path: Path) -> None:
    run = registry.open_run("train", "training")
    for content in "abc":
        registry.register(model_folder(tmp_path, content), run)
    registry.promote(1, "ann", "the first")
    gate, found = SPAWN.Barrier(2), SPAWN.Queue()
    both = [SPAWN.Process(target=promote_together, args=(registry.tracking_uri, version, gate, found)) for version in (2, 3)]
    for process in both:
        process.start()
    answers = sorted((found.get(timeout=180) for _ in both), key=str)
    for process in both:
        process.join(30)
    assert answers[0] in (2, 3) and "changed meanwhile" in answers[1]
    assert registry.champion == answers[0] and [event.after for event in registry.history()] == [1, answers[0]]


@pytest.mark.parametrize("words, moved", [("registered_model_tags", False), ("registered_model_aliases", True)])
def test_a_promotion_killed_between_its_writes_is_told_as_what_it_came_to(
    registry: Registry, tmp_path: Path, words: str, moved: bool
) -> None:
    run = registry.open_run("train", "training")
    for content in "ab":
        registry.register(model_folder(tmp_path, content), run)
    registry.promote(1, "ann", "the first")
    uri = registry.tracking_uri

    def promote() -> None:
        Registry(uri).promote(2, "bo", "better")

    killed_at_commit_after(f"INSERT INTO {words}", promote)
    again = Registry(uri)
    assert again.champion == (2 if moved else 1)
    assert [(e.after, e.happened) for e in again.history()] == [(1, True), (2, moved)]
    if moved:
        assert again.rollback("cy", "back").version == 1
    else:
        assert again.promote(2, "cy", "better, once more").version == 2
        assert [(e.who, e.happened) for e in again.history()] == [("ann", True), ("bo", False), ("cy", True)]
        assert again.rollback("dee", "back").version == 1


def killed_at_commit_after(words: str, start: Callable[[], object]) -> None:
    """`start` in a process of its own that is killed when the first transaction that wrote those words has been committed."""

    def child() -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine
        from sqlalchemy.orm import Session

        wrote = []

        @event.listens_for(Engine, "after_cursor_execute")
        def _see(connection: object, cursor: object, statement: str, *_: object) -> None:
            if statement.startswith((words, words.replace("INSERT INTO", "UPDATE"))):
                wrote.append(statement)

        @event.listens_for(Session, "after_commit")
        def _kill(session: object) -> None:
            if wrote:
                os.kill(os.getpid(), signal.SIGKILL)

        start()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def test_a_version_of_before_the_pyfunc_is_still_resolved(registry: Registry, tmp_path: Path) -> None:
    """Its folder was the model itself."""
    run = registry.open_run("train", "training")
    folder = model_folder(tmp_path, "a")
    registry._client.create_registered_model(registry.name)
    registry._client.log_artifacts(run, str(folder), "old")
    source = f"{registry._client.get_run(run).info.artifact_uri}/old"
    registry._client.create_model_version(registry.name, source, run_id=run, tags={"content_sha256": content_hash(folder)})
    assert content_hash(registry.resolve(1).folder) == content_hash(folder)
    assert registry.register(folder, run) == 1 and content_hash(registry.promote(1, "ann", "the first").folder) == content_hash(folder)


def test_faces_are_forgotten_from_the_words_of_every_version(registry: Registry, tmp_path: Path) -> None:
    from diffsfsr import tables
    from diffsfsr.portrait.words import WORDS, WordTable

    beside = tmp_path / "beside"
    rows = [{"face_id": f"d/{i}", "emotion": "happiness", "expression": [float(i)] * 16} for i in range(3)]
    tables.write(beside / "words.parquet", tables.from_rows(rows, WORDS), "dln")
    run = registry.open_run("train", "training")
    for content in "ab":
        registry.register(model_folder(tmp_path, content), run, beside=beside)
    registry.register(model_folder(tmp_path, "c"), run)  # no words beside it
    assert registry.forget(["d/1", "nobody"]) == 2 and registry.forget(["d/1"]) == 0
    for version in (1, 2):
        root = registry.resolve(version).folder.parent
        _, facts, _ = WordTable(root / "words.parquet").reference("happiness", 0)
        assert facts["among"] == 2 and b"d/1" not in (root / "words.parquet").read_bytes()


def test_nothing_global_is_left_behind(registry: Registry) -> None:
    registry.open_run("a", "training")
    code = (
        "import assets.stores.registry, sys; assert 'mlflow' not in sys.modules;"
        "from mlflow.telemetry.utils import is_telemetry_disabled as off; assert off()"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST")}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean, cwd=Path(__file__).parents[1])
    import mlflow

    assert str(registry.tracking_uri) != mlflow.get_tracking_uri() and mlflow.active_run() is None


@pytest.fixture
def server(tmp_path: Path, prepared: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shutil.copy(prepared, tmp_path / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "remote"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_a_remote_version_is_downloaded_whole_and_once(server: str, tmp_path: Path) -> None:
    registry = Registry(server, cache=tmp_path / "models")
    run = registry.open_run("train", "training")
    folder = model_folder(tmp_path, "a")
    assert registry.register(folder, run) == registry.register(folder, run) == 1
    assert registry.versions()[0].path is None
    found = registry.promote(1, "ann", "the first")
    assert found.path is not None and found.path.parent == tmp_path / "models"
    assert content_hash(found.path) == content_hash(folder)
    shutil.rmtree(tmp_path / "remote")
    assert registry.resolve(CHAMPION).path == found.path
    shutil.rmtree(found.path)
    with pytest.raises(Exception, match="(?i)not|no such|artifact"):
        registry.resolve(CHAMPION)
    assert list((tmp_path / "models").iterdir()) == []
