"""Cancelling a training from the UI's own API leaves no process behind. Slow: it starts Dagster's servers for real."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_up import ROOT, alive, command, free_port, get, token, wait_for  # noqa: F401  (token is a fixture)

LAUNCH = """mutation($config: RunConfigData!) { launchRun(executionParams: {selector: {repositoryName: "__repository__",
 repositoryLocationName: "pipelines.definitions", jobName: "experts"}, runConfigData: $config, mode: "default"}) {
 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
END = """mutation($id: String!) { terminateRun(runId: $id) { __typename ... on TerminateRunFailure { message } } }"""
STATUS = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""
SETTINGS = {"preset": "ae-tiny", "changes": {"training.steps": "100000", "training.checkpoint_every": "100000"}}


def ask(port: int, query: str, **variables: Any) -> dict[str, Any]:
    status, reply = get(port, "/graphql", json.dumps({"query": query, "variables": variables}))
    assert status == 200, reply
    return json.loads(reply)["data"]


@pytest.mark.slow
def test_cancelling_a_training_from_the_ui_leaves_no_process(token: str, tmp_path: Path, six_people: Path) -> None:  # noqa: F811
    folder = tmp_path / "photographs"
    folder.mkdir()
    shutil.copy(six_people, folder / "group.jpg")
    (folder / "labels.csv").write_text("file,person,face\n" + "".join(f"group.jpg,person {i},{i}\n" for i in range(4)))
    prepare = "-m pipelines.cli run prepare --preset tiny --set data.test_fraction=0 --data".split()
    subprocess.run([sys.executable, *prepare, str(folder)], cwd=ROOT, check=True, capture_output=True)

    port = free_port()
    with (tmp_path / "said").open("wb") as said:
        up = subprocess.Popen(command(port), cwd=ROOT, stdout=said, stderr=said)
    assert wait_for(lambda: "Ctrl-C" in (tmp_path / "said").read_text() or up.poll() is not None, 200)
    launched = ask(port, LAUNCH, config={"resources": {"settings": {"config": SETTINGS}}})["launchRun"]
    run_id = launched["run"]["runId"]

    def trainers() -> list[int]:
        return [pid for pid in alive(token) if b"assets.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    stats = tmp_path / "diffsfsr-home" / "runs"
    assert wait_for(lambda: list(stats.glob("*/stats.jsonl")), 240), (tmp_path / "said").read_text()
    assert trainers()
    assert ask(port, END, id=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert wait_for(lambda: not trainers(), 30), "processes of the training are left 30 s after it was cancelled"
    assert wait_for(lambda: ask(port, STATUS, id=run_id)["runOrError"]["status"] == "CANCELED", 60)
    assert list(stats.glob("*/checkpoints/step-*")), "a training that is asked to stop keeps what it has learned"
    up.send_signal(signal.SIGTERM)
    up.wait(60)
