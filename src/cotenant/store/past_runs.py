"""Past runs, for commands that only read them: without SQLAlchemy, which would be most of their time."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from cotenant.analysis.calibration import LEARNED_FROM, past_runs
from cotenant.domain.records import PastRuns
from cotenant.store.location import APPLICATION_ID, locate
from cotenant.store.migrations import HEAD
from cotenant.store.record_rows import footprint_of, load_of

R = TypeVar("R")
_BUSY_TIMEOUT_S: Final = 5.0


def read_past_runs(database: Path | str, default_overhead_bytes: int) -> PastRuns:
    """Return what a database has of past runs; nothing if there is no such file. Raises StoreError.

    A file with today's tables is read as it is. A server, and a file that is older or damaged, is opened as
    the daemon opens it, which upgrades or replaces it.
    """
    location = locate(database)
    if location.path is not None:
        if not location.path.is_file():
            return PastRuns()
        found = _from_file(location.path, default_overhead_bytes)
        if found is not None:
            return found
    from cotenant.store.store import SqlJournal
    from cotenant.store.writer import Writer

    async def open_and_read() -> PastRuns:
        journal = SqlJournal(Writer(location))
        try:
            return await journal.past_runs(default_overhead_bytes)
        finally:
            await journal.close()

    return asyncio.run(open_and_read())


def _from_file(path: Path, default_overhead_bytes: int) -> PastRuns | None:
    """Return what a file with today's tables has; None for any other, and for one that cannot be read."""
    try:
        # `rw` does not create it, and leaves no journal behind as `ro` would.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            pragmas = (("application_id", APPLICATION_ID), ("user_version", int(HEAD)))
            if any(connection.execute(f"PRAGMA {name}").fetchone()[0] != value for name, value in pragmas):
                return None
            footprints = _newest(connection, "footprints", footprint_of)
            loads = _newest(connection, "loads", load_of)
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError):
        return None
    return past_runs(footprints, loads, default_overhead_bytes)


def _newest(
    connection: sqlite3.Connection, table: str, from_row: Callable[[Mapping[str, Any]], R]
) -> list[R]:
    rows = connection.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT {LEARNED_FROM}")  # noqa: S608
    return [from_row({**row}) for row in rows][::-1]
