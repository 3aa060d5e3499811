"""MLflow's database brought to the schema of the MLflow that is installed, so that a process killed on the way ruins nothing.

On SQLite those migrations are a thousand statements that no transaction holds together: after a kill between them the next start finds
tables that exist already. There the new database is therefore made beside the old one and renamed into its place.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from diffsfsr.errors import NotReady

_PATIENCE = 20.0  # seconds to wait for another program that has the database open
_SEEDED = ("alembic_version", "workspaces")  # tables with rows that the migrations put there


def bring_up_to_date(uri: str) -> bool:
    """Migrate the database at `uri`; True when there was something to do. For one process at a time.

    Raises NotReady where a SQLite file cannot be migrated; it is left as it is.
    """
    if uri.startswith("sqlite:///"):
        return _replace(Path(uri.removeprefix("sqlite:///")))
    import mlflow.store.db.utils as db

    engine = db.create_sqlalchemy_engine_with_retry(uri)
    try:
        if db._get_schema_version(engine) == db._get_latest_schema_revision():
            return False
    finally:
        engine.dispose()
    _migrate(uri)
    return True


def _replace(path: Path) -> bool:
    """Migrate a copy of the file, or begin a new one where it holds nothing, and put that in its place.

    A database with anything in it stays beside as FILE.before-TIME.
    """
    import mlflow.store.db.utils as db

    head, beside = db._get_latest_schema_revision(), path.with_name(f"{path.name}.new")
    try:
        if _revision(path) == head:
            return False
        with _held(path) as old:
            for left in (beside, beside.with_name(f"{beside.name}-journal")):  # by a process that was killed
                left.unlink(missing_ok=True)
            keep = old is not None and _has_content(old)
            if keep:  # by a connection of its own: one that may write cannot be copied from
                with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(beside)) as copy:
                    source.backup(copy)
            _migrate(f"sqlite:///{beside}")
            if keep:
                os.link(path, path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S')}"))
            os.replace(beside, path)
    except Exception as error:  # alembic's, SQLAlchemy's and sqlite3's have nothing in common
        why, do = str(error).partition("\n")[0], "put a backup in its place or move it away"
        if "database is locked" in why:  # it is whole, and must stay where it is
            do = "another program holds it; end that and try again"
        raise NotReady(f"registry: {path} cannot be brought to this MLflow's schema ({why}): {do}") from error
    return True


@contextmanager
def _held(path: Path) -> Iterator[sqlite3.Connection | None]:
    """The file, which nobody else writes to meanwhile; None where there is none."""
    if not path.exists():
        yield None
        return
    with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # a journal left beside would be taken for the new file's
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def _revision(path: Path) -> str | None:
    """The schema that a file says it has."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection:
        known = "alembic_version" in _tables(connection)
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    return row[0] if row else None


def _has_content(connection: sqlite3.Connection) -> bool:
    """Whether any table has a row that no migration put there."""
    tables = [name for name in _tables(connection) if name.removeprefix("_alembic_tmp_") not in _SEEDED]
    return any(connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in tables)


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def _migrate(uri: str) -> None:
    import mlflow.store.db.utils as db

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    engine = db.create_sqlalchemy_engine_with_retry(uri)
    try:
        (db._initialize_tables if db._is_empty_database(engine) else db._upgrade_db)(engine)
    finally:
        engine.dispose()
