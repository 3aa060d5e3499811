"""Reading JSON that nobody vouches for: records that a person may have edited, files that came with a picture."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_LARGEST = 16 << 20  # bytes


def read_json(path: Path) -> Any:
    """The value in a regular file of at most 16 MiB; never waits on a pipe.

    Raises FileNotFoundError where nothing has that name, ValueError saying what is there instead, to be put behind the file's name.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is not a file")
            if status.st_size > _LARGEST:
                raise ValueError(f"has {status.st_size} bytes, more than such a file has")
            content = f.read(_LARGEST)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise ValueError(f"cannot be read ({e.strerror})") from e
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("is not JSON of ours (nested too deeply)") from None
    except ValueError as e:
        raise ValueError(f"is not JSON ({e})") from e
