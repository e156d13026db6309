"""The database file: opened, checked, begun, or moved aside when it is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from cotenant.domain.errors import StoreError
from cotenant.store.tables import SCHEMA_VERSION, metadata

APPLICATION_ID: Final = 0x436F5465
"""`CoTe` in the file's header, so that somebody else's database is never written."""
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_log = logging.getLogger(__name__)


class _Damaged(Exception):
    """The file is no database, or a broken one."""


def open_database(path: Path, *, busy_timeout_s: float) -> Engine:
    """Open or create the database, to be used by the calling thread alone.

    A damaged file is moved aside with a warning and a new one begun. A file that cannot be opened at all
    (the disk, its rights) makes way for one in memory, likewise. Raises StoreError for a database of a newer
    Cotenant, or of another program: neither is touched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _open(path, busy_timeout_s)
        except _Damaged:
            aside = _move_aside(path)
            _log.warning("%s is damaged: it is now %s, and a new one is begun", path, aside.name)
            return _open(path, busy_timeout_s)
    except (SQLAlchemyError, OSError) as error:
        why = getattr(error, "orig", None) or error
        _log.warning("%s cannot be used, so nothing is remembered after this run: %s", path, why)
        return _open(None, busy_timeout_s)


def _open(path: Path | None, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=None if path is None else str(path)),
        poolclass=StaticPool,
        connect_args={"timeout": busy_timeout_s},
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    try:
        with engine.begin() as connection:
            _adopt(connection, path)
    except BaseException as error:
        engine.dispose()
        if getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            raise _Damaged from error
        raise
    return engine


def _configure(connection: Any, _record: object) -> None:
    # The driver's own transactions begin too late, after the reads that a write depends on.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # IMMEDIATE, since a deferred transaction that turns into a write fails at once, whatever the timeout.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _adopt(connection: Connection, path: Path | None) -> None:
    """Make the tables of an empty file; of any other, check that it is sound and ours."""
    if _pragma(connection, "schema_version") == 0:
        metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program", hint="Move it away, or choose another directory."
        )
    version = _pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has version {version} of the tables, and this Cotenant knows version {SCHEMA_VERSION}",
            hint="Run the Cotenant that wrote it or a newer one, or move the file away to begin anew.",
        )
    verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if verdict != "ok":
        raise _Damaged(verdict)


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _move_aside(path: Path) -> Path:
    """Rename the file with its journal, which SQLite finds by name."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            os.replace(old, aside.with_name(aside.name + suffix))
    return aside
