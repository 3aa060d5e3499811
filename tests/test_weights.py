"""The zoo, against a web server of our own that can cut, stall, lie and redirect; archives; records; what presets need."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graphs import model, saved
from onnx import helper

from diffsfsr import config, presets, weights
from diffsfsr.errors import InputError, NotReady
from diffsfsr.weights import download, pulling
from pipelines import cli

BODY = bytes(range(256)) * 40_000
SHA256 = hashlib.sha256(BODY).hexdigest()
ROOT = Path(__file__).resolve().parents[1]


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` at every path with Range and If-Range.

    `cut`: bytes into the next reply the connection breaks; `stall`: bytes into each reply it falls silent; `drip`: one byte a
    tenth of a second from there on; `redirect`: where to send everybody; `length`: what it says of the body's size, None nothing;
    `kind`: the content's type.
    """

    daemon_threads = True
    body, etag, cut, status, stall, drip, redirect = BODY, '"one"', 0, 0, 0, False, ""
    kind = ""
    length: int | None = -1

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that leave early are the point of some tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s = self.server
        s.asked.append((self.path, self.headers.get("Range")))
        if s.status:
            return self.send_error(s.status)
        if s.redirect:
            self.send_response(302)
            self.send_header("Location", s.redirect)
            return self.end_headers()
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and self.headers.get("If-Range", s.etag) == s.etag else 0
        if start and start >= len(s.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(s.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if s.kind:
            self.send_header("Content-Type", s.kind)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        if s.length is not None:
            self.send_header("Content-Length", str(len(s.body) - start if s.length < 0 else s.length))
        self.send_header("ETag", s.etag)
        self.end_headers()
        self._send(s.body[start : s.cut or s.stall or None])
        s.cut = 0
        while s.stall and not s.over.wait(0.1):
            if s.drip:
                self._send(s.body[s.stall : s.stall + 1])

    def _send(self, block: bytes) -> None:
        for i in range(0, len(block), 1 << 16):
            self.wfile.write(block[i : i + (1 << 16)])
            self.server.sent += len(block[i : i + (1 << 16)])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield s
        s.over.set()
        s.shutdown()
        thread.join()


Adder = Callable[..., weights.Entry]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Adder:
    """Puts an entry into the zoo: by default a pinned file named `net` that lies in a subfolder of its mirror."""
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)

    def add(name: str = "net", **changes: object) -> weights.Entry:
        e = weights.Entry(name, "a role", f"folder/{name}.bin", "github:a/b@c d", "MIT", True, SHA256, len(BODY))
        e = dataclasses.replace(e, **changes)  # type: ignore[arg-type]
        monkeypatch.setitem(weights.ZOO, name, e)
        return e

    return add


@pytest.fixture
def entry(add: Adder) -> weights.Entry:
    return add()


def left(tmp: Path) -> list[str]:
    """Names of the files in the weights folder, but for locks."""
    home = tmp / "diffsfsr-home/weights"
    return sorted(p.name for p in home.rglob("*") if p.is_file() and p.parent.name != ".locks")


def state(name: str) -> str:
    return next(s.state for s in weights.check() if s.name == name)


# --- the table --------------------------------------------------------------------------------------------------------


def test_dlib_files_are_found_in_their_package_and_are_the_right_ones() -> None:
    for name in ("dlib-face", "dlib-landmarks-68"):
        assert weights.file_sha256(weights.resolve(name)) == weights.ZOO[name].sha256
    assert not weights.ZOO["dlib-landmarks-68"].commercial and "300-W" in weights.ZOO["dlib-landmarks-68"].note


def test_the_table_agrees_with_the_weights_folder(weights_dir: Path) -> None:
    manifest = {line.split()[1]: line.split()[0] for line in (weights_dir / "MANIFEST.sha256").read_text().splitlines()}
    here = {e.file: e for e in weights.ZOO.values() if e.file in manifest}
    assert set(here) == {f for f in manifest if f.endswith(".onnx")}
    for file, e in here.items():
        assert e.sha256 == manifest[file] and e.size == (weights_dir / file).stat().st_size
        assert weights.resolve(e.name).samefile(weights_dir / file)
    states = {s.name: s.state for s in weights.check()}
    assert states["reid0095"] == states["dlib-face"] == "ok"


def test_every_row_is_whole() -> None:
    rows = weights.ZOO.values()
    assert len({e.file for e in rows}) == len(rows)
    for e in rows:
        assert e.role and e.licence and e.source and not Path(e.file).is_absolute() and ".." not in Path(e.file).parts
        assert e.sha256 is None or re.fullmatch("[0-9a-f]{64}", e.sha256)
        assert e.address is None or e.address.startswith("https://")
        assert "huggingface.co" not in e.source or re.search("/resolve/[0-9a-f]{40}/", e.source)  # a branch may move
        assert all(Path(weights.ZOO[other].file).parent == Path(e.file).parent for other in e.beside)
        assert e.commercial or e.note or e.group  # says why not
        assert e.convention or e.file.endswith((".json", ".txt"))
    assert {n for n in weights.GROUPS["sd-1.4"] if weights.ZOO[n].beside} == {"sd-1.4-unet", "sd-1.4-vae", "sd-1.4-text-encoder"}
    assert weights.GROUPS["sd-1.4"][-1] == "sd-1.4-index"  # a folder counts as whole once it is there


def test_every_encoder_has_its_files_in_the_zoo() -> None:
    from diffsfsr.encoders import ENCODERS

    assert weights.files_of("dlib") == ("dlib-face",) and weights.files_of("blendshapes") == ("facemesh", "blendshapes")
    for name in ENCODERS:
        assert weights.files_of(name) and all(weights.ZOO[file].convention for file in weights.files_of(name))


def test_the_conventions_are_those_of_the_recipes() -> None:
    """What the table says in words is what the recognisers do."""
    from diffsfsr.encoders.recogniser import RECIPES

    for name, recipe in RECIPES.items():
        e = weights.ZOO[name]
        assert e.alignment == recipe.template and f"embedding (B,{recipe.dim})" in e.convention
        assert f"(B,3,{recipe.size[0]},{recipe.size[1]}) {'BGR' if recipe.bgr else 'RGB'}" in e.convention
        assert ("0..255" if recipe.scale == 1 else f"(x - {recipe.shift:g}) / {recipe.scale:g}") in e.convention


# --- found or not -----------------------------------------------------------------------------------------------------


def test_missing_wrong_and_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: weights.Entry) -> None:
    with pytest.raises(NotReady, match="folder/net.bin .* is not on this machine: run `diffsfsr weights pull net"):
        weights.resolve("net")
    with pytest.raises(InputError, match="did you mean dlib-face"):
        weights.resolve("dlib-fac")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/net.bin").write_bytes(BODY[:-1])
    with pytest.raises(InputError, match=f"{len(BODY) - 1} bytes where net has {len(BODY)}"):
        weights.resolve("net")
    (tmp_path / "folder/net.bin").write_bytes(BODY[:-1] + b"x")
    assert weights.find("net") == tmp_path / "folder/net.bin"
    assert state("net") == "wrong"
    with pytest.raises(InputError, match=r"net.bin is not the net it should be, and is found first: remove"):
        weights.pull("net", mirror="http://127.0.0.1:9")


