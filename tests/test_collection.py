"""A folder of photographs as rows: hostile files, labels, workers that die; every file ends as one face or one reject."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffsfsr import weights
from diffsfsr.config import Data
from diffsfsr.errors import InputError
from diffsfsr.face import collection
from diffsfsr.face.collection import align_rows, scan, split_of
from diffsfsr.face.crew import Crew

ROOT = Path(__file__).resolve().parents[1]
ODD_NAMES = ("ünï 人.png", "quote'\"`$(x);.png", "new\nline.png", " space .png", "-dash.png", "a,b.png", "back\\slash.png")
LATIN = os.fsdecode(b"caf\xe9.png")  # a name that is not UTF-8, as old archives have


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG that declares width x height and holds so many rows of black."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9, wbits=-15)
    row = packer.compress(bytes(width * 3 + 1)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated: it refers to nothing before it
    checksum = (rows * (width * 3 + 1) % 65521) << 16 | 1  # Adler-32 of zeros
    data = b"\x78\xda" + row * rows + b"\x03\x00" + struct.pack(">I", checksum)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, six_people: Path, tom_hanks: Path, astronaut: Path) -> tuple[Path, dict[str, str]]:
    """A folder of everything that may go wrong, and for each file what it must become: 'face' or a reason."""
    folder = tmp_path_factory.mktemp("hostile")
    expected = {name: "face" for name in (*ODD_NAMES, LATIN)}
    for name in expected:
        shutil.copy(tom_hanks, folder / name)
    (folder / "zero.jpg").touch()
    (folder / "truncated.jpg").write_bytes(six_people.read_bytes()[:40_000])
    (folder / "text.png").write_text("not a picture")
    (folder / "bomb.png").write_bytes(png(30_000, 30_000, 30_000))
    (folder / "liar.png").write_bytes(png(30_000, 30_000, 3))
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(folder / "noise.png")
    (folder / "a.jpg").symlink_to("b.jpg")
    (folder / "b.jpg").symlink_to("a.jpg")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    face = Image.open(astronaut).convert("RGB")
    face.save(folder / "animation.gif", save_all=True, append_images=[Image.new("RGB", face.size)] * 3)
    two = Image.new("RGB", (2 * face.width, face.height))
    two.paste(face, (0, 0))
    two.paste(face, (face.width, 0))
    two.save(folder / "two.jpg")
    (folder / "notes.txt").write_text("no photograph: not listed")
    (folder / ".hidden.png").write_text("nor this")
    expected |= {"zero.jpg": "unreadable", "truncated.jpg": "unreadable", "text.png": "unreadable", "bomb.png": "too large"}
    expected |= {"liar.png": "too large", "one.png": "no face", "noise.png": "no face", "a.jpg": "unreadable", "b.jpg": "unreadable"}
    expected |= {"dangling.png": "unreadable", "sub/up": "unreadable", "folder.png": "unreadable", "pipe.jpg": "unreadable"}
    return folder, expected | {"animation.gif": "face", "two.jpg": "several faces"}


def outcome(faces: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted([(row["path"], "face") for row in faces] + [(row["path"], row["reason"]) for row in rejects])


def spelled(name: str) -> str:
    return name.replace("\udce9", "\\udce9")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_hostile_file_is_one_face_or_one_reject(hostile: tuple[Path, dict[str, str]], workers: int) -> None:
    folder, expected = hostile
    faces, rejects = align_rows(scan(folder), folder, "hostile", 64, Data(max_outside=1.0), workers)
    assert outcome(faces, rejects) == sorted((spelled(name), what) for name, what in expected.items())
    assert all(row["detail"] and "\n" not in row["detail"] for row in rejects)
    assert len({row["face_id"] for row in faces}) == len(faces)
    json.dumps([row["path"] for row in faces], ensure_ascii=False).encode("utf-8")  # what Parquet needs


def test_faces_names_every_hostile_file_in_little_memory(hostile: tuple[Path, dict[str, str]]) -> None:
    folder, expected = hostile
    command = [sys.executable, "-m", "pipelines.cli", "faces", str(folder), "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    answer = json.loads(ran.stdout.decode("utf-8"))  # one value, or this fails
    wanted = sorted((spelled(f"{folder}/{name}"), what) for name, what in expected.items())
    assert outcome(answer["faces"], answer["rejects"]) == wanted
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the largest process; the bomb alone would be 2.7e9
    assert peak < 1.5e9


def test_faces_in_words_is_one_line_a_photograph(hostile: tuple[Path, dict[str, str]]) -> None:
    folder, expected = hostile
    names = [str(folder / name) for name in ("new\nline.png", LATIN, "zero.jpg")]
    ran = subprocess.run([sys.executable, "-m", "pipelines.cli", "faces", *names], cwd=ROOT, capture_output=True, timeout=120)
    lines = ran.stdout.decode("utf-8").splitlines()
    assert len(lines) == 4 and lines[-1] == "2 faces, 1 rejected"
    assert lines[0].startswith(f"{folder}/new\\nline.png: face at")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file, whatever its mode")
def test_a_file_without_permission_is_a_reject(tmp_path: Path, tom_hanks: Path) -> None:
    shutil.copy(tom_hanks, tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    faces, (reject,) = align_rows(scan(tmp_path), tmp_path, "d", 64, Data())
    assert not faces and (reject["reason"], reject["detail"]) == ("unreadable", "permission denied")


def test_a_folder_without_permission_is_named(tmp_path: Path, tom_hanks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(tom_hanks, tmp_path / "open.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [row["path"] for row in scan(tmp_path)] == ["closed", "open.png"]


# --- workers that die -------------------------------------------------------------------------------------------------


class Deadly:
    """Ends the process that unpickles it, as a decoder that crashes would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_pictures_that_kill_their_worker_are_rejected_alone(tmp_path: Path, tom_hanks: Path) -> None:
    for i in range(45):
        (tmp_path / f"{i:02d}.png").touch()
    for i in (0, 30, 44):
        shutil.copy(tom_hanks, tmp_path / f"{i:02d}.png")
    rows: list[dict[str, Any]] = scan(tmp_path)
    for i in (3, 40):
        rows[i]["payload"] = Deadly()
    told: list[int] = []
    faces, rejects = align_rows(rows, tmp_path, "d", 64, Data(max_outside=1.0), 2, lambda done, _: told.append(done))
    assert [row["path"] for row in faces] == ["00.png", "30.png", "44.png"]
    assert [row["path"] for row in rejects] == [f"{i:02d}.png" for i in range(45) if i not in (0, 30, 44)]
    assert [row["path"] for row in rejects if row["detail"] == "its decoder crashed"] == ["03.png", "40.png"]
    assert told == list(range(1, 46))


