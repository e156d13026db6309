"""The commands of `cotenant db`: status, upgrade, backup, restore. A daemon may be using the database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from cotenant.domain.errors import StoreError
from cotenant.domain.keys import KeyUses
from cotenant.services.model import SeenDevice
from cotenant.store import sqlite
from cotenant.store.backup import Backup, RestoreResult, read_backup, take, write_backup
from cotenant.store.backup import restore as restore_backup
from cotenant.store.database import Unusable, connect, open_engine, session, stored_version
from cotenant.store.location import Location, explain, unusable
from cotenant.store.migrations import HEAD

if TYPE_CHECKING:
    from cotenant.store.database import Session

_BUSY_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Which revision a database has; None if there are no tables yet."""

    revision: str | None
    head: str = HEAD

    @property
    def newer(self) -> bool:
        """Whether a newer Cotenant made it."""
        return self.revision is not None and int(self.revision) > int(self.head)


def database_status(location: Location) -> DatabaseStatus:
    """Look at a database and change nothing. Raises StoreError."""
    if location.path is not None and not location.path.exists():
        return DatabaseStatus(None)
    with _store_errors(location):
        engine = connect(location, busy_timeout_s=_BUSY_TIMEOUT_S)
        try:
            with engine.connect() as connection:
                version = stored_version(connection, location)
        finally:
            engine.dispose()
    return DatabaseStatus(f"{version:0{len(HEAD)}}" if version else None)


def upgrade(location: Location) -> DatabaseStatus:
    """Bring the tables up to date, creating missing ones; return the status before."""
    before = database_status(location)
    with _opened(location):
        return before


def back_up(location: Location, path: Path, *, overwrite: bool = False) -> Backup:
    """Write a backup of what is in the database now. Raises StoreError."""
    if location.path is not None and not location.path.exists():
        raise StoreError(
            f"there is no database at {location}", hint="Give --database, or start `cotenant serve` first."
        )
    with _opened(location, snapshot=True) as opened:
        backup = take(opened, time.time())
    write_backup(path, backup, overwrite=overwrite)
    return backup


def restore(
    location: Location, path: Path, here: Sequence[SeenDevice], *, replaced: Path | None = None
) -> RestoreResult:
    """Restore a backup into the database, on the machine whose GPUs are `here`, in one transaction.

    A GPU configuration that is there already is replaced only if `replaced` names a file to keep it in. Where
    it raises StoreError, nothing has changed.
    """
    backup = read_backup(path)
    save_replaced = None if replaced is None else lambda former: write_backup(replaced, former)
    with _opened(location) as opened:
        return restore_backup(opened, backup, here, time.time(), save_replaced)


def key_uses(location: Location, day: str) -> Mapping[str, KeyUses]:
    """Return what API keys have used, in all and on a day; change nothing. Raises StoreError.

    Nothing is known of a database that is not there, or of another revision than this program's.
    """
    status = database_status(location)
    if status.revision != status.head:
        return {}
    with _opened(location) as opened:
        return opened.records.key_uses.totals(day)


@contextmanager
def _opened(location: Location, *, snapshot: bool = False) -> Iterator[Session]:
    with _store_errors(location):
        engine = open_engine(location, busy_timeout_s=_BUSY_TIMEOUT_S)
        reading = engine
        if snapshot and location.path is None:
            # Otherwise several statements of one transaction see different states.
            reading = engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with session(reading) as opened:
                yield opened
        finally:
            engine.dispose()


@contextmanager
def _store_errors(location: Location) -> Iterator[None]:
    try:
        yield
    except (Unusable, SQLAlchemyError, sqlite.Damaged) as error:
        if isinstance(error, sqlite.Damaged) or sqlite.is_damage(error):
            hint = "Move it away, and restore a backup; `cotenant serve` renames it by itself."
            raise StoreError(f"{location} is damaged", hint=hint) from error
        raise unusable(location, explain(error)) from error
