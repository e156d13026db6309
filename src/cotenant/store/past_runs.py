"""Past runs, for commands that only read them: without SQLAlchemy, which would be most of their time."""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cotenant.analysis.calibration import LEARNED_FROM, past_runs
from cotenant.domain.records import PastRuns
from cotenant.store.file_reader import read_file
from cotenant.store.location import locate
from cotenant.store.record_rows import footprint_of, load_of

R = TypeVar("R")


def read_past_runs(database: Path | str, default_overhead_bytes: int) -> PastRuns:
    """Return what a database has of past runs; nothing if there is no such file. Raises StoreError.

    A file with today's tables is read as it is. A server, and a file that is older or damaged, is opened as
    the daemon opens it, which upgrades or replaces it.
    """
    location = locate(database)
    if location.path is not None:
        if not location.path.is_file():
            return PastRuns()
        rows = read_file(
            location.path,
            lambda file: (_newest(file, "footprints", footprint_of), _newest(file, "loads", load_of)),
        )
        if rows is not None:
            return past_runs(*rows, default_overhead_bytes)
    import asyncio

    from cotenant.store.store import SqlJournal
    from cotenant.store.writer import Writer

    async def open_and_read() -> PastRuns:
        journal = SqlJournal(Writer(location))
        try:
            return await journal.past_runs(default_overhead_bytes)
        finally:
            await journal.close()

    return asyncio.run(open_and_read())


def _newest(
    connection: sqlite3.Connection, table: str, from_row: Callable[[Mapping[str, Any]], R]
) -> list[R]:
    rows = connection.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT {LEARNED_FROM}")  # noqa: S608
    return [from_row({**row}) for row in rows][::-1]
