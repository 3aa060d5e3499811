"""The command line called in this process, with what it writes and the code it ends with, as a shell would see them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines import cli


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def run(*words: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with _captured(1, out), _captured(2, err), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(_Writer(2)):
        sys.stdout = _Writer(1)
        try:
            code = cli.main(list(words))
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


class _Writer(io.TextIOBase):
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, text: str) -> int:
        os.write(self.descriptor, text.encode("utf-8", "backslashreplace"))
        return len(text)


@contextlib.contextmanager
def _captured(descriptor: int, into: io.StringIO) -> Iterator[None]:
    """What anyone writes to a file descriptor, a library in C or a child process included."""
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            file.seek(0)
            into.write(file.read().decode("utf-8", "replace"))


def answer(*words: str) -> Any:
    """The JSON that a command answers with. Fails where it does not succeed."""
    ran = run(*words, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out)