def test_tools_that_crash_by_themselves_are_an_error_and_no_picture_is_blamed(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02d}.png").touch()
    deadly: Any = Deadly()
    with pytest.raises(InputError, match=r"crash on any picture: run `diffsfsr weights check` of .*shape_predictor_68"):
        align_rows(scan(tmp_path), tmp_path, "d", 64, Data(detector=deadly), 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_detector_is_one_error_not_many_rejects(tmp_path: Path, tom_hanks: Path, weights_dir: Path, workers: int) -> None:
    """By bytes that end the process in OpenCV's importer: on one core that is the caller's own."""
    name = weights.entry("yunet").file
    content, rng = bytearray((weights_dir / name).read_bytes()), np.random.default_rng(0)
    for i in rng.integers(0, len(content), 20):
        content[i] = rng.integers(256)
    (tmp_path / name).write_bytes(content)
    crash = [sys.executable, "-c", "import cv2, sys; cv2.FaceDetectorYN.create(sys.argv[1], '', (64, 64))", str(tmp_path / name)]
    assert subprocess.run(crash, capture_output=True, timeout=60).returncode < 0
    for i in range(10):
        shutil.copy(tom_hanks, tmp_path / f"{i}.png")
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom diffsfsr.config import Data\nfrom diffsfsr.errors import InputError\n"
        "from diffsfsr.face.collection import align_rows, scan\n"
        f"root = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        print(align_rows(scan(root), root, 'd', 64, Data(detector='yunet'), {workers}))\n"
        "    except InputError as error:\n"
        "        print(f'InputError: {error}')\n"
    )
    environment = {**os.environ, "DIFFSFSR_WEIGHTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"InputError: {tmp_path / name} is damaged") and ran.stdout.count("\n") == 1


@pytest.mark.parametrize("ignored", ["SIGINT", "SIGTERM"])
def test_a_crew_outlives_a_worker_whatever_its_parent_ignores(ignored: str) -> None:
    """A shell's `&` lets a job ignore SIGINT, and Dagster does with SIGTERM what is done with SIGINT."""
    sleep, die = "__import__('time').sleep(0.1)", "__import__('os').kill(__import__('os').getpid(), 9)"
    tasks, ask = ["1"] * 9 + [die] + [sleep] * 20, "__import__('signal').getsignal(__import__('signal').SIGTERM).name"
    code = (
        f"import signal; signal.signal(signal.{ignored}, signal.SIG_IGN)\nfrom diffsfsr.face.crew import Crew\n"
        f"with Crew(2) as crew:\n    print(list(crew.map(eval, {tasks}, lambda task: 'crashed')))\n"
        f"    print(set(crew.map(eval, {[ask] * 20}, str)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    assert ran.stdout.decode().splitlines() == [str([1] * 9 + ["crashed"] + [None] * 20), "{'SIG_DFL'}"], ran.stderr.decode()


def test_closing_a_crew_waits_for_no_work_in_hand() -> None:
    crew = Crew(2)
    slow = ["1"] * 8 + ["__import__('time').sleep(60)"] * 40
    results = crew.map(eval, slow, str)
    assert next(results) == 1
    started = time.monotonic()
    crew.close()
    assert time.monotonic() - started < 10


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path, tom_hanks: Path) -> None:
    for i in range(40):
        shutil.copy(tom_hanks, tmp_path / f"{i:02d}.png")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom diffsfsr.config import Data\n"
        "from diffsfsr.face.collection import align_rows, scan\n"
        f"root = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    align_rows(scan(root), root, 'd', 64, Data(), 2, lambda done, _: done == 3 and os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    mark = {"COLLECTION_TEST": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, str(script)], env={**os.environ, **mark}, capture_output=True, timeout=60)
    assert ran.returncode == -9, ran.stderr.decode()

    def left() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"COLLECTION_TEST={tmp_path}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
        return found

    end = time.monotonic() + 20
    while left() and time.monotonic() < end:
        time.sleep(0.1)
    assert left() == []


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


PROCESS = "__import__('os').getpid()"


def test_a_crew_is_kept_until_it_is_closed_and_survives_a_crash() -> None:
    with Crew(2) as crew:
        # the second may begin when the first has done a whole list: the lists together show both
        before = {process for tasks in (40, 40, 2, 40, 2) for process in crew.map(eval, [PROCESS] * tasks, str)}
        assert 1 <= len(before) <= 2 and os.getpid() not in before  # a handful goes to them too, once they are there
        deadly = ["7", "__import__('os')._exit(1)", "8", *["9"] * 30]
        assert list(crew.map(eval, deadly, lambda task: f"crashed: {task}")) == [7, "crashed: " + deadly[1], 8, *[9] * 30]
        after = set(crew.map(eval, [PROCESS] * 40, str))
        assert after and not after & before
    assert not any(map(alive, before | after))
    assert set(Crew(1).map(eval, [PROCESS] * 40, str)) == {os.getpid()}


def test_closing_a_crew_ends_who_waits_for_it() -> None:
    crew, said = Crew(2), list[Any]()

    def work() -> None:
        try:
            said.extend(crew.map(eval, ["__import__('time').sleep(0.02)"] * 2000, str))
        except CancelledError:
            said.append("cancelled")

    thread = threading.Thread(target=work)
    thread.start()
    while not said and crew._pool is None:
        time.sleep(0.01)
    processes = list(crew._pool._processes) if crew._pool else []
    crew.close()
    thread.join(20)
    assert not thread.is_alive() and said[-1] == "cancelled" and len(said) < 1000
    assert not any(map(alive, processes))
    with pytest.raises(CancelledError):
        next(crew.map(eval, ["1"] * 40, str))


def test_a_worker_without_torch_makes_the_same_faces(tmp_path: Path, six_people: Path, tom_hanks: Path) -> None:
    for i in range(5):
        shutil.copy(tom_hanks, tmp_path / f"hanks {i}.png")
    shutil.copy(six_people, tmp_path / "six.jpg")
    (tmp_path / "labels.csv").write_text("file,face\n" + "".join(f"six.jpg,{i}\n" for i in range(6)))
    rows, data = scan(tmp_path), Data(max_outside=1.0)
    with Crew(2) as crew:
        made = align_rows(rows, tmp_path, "d", 64, data, crew)
        modules = set(crew.map(eval, ["'torch' in __import__('sys').modules"] * 30, str))
    assert len(made[0]) == 11 and made == align_rows(rows, tmp_path, "d", 64, data)
    assert modules == {False}


def test_a_worker_is_one_core_of_many() -> None:
    task = "__import__('diffsfsr.cores').cores.cores(), __import__('cv2').getNumThreads()"
    code = f"from diffsfsr.face.crew import Crew\nwith Crew(2) as crew: print(set(crew.map(eval, [{task!r}] * 20, str)))"
    environment = {**os.environ, "DIFFSFSR_CORES": "7", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert ran.stdout.decode().strip() == "{(1, 1)}", ran.stderr.decode()


def test_a_face_is_named_by_how_it_was_aligned(tmp_path: Path, tom_hanks: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are kept by face_id: those of one crop must not be taken for another's."""
    shutil.copy(tom_hanks, tmp_path / "hanks.png")

    def named(**settings: Any) -> str:
        ((face,), _) = align_rows(scan(tmp_path), tmp_path, "d", 64, Data(max_outside=1.0, **settings))
        return face["face_id"]

    first = named()
    assert named() == named(min_face=30) == first != named(detector="yunet")
    monkeypatch.setattr(collection, "VERSION", 99)
    assert named() != first


# --- who is who -------------------------------------------------------------------------------------------------------


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_names_the_person(tmp_path: Path) -> None:
    rows = scan(tree(tmp_path, "Ada_L/1.jpg", "Ada_L/2.JPG", "more/Bo K/1.webp", "alone.png"))
    assert [(row["path"], row["person"]) for row in rows] == [
        ("Ada_L/1.jpg", "Ada_L"),
        ("Ada_L/2.JPG", "Ada_L"),
        ("alone.png", "alone"),
        ("more/Bo K/1.webp", "Bo K"),
    ]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(row["path"].encode()).hexdigest() for row in rows]


def test_a_split_holds_whole_people_and_does_not_move() -> None:
    people = [f"person {i}" for i in range(2000)]
    test = {p for p in people if split_of(p, 0.1) == "test"}
    assert 140 < len(test) < 260  # 200 expected; the binomial's standard deviation is 13
    assert test <= {p for p in people if split_of(p, 0.2) == "test"}  # a larger share only adds people
    assert (split_of("person 0", 0.0), split_of("person 0", 1.0)) == ("train", "test")


def test_labels_name_people_emotions_faces_and_splits(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "sub/b.jpg", "c.jpg")
    lines = ["file,person,emotion,face,split,remark", "a.jpg,Zoë,joy,,test,x", "./sub/b.jpg, Left ,,00,,", "sub/b.jpg,Right,anger,1,train,"]
    lines += ["sub/b.jpg,Right,anger,1,train,said twice", "elsewhere.jpg,Nobody,,,,"]
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = scan(tmp_path)
    assert [(r["path"], r["person"], r["emotion"], r["face"]) for r in rows] == [
        ("a.jpg", "Zoë", "joy", ""),
        ("c.jpg", "c", "", ""),
        ("sub/b.jpg", "Left", "", "0"),
        ("sub/b.jpg", "Right", "anger", "1"),
    ]
    assert rows[0]["split"] == "test" and rows[3]["split"] == "train" and rows[1]["split"] == split_of("c", 0.1)
    assert collection.unknown_files(tmp_path, rows) == ["elsewhere.jpg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"name,emotion\na.jpg,joy\n", "no column 'file'"),
        (b"", "no column 'file'"),
        ("file,person\na.jpg,Zoë\n".encode("latin-1"), "UTF-8"),
        ("file,person\na.jpg,Zoë\n".encode("utf-16"), "UTF-8"),
        (b"file,split\na.jpg,tset\n", "did you mean test"),
        (b"file,emotion,emotion\na.jpg,joy,anger\n", "the column 'emotion' twice"),
        (b'file,person\na.jpg,"Ann\nb.jpg,Bob\n', "cannot be read as CSV"),
        (b"file,face\na.jpg,left\n", "line 2: face 'left'"),
        (b"file,face\na.jpg,-1\n", "line 2: face '-1'"),
        (b"file,person,face\na.jpg,A,\na.jpg,B,\n", "line 3"),
        (b"file,person,face\na.jpg,A,0\na.jpg,B,\n", "line 3"),
        (b"file,person,face\na.jpg,A,0\na.jpg,B,1\na.jpg,C,01\n", "line 4: another line says otherwise of face 1"),
    ],
)
def test_unusable_labels_are_refused_in_one_line(tmp_path: Path, text: bytes, told: str) -> None:
    tree(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(InputError) as raised:
        scan(tmp_path)
    assert told in str(raised.value) and "labels.csv" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_labels_that_are_no_file_are_refused(tmp_path: Path, kind: str) -> None:
    tree(tmp_path, "a.jpg")
    labels = tmp_path / "labels.csv"
    {"pipe": lambda: os.mkfifo(labels), "loop": lambda: labels.symlink_to(labels), "folder": labels.mkdir}[kind]()
    with pytest.raises(InputError, match="labels.csv is no file that can be read"):
        scan(tmp_path)


def test_spaces_in_the_head_of_labels_do_not_count(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_text("file , person, emotion\na.jpg, Ann, joy\n")
    assert [(row["person"], row["emotion"]) for row in scan(tmp_path)] == [("Ann", "joy")]


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="photograph"):
            scan(folder)


def test_six_faces_of_one_photograph(tmp_path: Path, six_people: Path) -> None:
    shutil.copy(six_people, tmp_path / "six.jpg")
    (tmp_path / "labels.csv").write_text("file,person,face\n" + "".join(f"six.jpg,p{i},{i}\n" for i in [5, 4, 3, 2, 1, 0, 6]))
    faces, rejects = align_rows(scan(tmp_path), tmp_path, "d", 64, Data(max_outside=1.0))
    assert sorted((row["person"], row["face_index"]) for row in faces) == [(f"p{i}", i) for i in range(6)]
    lefts = [row["box"][0] for row in sorted(faces, key=lambda row: row["person"])]
    assert lefts == sorted(lefts)
    assert [(row["face"], row["reason"]) for row in rejects] == [("6", "no face")]


def test_only_changed_files_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(tree(tmp_path, "a.jpg", "b.jpg"))
    (tmp_path / "b.jpg").write_bytes(b"another")
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    second = scan(tmp_path, first)
    assert hashed == ["b.jpg"]
    assert second[0] == first[0] and second[1]["sha256"] == hashlib.sha256(b"another").hexdigest()
