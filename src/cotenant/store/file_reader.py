"""Reads an SQLite file for a command: without SQLAlchemy, which would be most of the command's time."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

from cotenant.store.location import APPLICATION_ID
from cotenant.store.migrations import HEAD

T = TypeVar("T")
_BUSY_TIMEOUT_S: Final = 5.0


def read_file(path: Path, read: Callable[[sqlite3.Connection], T]) -> T | None:
    """Return what is read from a file with today's tables, in one transaction, by the names of columns.

    None for any other file, and for one that cannot be read.
    """
    try:
        # `rw` does not create it, and leaves no journal behind as `ro` would.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            pragmas = (("application_id", APPLICATION_ID), ("user_version", int(HEAD)))
            if any(connection.execute(f"PRAGMA {name}").fetchone()[0] != value for name, value in pragmas):
                return None
            return read(connection)
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError):
        return None
