"""The command line as a stranger meets it: help, one line for each mistake, answers and nothing else, and it is light."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import run

from diffsfsr.errors import InputError
from pipelines import cli
from pipelines.look import picture_name

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    *["demo", "doctor", "faces", "embed", "emotions", "portrait", "travel", "request", "run", "weights", "export", "bench", "forget"],
    *["verify", "up"],
    *[f"request {verb}" for verb in ("add", "list", "show", "watch", "cancel", "retry")],
    *[f"weights {verb}" for verb in ("list", "pull", "check")],
]


def process(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *words], cwd=ROOT, text=True, timeout=120, **kwargs)


def test_a_complaint_is_one_line_that_no_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._complain("a\x1b[31m file,\nnot \u540d\udcff", 2) == 2
    assert capsys.readouterr().err == "diffsfsr: a\\x1b[31m file, not \u540d\\udcff\n"


@pytest.fixture
def there(tmp_path: Path, tom_hanks: Path, astronaut: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with two portraits, a broken one and nothing else; no weights beyond those of packages."""
    shutil.copy(tom_hanks, tmp_path / "hanks.png")
    shutil.copy(astronaut, tmp_path / "scene.png")
    (tmp_path / "broken.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    monkeypatch.delenv("DIFFSFSR_DATA", raising=False)
    return tmp_path


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str) -> None:
    ran = run(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith(f"usage: {' '.join(['diffsfsr', *command.split()])} ")
    about = ran.out.split("\n\n")[1]
    assert about.endswith(".") and len(about) > 15 and about[0].isupper()  # a sentence


def test_help_names_every_command() -> None:
    shown = run("--help").out
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    assert {c for c in COMMANDS if " " not in c} == set(listed)


# --- one line for each mistake ----------------------------------------------------------------------------------------

PORTRAIT = "portrait --selfie hanks.png --emotion joy"
MISTAKES = {
    "": "required",
    "fases": "fases",
    "run": "required",
    "run prepere": "prepere",
    "request": "required",
    "weights pull": "NAME",
    "emotions hapiness": "did you mean happiness?",
    "emotions happiness sadness": "sadness",
    "run prepare --preset tin": "did you mean tiny?",
    "run prepare --preset tiny": "--data",
    "run prepare --preset tiny --data missing": "missing is neither a folder",
    "run prepare --preset tiny --data hanks.png": "hanks.png is neither FEC's CSV nor Emo135's",
    "run prepare --preset tiny --data empty": "no photograph in",
    "run prepare --preset tiny --data . --name a/b": "cannot name a data set",
    "run train --preset tiny --data .": "--data goes with",
    "run train --preset tiny --set training.step=3": "did you mean steps?",
    "run train --preset tiny --set nonsense.x=3": "nonsense.x",
    "run train --preset tiny --set training.steps": "is not KEY=VALUE",
    "run train --preset tiny --set =3": "is not KEY=VALUE",
    "run train --preset tiny --set training.steps=many": "training.steps='many' must be of type int",
    "run train --preset tiny --set training.steps=-4": "not positive",
    "run train --preset tiny --set sampling.sampler=magic": "magic",
    "faces": "PATH",
    "faces missing.png": "missing.png does not exist",
    "faces empty": "no photograph",
    "faces hanks.png --face left": "left",
    "embed hanks.png --encoder dlip --out x.parquet": "did you mean dlib?",
    "embed hanks.png --encoder dlib": "--out",
    "embed hanks.png --encoder dlib --out nowhere/x.parquet": "nowhere/x.parquet",
    "embed hanks.png --encoder dlib --out x.csv": ".parquet",
    "embed hanks.png --encoder dlib --out folder.parquet": "folder.parquet must be a file's name",
    "embed missing.png --encoder dlib --out x.parquet": "missing.png",
    f"{PORTRAIT}": "--scene",
    f"{PORTRAIT} --scene scene.png --prompt beach": "either --scene FILE or --prompt",
    f"{PORTRAIT} --prompt beach": "Stable Diffusion",
    "request add --selfie hanks.png --emotion joy --prompt beach": "Stable Diffusion",
    f"{PORTRAIT} --scene missing.png": "missing.png is not a file",
    f"{PORTRAIT} --scene empty": "empty is not a file",
    f"{PORTRAIT} --scene scene.png --steps -1": "steps -1",
    f"{PORTRAIT} --scene scene.png --steps two": "two",
    f"{PORTRAIT} --scene scene.png --seed -1": "seed -1",
    f"{PORTRAIT} --scene scene.png --strength nan": "strength nan",
    f"{PORTRAIT} --scene scene.png --strength 9": "strength 9",
    f"{PORTRAIT} --scene scene.png --sampler ddmi": "did you mean ddim?",
    f"{PORTRAIT} --scene scene.png --task some": "unknown task 'some'",
    f"{PORTRAIT} --scene scene.png --face left": "left",
    f"{PORTRAIT} --scene scene.png --out nowhere/x.png": "nowhere/x.png",
    f"{PORTRAIT} --scene scene.png --out x.tif": ".png, .jpg or .webp",
    "portrait --selfie missing.png --scene scene.png --emotion joy": "selfie missing.png is not a file",
    "portrait --selfie hanks.png --scene scene.png --emotion hapiness": "did you mean happiness?",
    "portrait --scene scene.png --emotion joy": "--selfie",
    "portrait --selfie hanks.png --scene scene.png": "--emotion",
    "request show 0123456789": "unknown",
    "request show x": "not a request's id",
    "request cancel 0123456789": "unknown",
    "request list --state finished": "finished",
    "run promote --rollback --version 3": "give one of them",
    "run promote --version -3": "--version -3 is no version",
    "run train --preset tiny --why because": "--why go with `run promote`",
    "forget": "exactly one",
    "forget --portrait missing.png": "missing.png is not a file",
    "forget --person a --dataset b": "exactly one",
    "forget --person nobody": "nobody",
    "forget --dataset ../..": "cannot name a data set",
    "forget --dataset ../../../x": "cannot name a data set",
    "forget --portrait .": ". is not a file",
    "verify .": ". is not a file",
    "verify scene.png": "no readable sidecar",
    "request list --limit 0": "--limit 0",
    "request list --limit 99999999999999999999": "--limit 99999999999999999999",
    "request watch 0123456789 --timeout nan": "--timeout nan",
    f"{PORTRAIT} --scene scene.png --face ²": "face '²'",
    "faces hanks.png --face ²": "--face '²'",
    "run prepare --preset lab --data . --name a/b": "cannot name a data set",
    "verify missing.png": "missing.png is not a file",
    "weights pull nonsense": "nonsense",
    "bench nonsense": "nonsense",
    "up --port 0": "port",
    "demo --data missing": "missing",
    "demo --preset dmo": "did you mean demo?",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_in_one_line(there: Path, command: str) -> None:
    ran = run(*command.split())
    assert ran.code == 2, ran
    assert ran.out == "" and ran.err.count("\n") == 1 and ran.err.endswith("\n"), ran
    assert ran.err.startswith("diffsfsr") and MISTAKES[command] in ran.err and "Traceback" not in ran.err, ran
    assert not (there / "x.parquet").exists()


@pytest.mark.parametrize("command", ["faces", "verify", "portrait --out", "export --out", "forget --portrait", "travel --out"])
def test_an_empty_name_stands_for_nothing(there: Path, command: str) -> None:
    ran = run(*command.split(), "")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and "is empty: give a name" in ran.err, ran


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_a_state_folder_that_is_none_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.symlink_to(home) if kind == "loop" else home.write_text("")
    monkeypatch.setenv("DIFFSFSR_HOME", str(home))
    ran = run("request", "list")
    assert (ran.code, ran.err.count("\n")) == (2, 1) and f"{home} is a" in ran.err and "DIFFSFSR_HOME" in ran.err, ran


def test_an_out_whose_record_is_a_folder_is_refused_before_anything_is_painted(tmp_path: Path) -> None:
    (tmp_path / "x.png.json").mkdir()
    with pytest.raises(InputError, match="its record would be x.png.json, which is a folder"):
        picture_name(str(tmp_path / "x.png"), (".png",), ())
    assert picture_name(str(tmp_path / "y.png"), (".png",), ()) == tmp_path / "y.png" and list(tmp_path.iterdir()) == [
        tmp_path / "x.png.json"
    ]


def test_an_out_where_nothing_can_be_written_is_refused_before_anything_is_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"nothing can be written in that folder \(No space left on device\)"):
        picture_name(str(tmp_path / "y.png"), (".png",), ())


NOT_READY = {
    "run prepare --preset lab --data .": "run `diffsfsr weights pull mobilefacenet_arcface",
    "run train --preset tiny": "run `diffsfsr run prepare --preset tiny --data DIR`",
    "run evaluate --preset tiny": "run `diffsfsr run train --preset tiny`",
    "run evaluate --preset tiny --model champion": "`diffsfsr run promote`",
    "run promote --preset tiny": "run `diffsfsr run train --preset tiny`",
    "run promote --version 99": "there is no model 99",
    "run promote --rollback": "there is no model 'champion'",
    f"{PORTRAIT} --scene scene.png": "run `diffsfsr run train` and `diffsfsr run promote`",
    "embed hanks.png --encoder dln --preset tiny --out x.parquet": "run `diffsfsr run train --preset tiny`",
}


@pytest.mark.parametrize("command", NOT_READY)
def test_what_is_not_there_yet_is_told_with_the_command_that_makes_it(there: Path, command: str) -> None:
    ran = run(*command.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran
    assert NOT_READY[command] in ran.err and "Traceback" not in ran.err


def test_a_fault_of_ours_is_one_line_too(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("pipelines.look.emotions", broken)
    ran = run("emotions")
    assert (ran.code, ran.out) == (1, "") and ran.err == "diffsfsr: ZeroDivisionError: two lines (DIFFSFSR_DEBUG=1 shows where)\n"
    monkeypatch.setenv("DIFFSFSR_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("emotions")


def test_a_name_that_a_terminal_would_obey_is_written_out(there: Path) -> None:
    (there / "\x1b[2Jx.png").write_text("broken")
    assert "\x1b" not in run("faces", ".").out


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["emotions", "emotions joy", "faces hanks.png broken.png", "weights list", "request list", "run train --dry-run --preset tiny"],
)
def test_json_is_one_value_and_nothing_else(there: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cli._run

    def talkative(args: Any) -> Any:
        print("a library's chatter")
        os.write(1, b"and a child's\n")
        return original(args)

    monkeypatch.setattr(cli, "_run", talkative)
    ran = run(*command.split(), "--json")
    assert ran.code == 0
    json.loads(ran.out)
    assert "chatter" in ran.err and "child" in ran.err


def test_emotions(there: Path) -> None:
    tree = json.loads(run("emotions", "--json").out)
    words = [word for clusters in tree.values() for found in clusters.values() for word in found]
    assert len(words) == 135 and all(word in run("emotions").out for word in words)
    found = json.loads(run("emotions", " Joy", "--json").out)
    assert found == {"word": "joy", "secondary": "Cheerfulness", "primary": "Joy", "resolution": None}
    labels = Path(os.environ["DIFFSFSR_HOME"]) / "models" / "labels.json"
    labels.parent.mkdir(parents=True)
    labels.write_text('{"happiness": 3, "neutral": 2}')
    assert json.loads(run("emotions", "delight", "--json").out)["resolution"] == {"how": "cluster", "labels": ["happiness"], "faces": 3}


def test_embeddings_are_those_of_the_encoder(there: Path) -> None:
    """Against dlib's own descriptor of the same picture, on its own chip of it."""
    import dlib
    import numpy as np
    import pyarrow.parquet as pq

    from diffsfsr import weights
    from diffsfsr.face.images import read

    ran = run("embed", "hanks.png", "scene.png", "broken.png", "--encoder", "dlib", "--out", "e.parquet", "--json")
    answer = json.loads(ran.out)
    assert answer["faces"] == 2 and [row["reason"] for row in answer["rejects"]] == ["unreadable"]
    table = pq.read_table(there / "e.parquet")
    assert table.column_names == ["path", "face_id", "embedding"] and table["path"].to_pylist() == ["hanks.png", "scene.png"]
    image = read(there / "scene.png")
    box = dlib.get_frontal_face_detector()(image, 1)[0]
    shape = dlib.shape_predictor(str(weights.resolve("dlib-landmarks-68")))(image, box)
    theirs = np.array(dlib.face_recognition_model_v1(str(weights.resolve("dlib-face"))).compute_face_descriptor(image, shape))
    ours = np.array(table["embedding"].to_pylist())
    assert np.linalg.norm(ours[1] - theirs) < 0.25 < 0.5 < np.linalg.norm(ours[0] - theirs)  # dlib calls 0.6 the same person


def test_embeddings_of_no_face_are_a_table_of_the_same_columns(there: Path) -> None:
    import pyarrow.parquet as pq

    for name in ("hanks", "broken"):
        assert run("embed", f"{name}.png", "--encoder", "dlib", "--out", f"{name}.parquet").code == 0
    some, none = (pq.read_table(there / f"{name}.parquet") for name in ("hanks", "broken"))
    assert (some.num_rows, none.num_rows) == (1, 0) and none.schema.equals(some.schema, check_metadata=True)
    assert [str(kind) for kind in none.schema.types] == ["string", "string", "fixed_size_list<element: float>[128]"]


def test_a_dry_run_shows_the_settings_and_makes_nothing(there: Path) -> None:
    ran = run("run", "train", "--preset", "tiny", "--set", "training.steps=7", "--set", "training.lr=0.5", "--dry-run", "--json")
    shown = json.loads(ran.out)
    assert shown["job"] == "train" and shown["preset"]["training"]["steps"] == 7 and shown["preset"]["training"]["lr"] == 0.5
    assert not Path(os.environ["DIFFSFSR_HOME"]).exists()


def test_data_is_looked_for_in_the_folder_of_data(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_DATA", str(there.parent))
    monkeypatch.chdir(there / "empty")
    ran = run("run", "prepare", "--preset", "tiny", "--data", there.name, "--dry-run", "--json")
    assert json.loads(ran.out)["data"] == str(there)


# --- it is light, and pipes may close ---------------------------------------------------------------------------------

LIGHT = "import sys; from pipelines.cli import main\ntry:\n main({words})\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"


@pytest.mark.parametrize("words", [["--help"], ["emotions"], ["emotions", "joy", "--json"], ["run", "--help"], ["portrait", "--nonsense"]])
def test_nothing_heavy_is_loaded_for_a_light_answer(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", LIGHT.format(words=words)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = {name.partition(".")[0] for name in ran.stderr.splitlines()[-1].split()}
    assert "diffsfsr" in loaded or "pipelines" in loaded
    heavy = {"torch", "numpy", "pandas", "pyarrow", "dagster", "lancedb", "mlflow", "sqlalchemy", "PIL", "cv2", "dlib", "diffusers"}
    assert not loaded & heavy


@pytest.mark.parametrize("words", [["--help"], ["emotions"], ["emotions", "--json"], ["weights", "list"]])
def test_a_closed_pipe_is_no_fault(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = process(*words, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert ran.stderr == ""


def workers_of(parent: int) -> set[int]:
    """The processes that multiprocessing's fork server started for that one."""
    status = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            status[int(entry.parent.name)] = (fields[0], int(fields[1]))
    own = {pid for pid, (_, above) in status.items() if above == parent}
    return {pid for pid, (state, above) in status.items() if above in own and state != "Z"}


@pytest.mark.slow
def test_a_job_in_a_shells_background_outlives_a_worker_and_ends_by_kill(there: Path, tmp_path: Path, astronaut: Path) -> None:
    """There SIGINT is ignored, and what Dagster makes of that is that SIGTERM is ignored too."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(300):
        (photographs / f"{i:03d}.png").write_bytes(astronaut.read_bytes() + bytes([i % 256, i // 256]))
    words = "-m pipelines.cli run prepare --preset tiny --set data.shard=300 --set data.max_outside=1 --json --data photographs".split()
    environment = {**os.environ, "DIFFSFSR_CORES": "2", "PYTHONPATH": str(ROOT)}

    def started(**options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )

    def until(condition: Callable[[], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        return bool(condition())

    with started(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as job:
        try:
            assert until(lambda: len(workers_of(job.pid)) == 2, 180) and job.stderr
            time.sleep(1)  # they have begun to work
            first = workers_of(job.pid)
            os.kill(min(first), signal.SIGKILL)
            assert until(lambda: workers_of(job.pid) - first and not workers_of(job.pid) & first, 60), "the other worker is not replaced"
            job.send_signal(signal.SIGTERM)
            assert until(lambda: job.poll() is not None, 60), "SIGTERM is not heeded"
            assert job.returncode == 130 and job.stderr.read().endswith("stopped\n")
        finally:
            job.kill()
    for path in sorted(photographs.iterdir())[3:]:
        path.unlink()
    with started() as job:
        told, said = job.communicate(timeout=300)
        assert job.returncode == 0, said
        assert json.loads(told)["faces"] == 3


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_answers_are_utf8_in_any_locale(tmp_path: Path, locale: str) -> None:
    (tmp_path / "ünï.png").write_text("broken")
    environment = {**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = process("faces", str(tmp_path), "--json", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert json.loads(ran.stdout)["rejects"][0]["path"].endswith("ünï.png")


def test_the_help_of_embed_names_every_encoder() -> None:
    from diffsfsr.encoders import ENCODERS

    told = run("embed", "--help").out
    assert all(name in told.replace("\n", " ") for name in (*ENCODERS, "dln"))


def test_an_out_too_long_for_its_record_is_refused_before_anything_is_painted(tmp_path: Path) -> None:
    from pipelines.look import picture_name

    with pytest.raises(InputError, match="too long a name"):
        picture_name(str(tmp_path / f"{'a' * 240}.png"), (".png",), ())
    assert picture_name(str(tmp_path / f"{'a' * 190}.png"), (".png",), ()).name.endswith(".png")
