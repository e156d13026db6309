"""The database as an SQLite file: connecting, checking and upgrading it, and detecting damage."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event

from cotenant.domain.errors import StoreError
from cotenant.store.location import APPLICATION_ID
from cotenant.store.migrations import HEAD

_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(Exception):
    """The file is not a database, or is corrupt."""


def connect(path: Path | None, *, busy_timeout_s: float) -> Engine:
    """Return an engine for the calling thread alone, which opens the file when used; None is in memory."""
    engine = create_engine(
        URL.create("sqlite", database=None if path is None else str(path)),
        poolclass=StaticPool,
        connect_args={"timeout": busy_timeout_s},
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def stored_version(connection: Connection, path: Path | None) -> int:
    """Return the number of the tables' revision, 0 if there are none yet. Raises StoreError for others'."""
    if _pragma(connection, "schema_version") == 0:
        return 0
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program", hint="Move it away, or choose another directory."
        )
    return _pragma(connection, "user_version")


def prepare(connection: Connection, path: Path | None) -> None:
    """Check that the file is intact and Cotenant's, and upgrade its tables.

    Raises Damaged, and StoreError for a database of a newer Cotenant or another program. Neither is changed.
    """
    version, head = stored_version(connection, path), int(HEAD)
    if not 0 <= version <= head:
        raise StoreError(
            f"{path} has version {version} of the tables, and this Cotenant knows version {head}",
            hint="Run the Cotenant that wrote it or a newer one, or move the file away to start empty.",
        )
    if version:
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise Damaged(verdict)
    if version < head:
        from cotenant.store.migrate import upgrade

        # Files of version 1 are from before revisions were kept in a table.
        upgrade(connection, unstamped=version == 1)
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {head}")


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is broken."""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def rename_damaged(path: Path) -> Path:
    """Rename the file with its journal, which SQLite finds by name."""
    renamed = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            os.replace(old, renamed.with_name(renamed.name + suffix))
    return renamed


def _configure(connection: Any, _record: object) -> None:
    # The driver's own transactions begin too late, after the reads that a write depends on.
    connection.isolation_level = None
    (schema,), (owner,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("schema_version", "application_id")
    )
    if schema == 0 or owner == APPLICATION_ID:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Connection) -> None:
    # IMMEDIATE, since a deferred transaction that becomes a write fails immediately, whatever the timeout.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
