"""One file over http(s): continued where it broke off, bounded in size, and given up where the server is too slow.

A mirror is not trusted: it may redirect, lie about sizes, send without end or hardly at all. What it sent is compared with a
hash by the caller before it gets its name.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffsfsr.errors import InputError, NotReady

TIMEOUT = 60.0  # seconds without a byte
WINDOW = 60.0  # seconds over which SLOWEST is measured
SLOWEST = 1024  # bytes a second, below which it would take weeks
SPARE = 256 << 20  # bytes of disk that are left free
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Bound:
    """How large a file may be: exactly `size` bytes where that is known, at most `most` in any case."""

    most: int
    size: int | None = None

    def refuse(self, url: str, total: int) -> None:
        """Raises InputError for a file of `total` bytes that cannot be the right one."""
        if self.size is not None and total != self.size:
            raise InputError(f"{url} has {total} bytes where {self.size} are expected: it is another file; use another mirror")
        if total > self.most:
            raise InputError(f"{url} is larger than {self.most} bytes, more than any such file has: nothing was kept")


def download(url: str, part: Path, bound: Bound) -> None:
    """Stream `url` to `part`, continuing after the bytes already there while the server says that the file is the same.

    Raises InputError where what comes cannot be the file (its size, a redirect elsewhere), NotReady where another try may help.
    """
    etag = _etag(part)  # a part without its validator cannot be told from another version's
    have = part.stat().st_size if part.exists() and etag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": etag.read_text()} if have else {}
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as reply:
            goes_on = have > 0 and reply.status == 206 and (reply.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
            if reply.headers.get_content_type() == "text/html":  # before anything is kept or thrown away: a later try may help
                raise NotReady(f"{url} answered with a web page, not with the file: see to a log-in, or correct the address")
            if reply.status == 206 and not goes_on:
                raise NotReady(f"{url}: the server continued from another place than byte {have}; pull again")
            if not goes_on:
                discard(part)
                have = 0
                if reply.headers.get("ETag"):
                    etag.write_text(reply.headers["ETag"])
            _copy(reply, part, url, have, bound)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have and e.headers.get("Content-Range") == f"bytes */{have}":  # the part was already whole
            return
        if e.code == 416:
            discard(part)
        raise NotReady(f"{url} answered {e.code} {e.reason}: check the address or pull again") from e
    except urllib.error.URLError as e:
        raise NotReady(f"{url} cannot be reached ({e.reason}): see to the network, or name a mirror (DIFFSFSR_WEIGHTS_MIRROR)") from e
    except InputError:
        discard(part)
        raise
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise NotReady(f"{url} broke off ({e}): pull again to continue") from e


def discard(part: Path) -> None:
    """Remove an unfinished download."""
    for path in (part, _etag(part)):
        path.unlink(missing_ok=True)


def need_room(part: Path, wanted: int) -> None:
    """Raises NotReady where `wanted` more bytes would leave less than SPARE of the disk."""
    free = shutil.disk_usage(part.parent).free
    if wanted + SPARE > free:
        raise NotReady(f"{part.name} needs {wanted} bytes more, and {free} are free at {part.parent}: free some disk, then pull again")


def _etag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _copy(reply: http.client.HTTPResponse, part: Path, url: str, have: int, bound: Bound) -> None:
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length else None
    if total is not None:
        bound.refuse(url, total)
        need_room(part, total - have)
    shown, since, came = _Progress(url, total), time.monotonic(), 0
    with open(part, "ab") as f:
        while block := reply.read1(_BLOCK):
            f.write(block)
            have += len(block)
            came += len(block)
            if have > (bound.most if bound.size is None else bound.size):
                bound.refuse(url, have)
            if total is None:
                need_room(part, len(block))
            if (seconds := time.monotonic() - since) > WINDOW:
                if came < SLOWEST * seconds:
                    raise TimeoutError(f"{came} bytes in {seconds:.0f} s")
                since, came = time.monotonic(), 0
            shown(have)
        f.flush()
        os.fsync(f.fileno())
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
    if bound.size is not None:
        bound.refuse(url, have)


class _Progress:
    """Megabytes on standard error, where a person watches."""

    def __init__(self, url: str, total: int | None) -> None:
        self.name, self.total, self.last = Path(urlsplit(url).path).name, total, 0.0

    def __call__(self, have: int) -> None:
        if not sys.stderr.isatty() or (time.monotonic() - self.last < 0.5 and have != self.total):
            return
        self.last = time.monotonic()
        of, end = f"{self.total / 1e6:.1f}" if self.total else "?", "\n" if have == self.total else ""
        print(f"\r{self.name}: {have / 1e6:.1f} of {of} MB", end=end, file=sys.stderr, flush=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only to http and https, and from https only to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme, before = urlsplit(newurl).scheme, urlsplit(req.full_url).scheme
        if scheme not in ("http", "https") or (before == "https" and scheme == "http"):
            raise InputError(f"{req.full_url} redirects to {newurl}, which is not {before}: use another mirror")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """What can open http and https, and nothing else: no file, ftp or data address, wherever it comes from."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener
