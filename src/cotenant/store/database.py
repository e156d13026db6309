"""The database of one thread: open, or replaced by one in memory until it can be opened."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from cotenant.clock import Clock
from cotenant.domain.errors import StoreError
from cotenant.store import postgres, sqlite
from cotenant.store.location import Location, explain, unusable
from cotenant.store.repositories import Records
from cotenant.store.services.rows import ServiceRows

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """One transaction, and the stored data as it sees them."""

    connection: Connection
    records: Records
    services: ServiceRows


class Unusable(Exception):
    """The database cannot be opened now; the text is the reason."""


def open_engine(location: Location, *, busy_timeout_s: float) -> Engine:
    """Open or create the database with its tables up to date, to be used by the calling thread alone.

    Raises Damaged, Unusable, and StoreError or BadSetting for one that must not be used as it is.
    """
    try:
        if location.path is not None:
            location.path.parent.mkdir(parents=True, exist_ok=True)
        engine = connect(location, busy_timeout_s=busy_timeout_s)
        try:
            with engine.begin() as connection:
                if location.url is None:
                    sqlite.prepare(connection, location.path)
                else:
                    postgres.prepare(connection, location)
        except BaseException as error:
            engine.dispose()
            if sqlite.is_damage(error):
                raise sqlite.Damaged from error
            raise
    except (SQLAlchemyError, OSError) as error:
        raise Unusable(explain(error)) from error
    return engine


def connect(location: Location, *, busy_timeout_s: float) -> Engine:
    """Return an engine that connects when used. Raises StoreError or BadSetting for an unusable URL."""
    if location.url is None:
        return sqlite.connect(location.path, busy_timeout_s=busy_timeout_s)
    return postgres.connect(location, lock_timeout_s=busy_timeout_s)


def stored_version(connection: Connection, location: Location) -> int:
    """Return the number of the tables' revision, 0 if there are none yet. Raises StoreError for others'."""
    if location.url is None:
        return sqlite.stored_version(connection, location.path)
    return postgres.stored_version(connection, location)


@contextmanager
def session(engine: Engine) -> Iterator[Session]:
    """One transaction, committed at the end of the block unless it raises."""
    with engine.begin() as connection:
        yield Session(connection, Records(connection), ServiceRows(connection))


class Database:
    """The database as one thread holds it.

    While it cannot be opened or written, records are kept in memory, with a warning, and it is tried again
    at most every `retry_s` and at the end; once it can be, they are written to it. A damaged file is renamed
    with a warning and a new one created, while it is in use too; one that is gone is created anew. Raises
    StoreError or BadSetting for a database that must not be used.
    """

    def __init__(self, location: Location, *, busy_timeout_s: float, retry_s: float, clock: Clock) -> None:
        self.location = location
        self._busy_timeout_s = busy_timeout_s
        self._retry_s = retry_s
        self._clock = clock
        self._problem: str | None = None
        self._tried_at = clock.now()
        try:
            self._engine = self._open()
        except Unusable as error:
            self._keep_in_memory(str(error))

    def use(self, work: Callable[[Records], T]) -> T:
        """Store or find records, in one transaction: in memory while the database cannot be used."""
        self._try_again()
        try:
            with session(self._engine) as opened:
                return work(opened.records)
        except SQLAlchemyError as error:
            if self._problem is not None:
                raise
            self._engine.dispose()
            self._keep_in_memory(explain(error))
        with session(self._engine) as opened:
            return work(opened.records)

    def durable(self) -> AbstractContextManager[Session]:
        """A transaction for data that must not be lost. Raises StoreError while there is no database."""
        self._try_again(at_once=True)
        if self._problem is not None:
            raise unusable(self.location, self._problem)
        return session(self._engine)

    def close(self) -> None:
        """Close what is open, after a last try to write what is in memory."""
        self._try_again(at_once=True)
        self._engine.dispose()

    def _open(self) -> Engine:
        path = self.location.path
        try:
            engine = open_engine(self.location, busy_timeout_s=self._busy_timeout_s)
        except sqlite.Damaged:
            if path is None:
                raise
            try:
                renamed = sqlite.rename_damaged(path)
            except OSError as error:
                raise Unusable(f"it is damaged, and cannot be renamed: {explain(error)}") from error
            _log.warning("%s is damaged: it is now %s, and a new one is created", path, renamed.name)
            engine = open_engine(self.location, busy_timeout_s=self._busy_timeout_s)
        self._inode = None if path is None else os.stat(path).st_ino
        return engine

    def _keep_in_memory(self, problem: str) -> None:
        self._problem, self._tried_at = problem, self._clock.now()
        self._engine = open_engine(Location(), busy_timeout_s=self._busy_timeout_s)
        _log.warning(
            "%s cannot be used, so nothing is remembered after this run unless it recovers: %s",
            self.location,
            problem,
        )

    def _is_gone(self) -> bool:
        """Whether the open file is no longer the one at its path: SQLite would write to it all the same."""
        path = self.location.path
        if path is None:
            return False
        try:
            return os.stat(path).st_ino != self._inode
        except OSError:
            return True

    def _try_again(self, at_once: bool = False) -> None:
        if self._problem is None and self._is_gone():
            self._engine.dispose()
            self._keep_in_memory("the file was deleted or replaced")
            at_once = True
        if self._problem is None or not (at_once or self._clock.now() >= self._tried_at + self._retry_s):
            return
        durable: Engine | None = None
        try:
            durable = self._open()
            with session(self._engine) as memory, session(durable) as opened:
                count = opened.records.copy_from(memory.records)
        except (Unusable, SQLAlchemyError, StoreError) as error:
            self._problem = explain(error)
            if durable is not None:
                durable.dispose()
            return
        finally:
            self._tried_at = self._clock.now()
        _log.warning("%s can be used again; %d records from memory were written to it", self.location, count)
        self._engine.dispose()
        self._engine, self._problem = durable, None
