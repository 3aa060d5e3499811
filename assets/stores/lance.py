"""LanceDB tables that hold one row per key: made once, merged without repetitions, read by safe filters, erased to the byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffsfsr.errors import InputError

_IN_LIST = 4000  # values in one filter


def ensure(db: Any, name: str, schema: pa.Schema, key: str) -> Any:
    """The table of that name, made with its key declared when it is not there. Call it as the only writer."""
    if name not in db.list_tables(limit=10_000).tables:
        try:
            db.create_table(name, schema=schema)
        except ValueError as error:  # another writer was first, here and below: only a URL, without a lock, allows it
            if "already exists" not in str(error):
                raise
    table = open_table(db, name)
    if not _has_key(table, key):  # new, or its maker was killed between the two calls
        try:
            table.set_unenforced_primary_key(key)
        except ValueError:
            if not _has_key(table, key):
                raise
    return table


def open_table(db: Any, name: str) -> Any:
    with whole(name):
        return db.open_table(name)


@contextmanager
def whole(what: str) -> Iterator[None]:
    """Raises InputError, with what to do, in place of LanceDB's error about a damaged file."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("lance error"):
            raise
        why = " ".join(str(error).split()).partition(", /")[0]  # then a line of its source
        raise InputError(f"catalogue: table {what} is damaged ({why}): move the catalogue away; `diffsfsr run prepare` fills it") from error


def _has_key(table: Any, key: str) -> bool:
    return b"lance-schema:unenforced-primary-key:position" in (table.schema.field(key).metadata or {})


def merge(table: Any, key: str, rows: pa.Table, insert: bool) -> int:
    """Update the rows whose key is there and, with `insert`, add the others; returns the number of rows touched."""
    if rows.num_rows == 0:
        return 0
    builder = table.merge_insert(key).use_index(False).when_matched_update_all()
    if insert:
        builder = builder.when_not_matched_insert_all()
    # "null" lets an absent vector through; wrong lengths and NaN were refused by `cast`.
    result = builder.execute(rows, on_bad_vectors="null")
    return result.num_updated_rows + result.num_inserted_rows


def cast(rows: pa.Table, target: pa.Schema, key: str) -> pa.Table:
    """`rows` in the types that `target` has for its columns, the last row of each key kept.

    Raises InputError for a type or vector length that does not fit, a null key or a vector with NaN.
    """
    if key not in rows.column_names or rows[key].null_count:
        raise InputError(f"catalogue: every row needs a {key}")
    try:
        rows = rows.cast(pa.schema([target.field(name).remove_metadata() for name in rows.column_names]))
    except pa.ArrowException as error:
        raise InputError(f"catalogue: rows do not fit the table: {error}") from error
    for field in rows.schema:
        if pa.types.is_fixed_size_list(field.type) and not np.isfinite(matrix(rows[field.name].drop_null())).all():
            raise InputError(f"catalogue: column {field.name} holds a vector with NaN or infinity")
    last = pa.table({"key": rows[key], "at": pa.array(range(rows.num_rows), pa.int64())}).group_by("key").aggregate([("at", "max")])
    return rows.take(last["at_max"].sort()) if last.num_rows < rows.num_rows else rows


def read(table: Any, columns: Sequence[str] | None, where: str, row_ids: bool = False) -> pa.Table:
    """Every row that fits the filter."""
    with whole(table.name):
        query = table.search().limit(max(table.count_rows(), 1))
        query = query.where(where) if where else query
        query = query.select(list(columns)) if columns else query
        return (query.with_row_id(True) if row_ids else query).to_arrow()


def where(equals: Mapping[str, Any], *, present: Sequence[str] = ()) -> str:
    """A filter: each column equals its value (a list: one of its values; None: null), and those of `present` are not null."""
    parts = [f"{name} IS NOT NULL" for name in present]
    for name, value in equals.items():
        if value is None:
            parts.append(f"{name} IS NULL")
        elif isinstance(value, list | tuple | set | frozenset):
            parts.append(f"{name} IN ({', '.join(literal(v) for v in value)})" if value else "false")
        else:
            parts.append(f"{name} = {literal(value)}")
    return " AND ".join(parts)


def in_lists(column: str, values: Sequence[str]) -> Iterator[str]:
    """Filters that together match the values, each of a size that the parser takes quickly."""
    for start in range(0, len(values), _IN_LIST):
        yield where({column: list(values[start : start + _IN_LIST])})


def literal(value: Any) -> str:
    """A value as SQL. In a string only the quote has a meaning, and is doubled. Raises InputError for other kinds of value."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value).lower()
    raise InputError(f"catalogue: cannot look for {value!r}; give text or a number")


def fixed(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """(n, D) -> an arrow column of n vectors."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """An arrow column of n vectors without nulls -> (n, D) float32."""
    flat = pc.list_flatten(column).combine_chunks().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def purge(table: Any) -> None:
    """Remove the bytes of deleted rows from data, indexes and history. Indexes are dropped: the caller makes them again.

    A delete, and LanceDB's optimize, leave the bytes on disk. The files are rewritten without them here, and what older
    versions held is removed at once, whoever may be reading it. A tag on an old version is an error: it pins the bytes.
    """
    for index in table.list_indices():
        table.drop_index(index.name)
    table.to_lance().optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
    table.delete("false")  # the newest commit carries its own filter, which would otherwise be the one that names the person
    table.to_lance().cleanup_old_versions(timedelta(0), delete_unverified=True)
