"""The catalogue of faces in LanceDB: ids, labels, pose and embeddings; no pixels.

Table `faces` has one row per aligned face. Table `embeddings_<encoder>` has one row per (face, weights of the encoder)
and is the cache that makes a new encoder cost only itself.

LanceDB does not enforce keys: two merges of the same rows at once leave both copies. What keeps them out here is a
non-nullable key in table and source, an unenforced primary key, a merge that ignores indexes, batches without
repetitions and one writer at a time. For a local folder the writer is a file lock beside the tables; for a URL the
caller keeps to one writer (a Dagster pool of one). `duplicates()` counts what slipped through all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from assets.stores.lance import cast, ensure, fixed, in_lists, literal, matrix, merge, open_table, purge, read, where
from diffsfsr.errors import InputError, NotReady, did_you_mean
from diffsfsr.portrait.words import Vocabulary

EXPRESSION_DIM = 16
_IVF_FROM = 100_000  # rows from which an index on the expression pays
_LOCK_SECONDS = 1800.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")

FACES = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),  # <dataset>/<sha256[:16]>/<face index>
        pa.field("dataset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("person", pa.string()),
        pa.field("emotion", pa.string()),
        pa.field("path", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("face_index", pa.int32()),
        pa.field("yaw", pa.float32()),  # degrees, as pitch and roll
        pa.field("pitch", pa.float32()),
        pa.field("roll", pa.float32()),
        pa.field("size", pa.int32()),  # side of the crop in pixels
        pa.field("expression", pa.list_(pa.float32(), EXPRESSION_DIM)),  # unit length
        pa.field("expression_version", pa.string()),  # sha256 of the DLN's weights
    ]
)


def _cache_schema(dim: int) -> pa.Schema:
    key, face = pa.field("key", pa.string(), nullable=False), pa.field("face_id", pa.string())
    return pa.schema([key, face, pa.field("version", pa.string()), pa.field("vector", pa.list_(pa.float32(), dim))])


class Catalogue:
    """The tables at `uri`: a local folder (made when first written) or an object store's URL such as s3://bucket/catalogue."""

    def __init__(self, uri: str | Path) -> None:
        import lancedb

        self.uri = str(uri).removeprefix("file://")
        self._writer: AbstractContextManager[Any] = nullcontext()
        if "://" not in self.uri:
            root = Path(self.uri).resolve()
            root.mkdir(parents=True, exist_ok=True)
            self.uri = str(root)
            self._writer = FileLock(root / ".writer.lock", timeout=_LOCK_SECONDS)
        self._db = lancedb.connect(self.uri, read_consistency_interval=timedelta(0))  # others' writes are seen at once
        self._rows: tuple[Any, dict[tuple[Any, ...], np.ndarray]] = (None, {})

    # --- writing ----------------------------------------------------------------------------------------------------

    def upsert_faces(self, table: pa.Table) -> int:
        """Insert or update rows by face_id; returns the number of distinct rows.

        Columns that `table` lacks keep their value (null in a new row); a null in a column it has overwrites.
        Columns `id_<encoder>` (with `id_<encoder>_version`) are added to the catalogue when first met.
        Raises InputError for an unknown column, a missing face_id or a vector of the wrong length or with NaN.
        """
        return self._merge_faces(table, insert=True)

    def fill(self, column: str, version: str, face_ids: Sequence[str], vectors: np.ndarray) -> int:
        """Set a vector column (`expression` or `id_<encoder>`) and its version on faces that exist; returns how many."""
        vectors = _checked(vectors, face_ids)
        data = {"face_id": list(face_ids), column: fixed(vectors), f"{column}_version": [version] * len(face_ids)}
        return self._merge_faces(pa.table(data), insert=False)

    def put_embeddings(self, encoder: str, version: str, face_ids: Sequence[str], vectors: np.ndarray) -> int:
        """Cache `vectors` (n, D) of `face_ids` under the encoder and the hash of its weights; returns the distinct rows."""
        vectors = _checked(vectors, face_ids)
        schema = _cache_schema(vectors.shape[1])
        keys = [f"{i}|{version}" for i in face_ids]
        rows = pa.table({"key": keys, "face_id": list(face_ids), "version": [version] * len(keys), "vector": fixed(vectors)})
        with self._writer:
            cache = ensure(self._db, _cache_name(encoder), schema, "key")
            return merge(cache, "key", cast(rows, cache.schema, "key"), insert=True)

    def _merge_faces(self, rows: pa.Table, insert: bool) -> int:
        with self._writer:
            faces = ensure(self._db, "faces", FACES, "face_id")
            new = [_identity_field(f) for f in rows.schema if f.name not in faces.schema.names]
            if new:
                faces.add_columns(pa.schema(new))
            return merge(faces, "face_id", cast(rows, faces.schema, "face_id"), insert)

    def index(self) -> None:
        """Index `emotion`, and `expression` in a large catalogue, for retrieval by word. Repeat after large changes."""
        from lancedb.index import Bitmap, IvfFlat

        with self._writer:
            faces = self._faces()
            faces.create_index("emotion", config=Bitmap(), replace=True)
            if faces.count_rows("expression IS NOT NULL") >= _IVF_FROM:
                faces.create_index("expression", config=IvfFlat(), replace=True)

    def optimize(self) -> None:
        """Join small fragments and drop versions older than a day."""
        with self._writer:
            for name in self._names():
                open_table(self._db, name).optimize(cleanup_older_than=timedelta(days=1))

    def forget(
        self, *, person: str | None = None, face_ids: Iterable[str] = (), dataset: str | None = None, path: str | None = None
    ) -> dict[str, int]:
        """Erase faces from every table, and then their bytes from every file; returns the rows erased per table.

        The faces are `face_ids`, and those that match all of `person`, `dataset` and `path`. The files are cleaned even
        when no row is left: an earlier call may have been killed half way. Old versions go too, so that a reader in
        another process may have to repeat its query. Raises InputError when nothing is named.
        """
        equals = _given(person=person, dataset=dataset, path=path)
        ids = list(face_ids)
        if not equals and not ids:
            raise InputError("catalogue: forget needs a person, a data set, a path or face ids")
        with self._writer:
            if equals:
                ids += self.faces(["face_id"], **equals)["face_id"].to_pylist()
            filters = list(in_lists("face_id", ids))
            if list(equals) == ["dataset"]:  # cached embeddings whose face never became a row
                filters.append(f"starts_with(face_id, {literal(f'{dataset}/')})")
            # `faces` comes last: by it a call that was interrupted finds the other rows again.
            return {name: self._erase(name, filters) for name in sorted(self._names(), key=lambda n: n == "faces")}

    def _erase(self, name: str, filters: Sequence[str]) -> int:
        table = open_table(self._db, name)
        before, indexed = table.count_rows(), bool(table.list_indices())
        for condition in filters:
            table.delete(condition)
        purge(table)
        if indexed:
            self.index()
        return before - table.count_rows()

    # --- reading ----------------------------------------------------------------------------------------------------

    def faces(self, columns: Sequence[str] | None = None, **equals: Any) -> pa.Table:
        """Rows whose columns equal the given values: `faces(person="O'Brien", split=["train", "test"], emotion=None)`.

        A list means any of its values, None means null. Raises InputError for an unknown column.
        """
        return self._select(columns, equals)

    @property
    def columns(self) -> list[str]:
        """What a row of a face has; nothing where no face has been catalogued."""
        return list(self._faces().schema.names) if "faces" in self._names() else []

    def get_embeddings(self, encoder: str, version: str, face_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """face_id -> (D,) float32 for those of `face_ids` that are cached under this version."""
        found: dict[str, np.ndarray] = {}
        for part in self._cached(encoder, version, face_ids, ["face_id", "vector"]):
            found.update(zip(part["face_id"].to_pylist(), matrix(part["vector"]), strict=True))
        return found

    def missing(self, encoder: str, version: str, face_ids: Sequence[str]) -> list[str]:
        """Those of `face_ids` that are not cached under this version, in their order, without repetitions."""
        have = {i for part in self._cached(encoder, version, face_ids, ["face_id"]) for i in part["face_id"].to_pylist()}
        return [i for i in dict.fromkeys(face_ids) if i not in have]

    def labels(self, split: str | None = None, version: str | None = None) -> dict[str, int]:
        """Emotion -> number of its faces that have an expression embedding; most frequent first."""
        table = self._select(["emotion"], _given(split=split, expression_version=version), present=["emotion", "expression"])
        counts = {c["values"]: c["counts"] for c in table["emotion"].value_counts().to_pylist()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def by_label(self, label: str, split: str | None = None, version: str | None = None) -> tuple[list[str], np.ndarray]:
        """Faces of an emotion that have an expression embedding: their ids, sorted, and vectors (n, 16) float32."""
        equals = {"emotion": label, **_given(split=split, expression_version=version)}
        table = self._select(["face_id", "expression"], equals, present=["expression"]).sort_by("face_id")
        return table["face_id"].to_pylist(), matrix(table["expression"])

    def vocabulary(self, version: str) -> Vocabulary:
        """What words are looked up in for a DLN of that version."""
        return Vocabulary(self.labels(version=version), partial(self.by_label, version=version))

    def nearest(
        self, vector: np.ndarray, k: int, label: str | None = None, split: str | None = None, version: str | None = None
    ) -> pa.Table:
        """The k faces whose expression is nearest to `vector` (16,): face_id, person, emotion, path, distance (Euclidean)."""
        columns = ["face_id", "person", "emotion", "path"]
        condition = where(_given(emotion=label, split=split, expression_version=version), present=["expression"])
        query = self._faces().search(np.asarray(vector, np.float32), vector_column_name="expression").nprobes(20)
        found = query.where(condition).select([*columns, "_distance"]).limit(k).to_arrow()
        return found.select(columns).append_column("distance", pc.sqrt(found["_distance"]))  # LanceDB's l2 is squared

    def random_face(self, label: str, rng: np.random.Generator, split: str | None = None, version: str | None = None) -> dict[str, Any]:
        """One face of an emotion that has an expression embedding, uniformly. Raises NotReady when there is none.

        Row ids per label stay in memory until the table changes, so that a draw need not scan the labels.
        """
        faces, wanted = self._faces(), (label, split, version)
        while True:
            table_version, groups = self._directory(faces)
            fits = [ids for key, ids in groups.items() if all(w in (None, k) for w, k in zip(wanted, key, strict=True))]
            if not fits:
                raise NotReady(f"catalogue: no face with an expression embedding is labelled {label!r}; run `diffsfsr run prepare`")
            ids = np.concatenate(fits)
            row = faces.take_row_ids([int(ids[rng.integers(len(ids))])]).to_list()
            if faces.version == table_version:  # row ids hold for one version only
                return row[0]

    def counts(self) -> dict[str, int]:
        """Table -> rows."""
        return {name: open_table(self._db, name).count_rows() for name in self._names()}

    def duplicates(self) -> int:
        """Rows over all tables beyond one per key: 0 in a sound catalogue."""
        extra = 0
        for name in self._names():
            key = read(open_table(self._db, name), ["face_id" if name == "faces" else "key"], "").column(0)
            extra += len(key) - pc.count_distinct(key).as_py()
        return extra

    def _names(self) -> list[str]:
        names = self._db.list_tables(limit=10_000).tables
        return sorted(n for n in names if n == "faces" or n.startswith("embeddings_"))

    def _faces(self) -> Any:
        if "faces" not in self._names():
            raise NotReady(f"catalogue: {self.uri} has no faces yet; run `diffsfsr run prepare`")
        return open_table(self._db, "faces")

    def _select(self, columns: Sequence[str] | None, equals: dict[str, Any], present: Sequence[str] = ()) -> pa.Table:
        table = open_table(self._db, "faces") if "faces" in self._names() else None
        schema = FACES if table is None else table.schema
        for name in [*equals, *(columns or ())]:
            if name not in schema.names:
                raise InputError(f"catalogue: no column {name!r}{did_you_mean(name, schema.names)}")
        if table is None:
            return FACES.empty_table().select(list(columns or FACES.names))
        return read(table, columns, where(equals, present=present))

    def _cached(self, encoder: str, version: str, face_ids: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
        name = _cache_name(encoder)
        if name in self._names():
            table = open_table(self._db, name)
            for condition in in_lists("key", [f"{i}|{version}" for i in dict.fromkeys(face_ids)]):
                yield read(table, columns, condition)

    def _directory(self, faces: Any) -> tuple[int, dict[tuple[Any, ...], np.ndarray]]:
        """(version of the table, (emotion, split, expression version) -> row ids)."""
        if self._rows[0] != faces.version:
            version = faces.version
            columns = ["emotion", "split", "expression_version"]
            frame = read(faces, columns, where({}, present=["emotion", "expression"]), row_ids=True).to_pandas()
            groups = frame.groupby(columns, dropna=False).indices
            self._rows = (version, {key: frame["_rowid"].to_numpy()[at] for key, at in groups.items()})
        return self._rows


def _cache_name(encoder: str) -> str:
    if not _NAME.fullmatch(encoder):
        raise InputError(f"catalogue: encoder name {encoder!r} may hold letters, digits and _ only")
    return f"embeddings_{encoder}"


def _identity_field(field: pa.Field) -> pa.Field:
    """The catalogue's own form of a column `id_<encoder>` or `id_<encoder>_version` that it meets for the first time."""
    encoder = field.name.removeprefix("id_").removesuffix("_version")
    if not field.name.startswith("id_") or not _NAME.fullmatch(encoder):
        raise InputError(f"catalogue: no column {field.name!r}{did_you_mean(field.name, FACES.names)}")
    if field.name.endswith("_version"):
        return pa.field(field.name, pa.string())
    if not pa.types.is_fixed_size_list(field.type):
        raise InputError(f"catalogue: column {field.name} must hold vectors of one fixed length, not {field.type}")
    return pa.field(field.name, pa.list_(pa.float32(), field.type.list_size))


def _checked(vectors: np.ndarray, face_ids: Sequence[str]) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(face_ids):
        raise InputError(f"catalogue: {len(face_ids)} faces came with vectors of shape {vectors.shape}; needed (n, D)")
    return vectors


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
