"""Pickled weights of strangers: what fits is read, anything else is one line, before it takes memory or is believed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsfsr.encoders import state_file
from diffsfsr.encoders.state_file import read_state
from diffsfsr.errors import InputError

WANT = {"weight": torch.zeros(3, 4), "bn.num_batches_tracked": torch.tensor(0)}
GOOD = torch.arange(12.0).view(3, 4)


def saved(path: Path, found: Any, **options: Any) -> Path:
    torch.save(found, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_what_fits_is_read_whatever_its_precision(tmp_path: Path, zipped: bool) -> None:
    found = {"weight": GOOD.half(), "head": torch.zeros(9)}
    path = saved(tmp_path / "net.pt", found, _use_new_zipfile_serialization=zipped)
    state = read_state(path, WANT, "Net", ignored=("head",))
    assert state.keys() == WANT.keys() and torch.equal(state["weight"].float(), GOOD) and state["bn.num_batches_tracked"] == 0


def test_what_would_grow_in_memory_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, bomb = saved(tmp_path / "net.pt", {"weight": torch.zeros(1_000_000)}), tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert bomb.stat().st_size < 10_000 and torch.load(bomb)["weight"].shape == (1_000_000,)  # torch itself unpacks it
    opened = list[Path]()
    monkeypatch.setattr(torch, "load", lambda path, **_: opened.append(path))
    with pytest.raises(InputError, match=r"bomb.pt is compressed, .* `diffsfsr weights check`"):
        read_state(bomb, WANT, "Net")
    monkeypatch.setattr(state_file, "_LARGEST_FILE", 1000)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        read_state(path, WANT, "Net")
    assert not opened


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (GOOD.to(torch.complex64), "weight holds torch.complex64 where torch.float32 belongs"),
        (GOOD.long(), "weight holds torch.int64 where torch.float32 belongs"),
        (GOOD.to_sparse(), "weight holds"),
        (GOOD.to("meta"), "weight holds"),
        (GOOD / 0, "weight holds values that are not finite"),
        (torch.zeros(1).expand(10**9, 10**9), r"weight is \(1000000000, 1000000000\) where \(3, 4\) belongs"),
    ],
    ids=["complex", "integers", "sparse", "without content", "not finite", "endless"],
)
def test_other_numbers_are_refused(tmp_path: Path, value: Tensor, told: str) -> None:
    path = saved(tmp_path / "net.pt", {"weight": value})
    with pytest.raises(InputError, match=told) as caught:
        read_state(path, WANT, "Net")
    assert str(path) in str(caught.value) and "Net" in str(caught.value) or "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_the_line_is_ours_not_torchs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch's own advice is to load the file unsafely."""
    hostile = {"code": _Command(), "module": torch.nn.Linear(2, 2), "list": [GOOD], "number": {"weight": 5}}
    paths = [saved(tmp_path / name, found) for name, found in hostile.items()]
    (tmp_path / "text").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "cut").write_bytes(saved(tmp_path / "whole", {"weight": GOOD}).read_bytes()[:700])
    for path in (*paths, tmp_path / "text", tmp_path / "cut"):
        with pytest.raises(InputError) as caught:
            read_state(path, WANT, "Net")
        line = str(caught.value)
        assert str(path) in line and "`diffsfsr weights check`" in line and "\n" not in line and "weights_only" not in line, line
    assert "executed" not in capsys.readouterr().out