def test_a_missing_file_names_the_command_that_brings_it(add: Adder) -> None:
    add(licence="CC-BY-NC-4.0", commercial=False)
    add("here", source="https://example.org/net.bin")
    for name, command in (("net", "weights pull net --mirror ADDRESS --accept-licence"), ("here", "weights pull here` or put")):
        with pytest.raises(NotReady) as missing:
            weights.resolve(name)
        assert command in str(missing.value) and "\n" not in str(missing.value)


def test_what_must_lie_beside_a_file_belongs_to_it(server: Server, add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("config")
    add("net", beside=("config",))
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path / "given"))
    (tmp_path / "given/folder").mkdir(parents=True)
    (tmp_path / "given/folder/net.bin").write_bytes(BODY)
    assert weights.find("net") is None  # it could not be loaded
    path = weights.pull("net", mirror=server.url)
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.bin", "net.bin"] and weights.resolve("net") == path
    (tmp_path / "given/folder/config.bin").write_bytes(BODY)
    assert weights.resolve("net") == tmp_path / "given/folder/net.bin"


# --- pulling ----------------------------------------------------------------------------------------------------------


def test_pull_continues_after_a_cut_connection(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.cut = 3_000_000
    with pytest.raises(NotReady, match="pull again to continue"):
        weights.pull("net", mirror=server.url)
    assert left(tmp_path) == ["net.bin.part", "net.bin.part.etag"] and weights.find("net") is None
    path = weights.pull("net", mirror=server.url + "/")
    assert path.read_bytes() == BODY and left(tmp_path) == ["net.bin"]
    assert server.asked == [("/folder/net.bin", None), ("/folder/net.bin", "bytes=3000000-")]
    assert weights.pull("net", mirror=server.url) == path and len(server.asked) == 2


def test_pull_starts_again_when_the_file_changed_meanwhile(server: Server, entry: weights.Entry) -> None:
    server.body, server.etag, server.cut = BODY[::-1], '"old"', 3_000_000
    with pytest.raises(NotReady):
        weights.pull("net", mirror=server.url)
    server.body, server.etag = BODY, '"new"'
    assert weights.pull("net", mirror=server.url).read_bytes() == BODY


def test_a_part_that_was_already_whole(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    part = tmp_path / "diffsfsr-home/weights/folder/net.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    part.with_name("net.bin.part.etag").write_text(server.etag)
    assert weights.pull("net", mirror=server.url).read_bytes() == BODY and left(tmp_path) == ["net.bin"]


def test_a_bad_hash_leaves_nothing(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"x"
    with pytest.raises(InputError, match="nothing was kept"):
        weights.pull("net", mirror=server.url)
    assert left(tmp_path) == []


PULL = f"""
import dataclasses
from diffsfsr import weights
weights.ZOO["net"] = weights.Entry("net", "a role", "folder/net.bin", "x", "MIT", True, "{SHA256}", {len(BODY)})
weights.pull("net")
"""


def pulling_process(server: Server) -> subprocess.Popen[str]:
    environment = {**os.environ, "DIFFSFSR_WEIGHTS_MIRROR": server.url}
    return subprocess.Popen([sys.executable, "-c", PULL], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_pull_that_is_killed_is_continued(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.stall = 3_000_000
    process, part = pulling_process(server), tmp_path / "diffsfsr-home/weights/folder/net.bin.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 1_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert left(tmp_path) == ["net.bin.part", "net.bin.part.etag"] and weights.find("net") is None
    have, server.stall = part.stat().st_size, 0
    assert have > 1_000_000 and weights.pull("net", mirror=server.url).read_bytes() == BODY
    assert server.asked[-1] == ("/folder/net.bin", f"bytes={have}-") and left(tmp_path) == ["net.bin"]


def test_pulls_at_the_same_time_bring_one_file_once(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    processes = [pulling_process(server) for _ in range(3)]
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert len(server.asked) == 1 and left(tmp_path) == ["net.bin"] and state("net") == "ok"


def test_several_are_refused_before_the_first_byte(server: Server, add: Adder, tmp_path: Path) -> None:
    add("free", source=f"{server.url}/free")
    add("bound", commercial=False, licence="CC-BY-NC-4.0", source=f"{server.url}/bound")
    add("nowhere")
    with pytest.raises(InputError, match=r"bound: CC-BY-NC-4.0; say --accept-licence"):
        weights.pull_all(["free", "bound"])
    with pytest.raises(NotReady, match="nowhere has no public address"):
        weights.pull_all(["free", "nowhere"])
    assert server.asked == [] and left(tmp_path) == []
    assert list(weights.pull_all(["free", "bound", "free"], accept_licence=True)) == ["free", "bound"]
    assert [path for path, _ in server.asked] == ["/free", "/bound"]


def test_pull_refuses(server: Server, entry: weights.Entry) -> None:
    with pytest.raises(NotReady, match="no public address"):
        weights.pull("net")
    with pytest.raises(InputError, match="not an http"):
        weights.pull("net", mirror="file:///etc")
    server.status = 404
    with pytest.raises(NotReady, match="answered 404"):
        weights.pull("net", mirror=server.url)
    with pytest.raises(NotReady, match="cannot be reached"):
        weights.pull("net", mirror="http://127.0.0.1:9")


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_an_unpinned_entry_is_pinned_by_its_first_pull(server: Server, add: Adder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    e = add(sha256=None, size=None)
    monkeypatch.setenv("DIFFSFSR_WEIGHTS_MIRROR", server.url)
    assert weights.pinned(e) is None
    path = weights.pull("net")
    lock = json.loads((tmp_path / "diffsfsr-home/weights/lock.json").read_text())
    assert lock["net"] == {"sha256": SHA256, "size": len(BODY), "url": f"{server.url}/folder/net.bin"}
    assert state("net") == "ok" and weights.pinned(e) == SHA256
    path.write_bytes(BODY[1:])
    assert state("net") == "wrong"
    server.body = BODY[1:]
    with pytest.raises(InputError, match="nothing was kept.*take 'net' out of .*lock.json and pull again"):
        weights.pull("net")
    server.body = BODY
    assert weights.pull("net").read_bytes() == BODY  # a wrong file in our own folder is replaced


def test_an_unpinned_file_put_there_by_hand_is_called_so(add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(sha256=None, size=None)
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/net.bin").write_bytes(b"anything")
    assert state("net") == "unpinned"


def test_a_licence_is_asked_for_once_and_again_when_it_changes(server: Server, add: Adder, tmp_path: Path) -> None:
    e = add(commercial=False, licence="CC-BY-NC-4.0", note="for science")
    with pytest.raises(InputError, match=r"CC-BY-NC-4.0 \(for science\)"):
        weights.pull("net", mirror=server.url)
    assert server.asked == [] and weights.accepted() == {}
    weights.pull("net", mirror=server.url, accept_licence=True).unlink()
    record = json.loads((tmp_path / "diffsfsr-home/weights/licences.json").read_text())["net"]
    assert record["licence"] == "CC-BY-NC-4.0" and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["accepted"])
    weights.pull("net", mirror=server.url).unlink()
    assert weights.accepted() == {"net": record}
    add(commercial=False, licence="CC-BY-NC-ND-4.0", note=e.note)
    assert weights.accepted() == {}
    with pytest.raises(InputError, match="CC-BY-NC-ND-4.0"):
        weights.pull("net", mirror=server.url)


def test_what_is_found_needs_no_licence(add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(commercial=False)
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/net.bin").write_bytes(BODY)
    assert weights.pull("net") == weights.resolve("net") == tmp_path / "folder/net.bin"


def test_a_first_pull_that_was_wrong_is_undone_as_it_says(
    server: Server, add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = add(sha256=None, size=None)
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    server.body = BODY[1:]
    weights.pull("net", server.url).unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / e.file).write_bytes(BODY)
    with pytest.raises(InputError, match=f"{tmp_path / e.file} is not the net it should be.*take 'net' out of"):
        weights.pull("net", server.url)
    lock = tmp_path / "diffsfsr-home/weights/lock.json"
    assert f"take 'net' out of {lock}" in next(s.detail for s in weights.check() if s.name == "net")
    lock.write_text(json.dumps({name: record for name, record in json.loads(lock.read_text()).items() if name != "net"}))
    assert weights.pull("net", server.url) == tmp_path / e.file


def safetensors(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


PAGE = b"\n<!DOCTYPE html><title>Log in</title>"
TENSORS = safetensors({"__metadata__": {}, "w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"four")
UNLIKELY = {  # the file's name -> what it is not, and why
    "net.txt": [(b"", "is empty"), (PAGE, "is a web page")],
    "net.json": [(PAGE, "is a web page"), (b"Log in", "is not JSON"), (b"[" * 10**5, "nested too deeply")],
    "net.safetensors": [
        (PAGE, "is a web page"),
        (b"Not found", "its header has no end"),
        (TENSORS[:-1], "cut off"),
        (safetensors([1], b""), "no table"),
    ],
    "net.onnx": [(b"Not found", "not an ONNX file")],
    "net.pt": [(b"Not found", "neither an archive nor a pickle"), (b"PK\3\4", "does not open as .pt"), (b"EMPTY", "archive of something")],
    "net.pkl": [(b"Not found", "neither an archive nor a pickle")],
}


@pytest.mark.parametrize(
    ("file", "content", "why"), [(f, *case) for f, cases in UNLIKELY.items() for case in cases], ids=lambda v: str(v)[:20]
)
def test_what_cannot_be_the_file_is_never_pinned(server: Server, add: Adder, tmp_path: Path, file: str, content: bytes, why: str) -> None:
    add(sha256=None, size=None, file=file)
    server.body = packed({"readme": b"hello"}) if content == b"EMPTY" else content
    with pytest.raises(InputError, match=f"{file} .*{why}.*: nothing was kept"):
        weights.pull("net", server.url)
    assert left(tmp_path) == []


def test_what_can_be_the_file_is_pinned(server: Server, add: Adder, tmp_path: Path) -> None:
    import torch

    for new in (True, False):
        torch.save({"w": torch.ones(3)}, tmp_path / f"{new}.pt", _use_new_zipfile_serialization=new)
    onnx = saved(tmp_path / "net.onnx", model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]})).read_bytes()
    sound = {
        "net.json": [b'{"a": 1}'],
        "net.safetensors": [TENSORS],
        "net.onnx": [onnx],
        "net.pt": [(tmp_path / f"{new}.pt").read_bytes() for new in (True, False)],
        "net.txt": [b"#version: 0.2"],
    }
    for i, (file, content) in enumerate((f, c) for f, contents in sound.items() for c in contents):
        add(f"net{i}", sha256=None, size=None, file=f"{i}/{file}")
        server.body = content
        assert weights.pull(f"net{i}", server.url).read_bytes() == content


def test_a_web_page_leaves_what_had_come_of_the_file(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.cut = 1_000_000
    with pytest.raises(NotReady, match="broke off"):
        weights.pull("net", server.url)
    before = left(tmp_path)
    server.cut, server.kind, server.etag = 0, "text/html; charset=utf-8", '"page"'
    with pytest.raises(NotReady, match="answered with a web page"):
        weights.pull("net", server.url)
    assert left(tmp_path) == before == ["net.bin.part", "net.bin.part.etag"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"net": 3}', "[" * 10**5, None])
@pytest.mark.parametrize("file", ["lock.json", "licences.json"])
def test_a_damaged_record_is_named(server: Server, tmp_path: Path, content: str | None, file: str, add: Adder) -> None:
    add(sha256=None, commercial=False)
    record = tmp_path / "diffsfsr-home/weights" / file
    record.parent.mkdir(parents=True)
    record.mkdir() if content is None else record.write_text(content)
    with pytest.raises(InputError, match=f"{record} .*delete it"):
        weights.pull("net", mirror=server.url, accept_licence=True)
    assert server.asked == []
    add(sha256=SHA256)
    if file == "licences.json":  # nobody asks for a licence
        assert weights.pull("net", mirror=server.url).is_file()


def test_a_record_that_is_a_pipe_is_not_waited_on(add: Adder, tmp_path: Path) -> None:
    e = add(sha256=None)
    lock = tmp_path / "diffsfsr-home/weights/lock.json"
    lock.parent.mkdir(parents=True)
    os.mkfifo(lock)
    with pytest.raises(InputError, match="lock.json is not a file: delete it"):
        weights.pinned(e)


# --- archives ---------------------------------------------------------------------------------------------------------


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return file.getvalue()


def test_members_of_an_archive_come_in_one_download(server: Server, add: Adder, tmp_path: Path) -> None:
    add("one", source=f"{server.url}/pack.zip!one.bin")
    add("two", source=f"{server.url}/pack.zip!two.bin", sha256=hashlib.sha256(b"two").hexdigest(), size=3)
    server.body = packed({"other.bin": b"not asked for", "one.bin": BODY, "pack/two.bin": b"two"})
    found = weights.pull_all(["one", "two"])
    assert found["one"].read_bytes() == BODY and found["two"].read_bytes() == b"two"
    assert len(server.asked) == 1 and left(tmp_path) == ["one.bin", "two.bin"]


def test_a_mirror_serves_members_as_files(server: Server, add: Adder) -> None:
    add(source="https://example.org/pack.zip!net.bin")
    assert weights.pull("net", mirror=server.url).read_bytes() == BODY
    assert server.asked == [("/folder/net.bin", None)]


def test_an_archive_is_continued_too(server: Server, add: Adder, tmp_path: Path) -> None:
    add(source=f"{server.url}/pack.zip!net.bin")
    server.body, server.cut = packed({"net.bin": BODY}, zipfile.ZIP_STORED), 4_000_000
    with pytest.raises(NotReady, match="pull again to continue"):
        weights.pull("net")
    assert weights.pull("net").read_bytes() == BODY and left(tmp_path) == ["net.bin"]
    assert server.asked[1][1] == "bytes=4000000-"


def encrypted(archive: bytes) -> bytes:
    """The same archive with the flag of an encrypted member, in both headers."""
    changed = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(signature) + offset] |= 1
    return bytes(changed)


def understated(archive: bytes) -> bytes:
    """The same archive, whose directory says of its member that it has as many bytes as `net`."""
    changed = bytearray(archive)
    at = changed.index(b"PK\x01\x02") + 24
    changed[at : at + 4] = len(BODY).to_bytes(4, "little")
    return bytes(changed)


HOSTILE = {
    "not a zip": (BODY, "zip archive"),
    "truncated": (packed({"net.bin": BODY})[:-30], "zip archive"),
    "without the member": (packed({"other.bin": BODY}), "0 members"),
    "twice": (packed({"a/net.bin": BODY, "b/net.bin": BODY}), "2 members"),
    "a path out of it": (packed({"../../../net.bin": b"evil"}), "4 bytes where"),
    "an absolute path": (packed({"/tmp/net.bin": b"evil"}), "4 bytes where"),
    "a bomb": (packed({"net.bin": bytes(200_000_000)}), "200000000 bytes where"),
    "a bomb that lies": (understated(packed({"net.bin": bytes(200_000_000)})), "zip archive|sha256"),
    "encrypted": (encrypted(packed({"net.bin": BODY})), "encrypted"),
    "another file": (packed({"net.bin": BODY[::-1]}), "sha256"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(server: Server, add: Adder, tmp_path: Path, kind: str) -> None:
    add(source=f"{server.url}/pack.zip!net.bin")
    server.body, why = HOSTILE[kind]
    before = set(tmp_path.parent.rglob("*.bin"))
    with pytest.raises(InputError, match=why) as refused:
        weights.pull("net")
    assert "\n" not in str(refused.value) and left(tmp_path) == [] and set(tmp_path.parent.rglob("*.bin")) == before
    server.body = packed({"net.bin": BODY})
    assert weights.pull("net").read_bytes() == BODY  # nothing stuck


# --- hostile mirrors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://127.0.0.1/"])
def test_redirects_lead_to_the_web_only(server: Server, entry: weights.Entry, tmp_path: Path, target: str) -> None:
    server.redirect = target
    with pytest.raises((InputError, NotReady), match="[Rr]edirect"):
        weights.pull("net", mirror=server.url)
    assert left(tmp_path) == []


def test_redirects_do_not_lose_the_encryption() -> None:
    request = download.urllib.request.Request("https://example.org/a")
    handler = download._Redirects()
    with pytest.raises(InputError, match="redirects to"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/b")
    assert handler.redirect_request(request, None, 302, "", {}, "https://cdn.example.org/b").full_url == "https://cdn.example.org/b"


def test_a_redirect_on_the_web_is_followed(server: Server, entry: weights.Entry) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        server.redirect = f"{other.url}/elsewhere"
        assert weights.pull("net", mirror=server.url).read_bytes() == BODY
        assert other.asked == [("/elsewhere", None)]
        other.shutdown()


def test_a_size_that_cannot_be_right_is_refused_unread(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.body = BODY * 5
    with pytest.raises(InputError, match=f"has {5 * len(BODY)} bytes where {len(BODY)} are expected"):
        weights.pull("net", mirror=server.url)
    assert server.sent < 4 * len(BODY) and left(tmp_path) == []  # no more than what lay in socket buffers


def test_a_stream_without_end_is_cut(server: Server, entry: weights.Entry, tmp_path: Path) -> None:
    server.body, server.length = BODY * 5, None
    with pytest.raises(InputError, match="bytes where"):
        weights.pull("net", mirror=server.url)
    assert server.sent < 4 * len(BODY) and left(tmp_path) == []


@pytest.mark.parametrize("length", [-1, None])
def test_an_unknown_size_is_bounded_too(
    server: Server, add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    add(sha256=None, size=None)
    monkeypatch.setattr(pulling, "_MOST", 1_000_000)
    server.length = length
    with pytest.raises(InputError, match="larger than 1000000 bytes"):
        weights.pull("net", mirror=server.url)
    assert left(tmp_path) == []


def test_a_full_disk_is_foreseen(server: Server, entry: weights.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE", 1 << 60)
    with pytest.raises(NotReady, match="free some disk"):
        weights.pull("net", mirror=server.url)


@pytest.mark.parametrize("drip", [False, True])
def test_a_server_that_falls_silent_is_given_up(server: Server, entry: weights.Entry, monkeypatch: pytest.MonkeyPatch, drip: bool) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "WINDOW", 0.3)
    server.stall, server.drip = 2_000_000, drip
    started, end = time.monotonic(), threading.Timer(6, server.over.set)  # so that a failure is no endless wait
    end.start()
    with pytest.raises(NotReady, match="broke off .* pull again to continue"):
        weights.pull("net", mirror=server.url)
    end.cancel()
    assert time.monotonic() - started < 5
    server.stall = 0
    if not drip:  # what dripped was not the file's
        assert weights.pull("net", mirror=server.url).read_bytes() == BODY


# --- what presets need ------------------------------------------------------------------------------------------------


def changed(name: str, **changes: object) -> config.Preset:
    return config.override(presets.preset(name), {key.replace("__", "."): value for key, value in changes.items()})


def test_what_a_preset_needs() -> None:
    always = ("dlib-landmarks-68", "dlib-face")
    assert weights.used_by(presets.preset("tiny")) == always
    row = changed(
        "lab",
        data__detector="insightface",
        mask="segformer",
        conditioning__identity=["w600k_r50", "facenet"],
        dln__backbone="facenet",
        dln__triplets=["labels", "blendshapes"],
        evaluation__judge="glintr100",
        evaluation__pose="fsanet",
    )
    parser = ("segformer-face-parsing-config", "segformer-face-parsing-preprocessor", "segformer-face-parsing")
    named = ("dlib-landmarks-68", "scrfd-10g", "w600k_r50", "facenet", *parser, "facemesh", "blendshapes")
    assert weights.used_by(row) == (*named, "glintr100", "fsanet-1x1", "fsanet-var")
    assert weights.used_by(row, judged=False) == named
    both = changed("lab", conditioning__identity=["glintr100"], evaluation__judge="glintr100")
    assert "glintr100" in weights.used_by(both, judged=False)  # it judges, but it made the portrait too
    assert {"sd-1.4-unet", "sd-1.4-unet-config", "sd-1.4-vae"} <= set(weights.used_by(changed("paper", evaluation__judge="any")))
    assert all(weights.used_by(row) for row in presets.PRESETS.values())


def test_commercial_use_is_refused_with_setting_weight_and_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    weights.refuse_non_commercial(presets.preset("lab"))  # the switch is off
    row = changed("lab", commercial_only=True, conditioning__identity=["dlib", "w600k_r50"])
    with pytest.raises(InputError) as refused:
        weights.refuse_non_commercial(row)
    for told in ("commercial_only=true", "conditioning.identity=w600k_r50 needs w600k_r50 (non-commercial", "dlib-landmarks-68", "300-W"):
        assert told in str(refused.value)
    assert "dlib-face" not in str(refused.value)
    with pytest.raises(InputError, match="dlib-landmarks-68"):  # the most modest preset aligns by it
        weights.refuse_non_commercial(changed("tiny", commercial_only=True))
    weights.refuse_non_commercial(changed("tiny", commercial_only=True, data__landmarks="facemesh"))
    agreed = dataclasses.replace(weights.ZOO["dlib-landmarks-68"], commercial=True)
    monkeypatch.setitem(weights.ZOO, "dlib-landmarks-68", agreed)
    weights.refuse_non_commercial(changed("tiny", commercial_only=True))


def test_a_job_for_commercial_use_is_refused_before_anything_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "train", "--preset", "tiny", "--set", "commercial_only=true", "--dry-run"]) == 2
    assert "commercial_only=true, but alignment" in capfd.readouterr().err


def test_words_stand_for_files_groups_and_presets() -> None:
    assert weights.expand("reid0095") == ("reid0095",)
    assert weights.expand("buffalo_l") == ("w600k_r50", "scrfd-10g")
    assert weights.expand("paper") == weights.used_by(presets.preset("paper"))
    with pytest.raises(InputError, match="did you mean sd-1.4"):
        weights.expand("sd-1.5")


# --- the command ------------------------------------------------------------------------------------------------------


def test_list_says_all(capfd: pytest.CaptureFixture[str], add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(sha256=None, commercial=False)
    assert cli.main(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    fields = {field.name for field in dataclasses.fields(weights.Entry)} | {"found", "pinned"}
    assert rows.keys() == weights.ZOO.keys() and all(row.keys() == fields for row in rows.values())
    assert cli.main(["weights", "list"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("net "))
    assert line.split() == ["net", "a", "role", "MIT", "no", f"{len(BODY):,}", "unpinned", "missing"]


def test_check_fails_when_one_is_wrong(
    capfd: pytest.CaptureFixture[str], entry: weights.Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["weights", "check"]) == 0
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/net.bin").write_bytes(BODY[::-1])
    capfd.readouterr()
    assert cli.main(["weights", "check", "--json"]) == 1
    told = capfd.readouterr()
    assert {row["name"]: row["state"] for row in json.loads(told.out)}["net"] == "wrong" and "net; remove" in told.err


def test_one_file_that_cannot_be_read_is_named_among_the_others(
    capfd: pytest.CaptureFixture[str], add: Adder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("bad", file="bad.bin")
    add("good", file="good.bin")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "bad.bin").symlink_to("/proc/self/mem")  # a file whose first byte is an I/O error
    (tmp_path / "good.bin").write_bytes(BODY)
    assert cli.main(["weights", "check", "--json"]) == 1
    told = capfd.readouterr()
    rows = {row["name"]: row for row in json.loads(told.out)}
    assert rows["good"]["state"] == "ok" and rows["bad"]["state"] == "unreadable" and "Input/output error" in rows["bad"]["detail"]
    assert "cannot be read: bad;" in told.err
    add("bad", file="bad.bin", size=None)
    with pytest.raises(InputError, match="bad.bin cannot be read"):
        weights.pull("bad", "http://127.0.0.1:9")


MALFORMED = [
    "ftp://host", "http://", "https:///path", "http://[::1", "http://host:abc", "http://host:99999", "http://host:0", "http://a b/c",
    "http://h\u00e9st", "http://a..b", "http://user:secret@host", "http://host?key=1", "http://host#part", "http://host\n/x", "host:80",
]  # fmt: skip


@pytest.mark.parametrize("mirror", MALFORMED)
@pytest.mark.parametrize("named", ["option", "variable"])
def test_a_malformed_mirror_is_bad_input(
    mirror: str, named: str, entry: weights.Entry, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if named == "variable":
        monkeypatch.setenv("DIFFSFSR_WEIGHTS_MIRROR", mirror)
    assert cli.main(["weights", "pull", "net", *(["--mirror", mirror] if named == "option" else [])]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "is not an http or https address" in told and "--mirror" in told and "secret" not in told


def test_pull_by_command(capfd: pytest.CaptureFixture[str], server: Server, add: Adder, tmp_path: Path) -> None:
    add("one", commercial=False)
    add("two")
    assert cli.main(["weights", "pull", "one", "two", "--mirror", server.url]) == 2
    assert "--accept-licence" in capfd.readouterr().err and left(tmp_path) == []
    assert cli.main(["weights", "pull", "one", "two", "dlib-face", "--mirror", server.url, "--accept-licence", "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert list(files) == ["one", "two", "dlib-face"] and all(Path(file).is_file() for file in files.values())
    assert cli.main(["weights", "pull", "one", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"name": "one", "file": files["one"]}


def test_the_zoo_loads_without_torch() -> None:
    code = "import sys, diffsfsr.weights; assert not {'torch', 'numpy', 'filelock'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
