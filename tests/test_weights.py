"""The zoo, against a web server of our own that can cut a connection."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffsfsr import weights
from diffsfsr.errors import InputError, NotReady

BODY = bytes(range(256)) * 40_000


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` at every path with Range and If-Range; `cut` bytes into the next reply the connection breaks."""

    daemon_threads = True
    body, etag, cut, status = BODY, '"one"', 0, 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s = self.server
        s.asked.append((self.path, self.headers.get("Range")))
        if s.status:
            return self.send_error(s.status)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and self.headers.get("If-Range", s.etag) == s.etag else 0
        if start >= len(s.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(s.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        self.send_header("Content-Length", str(len(s.body) - start))
        self.send_header("ETag", s.etag)
        self.end_headers()
        self.wfile.write(s.body[start : s.cut or None])
        s.cut = 0

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> weights.Entry:
    """A pinned file named `net` that lies in a subfolder of its mirror."""
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    sha256 = hashlib.sha256(BODY).hexdigest()
    e = weights.Entry("net", "a role", "folder/net.bin", "github:a/b@c d", "MIT", True, sha256, len(BODY))
    monkeypatch.setitem(weights.ZOO, "net", e)
    return e


def left(tmp: Path) -> list[str]:
    return sorted(p.name for p in (tmp / "diffsfsr-home").rglob("*") if p.is_file())


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
        assert weights.resolve(e.name) == weights_dir / file
    states = {s.name: s.state for s in weights.check()}
    assert states["reid0095"] == states["dlib-face"] == "ok"


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
    assert next(s for s in weights.check() if s.name == "net").state == "wrong"


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


def test_an_unpinned_entry_is_pinned_by_its_first_pull(
    server: Server, entry: weights.Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(weights.ZOO, "net", dataclasses.replace(entry, sha256=None, size=None))
    monkeypatch.setenv("DIFFSFSR_WEIGHTS_MIRROR", server.url)
    path = weights.pull("net")
    lock = json.loads((tmp_path / "diffsfsr-home/weights/lock.json").read_text())
    assert lock["net"] == {"sha256": entry.sha256, "size": len(BODY), "url": f"{server.url}/folder/net.bin"}
    assert next(s for s in weights.check() if s.name == "net").state == "ok"
    path.unlink()
    server.body = BODY[1:]
    with pytest.raises(InputError, match="nothing was kept"):
        weights.pull("net")


def test_pull_refuses(server: Server, entry: weights.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReady, match="no public address"):
        weights.pull("net")
    with pytest.raises(InputError, match="not an http"):
        weights.pull("net", mirror="file:///etc")
    server.status = 404
    with pytest.raises(NotReady, match="answered 404"):
        weights.pull("net", mirror=server.url)
    server.status = 0
    monkeypatch.setitem(weights.ZOO, "net", dataclasses.replace(entry, commercial=False, licence="CC-BY-NC-4.0"))
    with pytest.raises(InputError, match="CC-BY-NC-4.0"):
        weights.pull("net", mirror=server.url)
    assert weights.pull("net", mirror=server.url, accept_licence=True).is_file()
