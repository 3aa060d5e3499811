"""The Parquet tables that pass between stages: their schemas, and the one way to write and read them.

A table's file carries a `fingerprint` of everything it was made from; a stage whose fingerprint already stands in its
output has nothing to do. Files are written beside, synced and renamed: a reader sees a whole file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TEXT, INT, REAL = pa.string(), pa.int64(), pa.float32()
_WIDTH = b"width"

# One row per photograph (or per named face of one) found in a data set's folder. Paths are relative to the folder.
SOURCES = pa.schema(
    [("path", TEXT), ("sha256", TEXT), ("size", INT), ("mtime_ns", INT), *[(name, TEXT) for name in ("person", "emotion", "face", "split")]]
)

# One row per photograph (or named face) of which the data set says more than whom it shows: gender, glasses, ...
LABELS = pa.schema([("path", TEXT), ("face", TEXT), ("labels", pa.map_(TEXT, TEXT))])

# One row per photograph that did not become a face.
REJECTS = pa.schema([("path", TEXT), ("sha256", TEXT), ("face", TEXT), ("reason", TEXT), ("detail", TEXT)])

# One row per aligned face. `landmarks` are 68 x (x, y) in pixels of the crop, `matrix` the 2 x 3 map from source pixels to
# crop pixels row by row, `crop` a PNG, angles in degrees.
FACES = pa.schema(
    [
        *[(name, TEXT) for name in ("face_id", "path", "sha256", "person", "emotion", "split", "face")],
        *[("face_index", INT), ("box", pa.list_(pa.int32(), 4)), ("landmarks", pa.list_(REAL, 136)), ("matrix", pa.list_(pa.float64(), 6))],
        *[(name, REAL) for name in ("yaw", "pitch", "roll")],
        ("crop", pa.binary()),
    ]
)

# One row per aligned face: its facial region, S * S bits packed eight to a byte, row by row.
MASKS = pa.schema([("face_id", TEXT), ("mask", pa.binary())])


def training_schema(channels: int, latent: int, identity: dict[str, int], expression: int) -> pa.Schema:
    """One row per face that training may draw, everything precomputed: no encoder of inputs runs in a step.

    `latent` and `masked_latent` are C * h * h float16, `mask` h * h bytes (1 where the latent position touches the face),
    `landmarks` 136 crop pixels, one `id_<encoder>` column an identity encoder (null where absent), `expression` unit length.
    """
    half = pa.list_(pa.float16(), channels * latent * latent)
    return pa.schema(
        [
            *[(name, TEXT) for name in ("face_id", "person", "emotion", "split")],
            *[("latent", half), ("masked_latent", half), ("mask", pa.binary()), ("landmarks", pa.list_(REAL, 136))],
            *[(f"id_{name}", pa.list_(REAL, dim)) for name, dim in identity.items()],
            ("expression", pa.list_(REAL, expression)),
        ]
    )


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON-like parts: equal inputs, equal fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path beside `path`), sync it and rename it to `path`; nothing is left behind on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8. Bytes of a file's name that are not become \\udcXX, which is how JSON spells them."""
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def is_report(folder: Path, keys: Iterable[str], files: Iterable[str]) -> bool:
    """Whether report.json has those keys, and the files lie beside it: what is missing or damaged is made again."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.keys() >= set(keys) and all((folder / name).is_file() for name in files)


def write(path: Path, table: pa.Table, mark: str) -> None:
    """Write a table whole, carrying its fingerprint."""
    table = _loosened(table).replace_schema_metadata({**(table.schema.metadata or {}), b"fingerprint": mark.encode()})
    write_whole(path, lambda p: pq.write_table(table, p, compression="zstd"))


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """What `write` wrote, or some columns of it. Raises OSError or pa.ArrowInvalid where there is no whole table."""
    table = pq.read_table(path, columns=columns)
    for i, field in enumerate(table.schema):
        if field.metadata and _WIDTH in field.metadata:
            tight = pa.field(field.name, pa.list_(field.type.value_type, int(field.metadata[_WIDTH])))
            table = table.set_column(i, tight, table[i].cast(tight.type))
    return table


def _loosened(table: pa.Table) -> pa.Table:
    """The table with its fixed-size lists free where some are null: Parquet writes those, but cannot read them (apache/arrow 35692)."""
    for i, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type) and table[i].null_count:
            free = pa.field(field.name, pa.list_(field.type.value_type), metadata={_WIDTH: str(field.type.list_size)})
            table = table.set_column(i, free, table[i].cast(free.type))
    return table


def mark_of(path: Path) -> str | None:
    """The fingerprint a table's file carries, or None where there is no such whole file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata.get(b"fingerprint", b"").decode() or None


def from_rows(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of that schema; a row's missing keys are null."""
    return pa.Table.from_pylist(list(rows), schema=schema)
