"""What an operator does to a database by hand; a daemon may be using it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cotenant.domain.errors import StoreError
from cotenant.services.model import SeenDevice
from cotenant.store import postgres, sqlite
from cotenant.store.backup import Backup, Restoration, put_back, take
from cotenant.store.backup_file import read_backup, write_backup
from cotenant.store.database import Unusable, explain, open_engine, session, unusable
from cotenant.store.location import Location
from cotenant.store.versions import HEAD

if TYPE_CHECKING:
    from cotenant.store.database import Session

_BUSY_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Which revision a database has; None if there are no tables yet."""

    revision: str | None
    head: str = HEAD

    @property
    def newer(self) -> bool:
        """Whether a newer Cotenant made it."""
        return self.revision is not None and int(self.revision) > int(self.head)


def standing(location: Location) -> Standing:
    """Look at a database and change nothing. Raises StoreError."""
    if location.path is not None and not location.path.exists():
        return Standing(None)
    with _told(location):
        engine = _connect(location)
        try:
            with engine.connect() as connection:
                if location.path is not None:
                    version = sqlite.stored_version(connection, location.path)
                else:
                    version = postgres.stored_version(connection, location)
        finally:
            engine.dispose()
    return Standing(f"{version:0{len(HEAD)}}" if version else None)


def upgrade(location: Location) -> Standing:
    """Bring the tables up to date, making them where there are none; return what was before."""
    before = standing(location)
    with _opened(location):
        return before


def back_up(location: Location, path: Path, *, overwrite: bool = False) -> Backup:
    """Write a backup of what is in the database now. Raises StoreError."""
    _require(location)
    with _opened(location, snapshot=True) as opened:
        backup = take(opened, time.time())
    write_backup(path, backup, overwrite=overwrite)
    return backup


def restore(
    location: Location, path: Path, here: Sequence[SeenDevice], *, safe: Path | None = None
) -> Restoration:
    """Put a backup into the database, on the machine whose GPUs are `here`, in one transaction.

    A GPU configuration that is there already is replaced only if `safe` names a file to keep it in. Raises
    StoreError, and nothing has changed then.
    """
    backup = read_backup(path)
    keep_safe = None if safe is None else lambda former: write_backup(safe, former)
    with _opened(location) as opened:
        return put_back(opened, backup, here, time.time(), keep_safe)


def _require(location: Location) -> None:
    if location.path is not None and not location.path.exists():
        raise StoreError(
            f"there is no database at {location}", hint="Give --database, or start `cotenant serve` first."
        )


@contextmanager
def _opened(location: Location, *, snapshot: bool = False) -> Iterator[Session]:
    with _told(location):
        engine = open_engine(location, busy_timeout_s=_BUSY_TIMEOUT_S)
        seeing = engine
        if snapshot and location.path is None:
            # Several statements of one transaction see different moments otherwise.
            seeing = engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with session(seeing) as opened:
                yield opened
        finally:
            engine.dispose()


def _connect(location: Location) -> Engine:
    if location.path is None:
        return postgres.connect_server(location, lock_timeout_s=_BUSY_TIMEOUT_S)
    return sqlite.connect_file(location.path, busy_timeout_s=_BUSY_TIMEOUT_S)


@contextmanager
def _told(location: Location) -> Iterator[None]:
    """Tell what goes wrong with the database as a StoreError."""
    try:
        yield
    except (Unusable, SQLAlchemyError) as error:
        if isinstance(error, SQLAlchemyError) and sqlite.is_damage(error):
            raise _damaged(location) from error
        raise unusable(location, explain(error)) from error
    except sqlite.Damaged as error:
        raise _damaged(location) from error


def _damaged(location: Location) -> StoreError:
    return StoreError(
        f"{location} is damaged",
        hint="Move it away, and restore a backup; `cotenant serve` moves it aside by itself.",
    )
