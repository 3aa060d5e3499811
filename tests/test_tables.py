"""Files that are whole or the old one, also under kill -9; fingerprints; the training table's layout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diffsfsr import tables

ROOT = Path(__file__).resolve().parents[1]

# Writes half of a table, says so, and waits for the end.
HALF = """
import sys, time
from pathlib import Path
from diffsfsr import tables

def half(path):
    path.write_bytes(b"x" * 100_000)
    Path(sys.argv[2]).touch()
    time.sleep(60)

tables.write_whole(Path(sys.argv[1]), half)
"""


def table(n: int = 3) -> pa.Table:
    return pa.table({"x": list(range(n))})


def test_a_kill_in_the_middle_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path, ready = tmp_path / "t.parquet", tmp_path / "ready"
    tables.write(path, table(), "old")
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, "-c", HALF, str(path), str(ready)], cwd=ROOT)
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert path.read_bytes() == before  # while the other one writes
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and ready.exists()
    assert path.read_bytes() == before and tables.mark_of(path) == "old" and tables.read(path)["x"].to_pylist() == [0, 1, 2]
    assert [p for p in tmp_path.glob("*.parquet") if not p.name.startswith(".")] == [path]  # what is left is hidden from a listing
    tables.write(path, table(5), "new")
    assert tables.mark_of(path) == "new" and len(tables.read(path)) == 5


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.parquet"

    def broken(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        tables.write_whole(path, broken)
    assert list(path.parent.iterdir()) == []
    tables.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError):
        tables.write_whole(path, broken)
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"] and path.read_text() == '{\n  "a": 1\n}\n'


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        tables.write_json(tmp_path / "a.json", [])
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def test_mark_of_what_is_no_whole_table(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert tables.mark_of(path) is None and tables.mark_of(tmp_path) is None
    tables.write(path, table(1000), "mark")
    whole = path.read_bytes()
    assert tables.mark_of(path) == "mark"
    for broken in (b"", b"text", whole[: len(whole) // 2], whole[:-1], whole[:-8] + bytes(8)):
        path.write_bytes(broken)
        assert tables.mark_of(path) is None
    import pyarrow.parquet as pq

    pq.write_table(table(), path)
    assert tables.mark_of(path) is None


def test_fingerprint_tells_apart_and_nothing_else() -> None:
    same = [({"a": 1, "b": [1, 2]}, "x"), ({"b": (1, 2), "a": 1}, "x")]
    assert len({tables.fingerprint(*parts) for parts in same}) == 1
    words = [(), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("a", ["bc"])]
    different = [*words, (1,), ("1",), (1.5,), (None,), ({"a": 1},), ({"a": 2},), (["a", 1],)]
    marks = [tables.fingerprint(*parts) for parts in different]
    assert len(set(marks)) == len(different) and all(len(mark) == 16 for mark in marks)


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from diffsfsr.tables import fingerprint; print(fingerprint({'b': 1, 'a': [2.5, None]}, 'x'))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == tables.fingerprint({"a": [2.5, None], "b": 1}, "x")


def test_training_table_keeps_every_value(tmp_path: Path) -> None:
    schema = tables.training_schema(channels=2, latent=4, identity={"one": 3, "two": 5}, expression=16)
    rng = np.random.default_rng(0)
    rows = [
        {"face_id": "a", "person": "p", "emotion": "joy", "split": "train", "mask": bytes(range(16))}
        | {"latent": rng.normal(size=32).astype(np.float16), "masked_latent": rng.normal(size=32).astype(np.float16)}
        | {"landmarks": rng.normal(size=136).astype(np.float32), "expression": rng.normal(size=16).astype(np.float32)}
        | {"id_one": rng.normal(size=3).astype(np.float32), "id_two": None if i else rng.normal(size=5).astype(np.float32)}
        for i in range(2)
    ]
    path = tmp_path / "t.parquet"
    tables.write(path, tables.from_rows(rows, schema), "m")
    got = tables.read(path)
    assert got.schema.equals(schema) and got["latent"].type.value_type == pa.float16()
    for i, row in enumerate(got.to_pylist()):
        for name, value in rows[i].items():
            assert np.array_equal(row[name], value) if isinstance(value, np.ndarray) else row[name] == value
    tables.write(path, tables.from_rows([{"face_id": "a"}], schema), "m")
    assert tables.read(path).schema.equals(schema) and tables.read(path, ["id_two"])["id_two"].to_pylist() == [None]
    assert tables.from_rows([{"face_id": "a"}], schema).to_pylist()[0]["latent"] is None
    with pytest.raises(pa.ArrowInvalid):
        tables.from_rows([{"latent": np.zeros(31, np.float16)}], schema)


def test_a_report_is_whole_or_made_again(tmp_path: Path) -> None:
    def whole() -> bool:
        return tables.is_report(tmp_path, ("facts", "measures"), ("report.md",))

    assert not whole()
    tables.write_json(tmp_path / "report.json", {"facts": {}, "measures": {}, "title": ""})
    assert not whole()
    (tmp_path / "report.md").touch()
    assert whole()
    for broken in (b"{}", b"[]", b"12", b'{"facts": {}}', b'{"facts": {}, "measures": ', b"\xff"):
        (tmp_path / "report.json").write_bytes(broken)
        assert not whole()
