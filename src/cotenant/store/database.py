"""The database: opened where it is, or in memory until it can be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from cotenant.clock import Clock
from cotenant.domain.errors import StoreError
from cotenant.store.location import Location
from cotenant.store.postgres import open_server
from cotenant.store.repositories import Records
from cotenant.store.services.store import ServiceRows
from cotenant.store.sqlite import Damaged, move_aside, open_file

_AWAY_HINT: Final = "Check that it runs and that the URL, the user and the password are right."
_UNUSABLE_HINT: Final = "Check the disk, the rights on the file and its folder, and who else holds it locked."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """One transaction, and what is kept as it sees it."""

    connection: Connection
    records: Records
    services: ServiceRows


class Unusable(Exception):
    """The database cannot be opened for now, with the reason."""


def open_engine(location: Location, *, busy_timeout_s: float) -> Engine:
    """Open or create the database with its tables up to date, to be used by the calling thread alone.

    Raises Damaged, Unusable, and StoreError or BadSetting for one that must not be used as it is.
    """
    try:
        if location.path is None:
            return open_server(location, lock_timeout_s=busy_timeout_s)
        location.path.parent.mkdir(parents=True, exist_ok=True)
        return open_file(location.path, busy_timeout_s=busy_timeout_s)
    except (SQLAlchemyError, OSError) as error:
        raise Unusable(explain(error)) from error


def unusable(location: Location, why: str) -> StoreError:
    """Return the error for a database that cannot be opened or used."""
    hint = _AWAY_HINT if location.path is None else _UNUSABLE_HINT
    return StoreError(f"{location} cannot be used: {why}", hint=hint)


@contextmanager
def session(engine: Engine) -> Iterator[Session]:
    """One transaction, committed at the end of the block unless it raises."""
    with engine.begin() as connection:
        yield Session(connection, Records(connection), ServiceRows(connection))


class Database:
    """The database as one thread holds it.

    While it cannot be opened, records are kept in memory, with a warning, and it is tried again at most every
    `retry_s`; once it can be, they are written to it. A damaged file is moved aside with a warning and a new
    one begun. Raises StoreError or BadSetting for a database that must not be used.
    """

    def __init__(self, location: Location, *, busy_timeout_s: float, retry_s: float, clock: Clock) -> None:
        self.location = location
        self._busy_timeout_s = busy_timeout_s
        self._retry_s = retry_s
        self._clock = clock
        self._memory: Engine | None = None
        self._lasting: Engine | None = None
        self._why = ""
        try:
            self._lasting = self._open()
        except Unusable as error:
            self._why = str(error)
            self._memory = open_file(None, busy_timeout_s=busy_timeout_s)
            _log.warning(
                "%s cannot be used, so nothing is remembered after this run unless it comes back: %s",
                location,
                self._why,
            )
        self._tried_at = clock.now()

    @contextmanager
    def records(self) -> Iterator[Session]:
        """A transaction for what may be lost: in memory while there is nothing better."""
        self._try_again()
        engine = self._lasting or self._memory
        if engine is None:
            raise AssertionError("one of them is always open")
        with session(engine) as opened:
            yield opened

    @contextmanager
    def lasting(self) -> Iterator[Session]:
        """A transaction for what must not be lost. Raises StoreError while the database cannot be opened."""
        self._try_again()
        if self._lasting is None:
            raise unusable(self.location, self._why)
        with session(self._lasting) as opened:
            yield opened

    def close(self) -> None:
        """Close what is open."""
        for engine in (self._lasting, self._memory):
            if engine is not None:
                engine.dispose()

    def _open(self) -> Engine:
        try:
            return open_engine(self.location, busy_timeout_s=self._busy_timeout_s)
        except Damaged:
            path = self.location.path
            if path is None:
                raise
            try:
                aside = move_aside(path)
            except OSError as error:
                raise Unusable(f"it is damaged, and cannot be moved aside: {explain(error)}") from error
            _log.warning("%s is damaged: it is now %s, and a new one is begun", path, aside.name)
            return open_engine(self.location, busy_timeout_s=self._busy_timeout_s)

    def _try_again(self) -> None:
        now = self._clock.now()
        if self._memory is None or now < self._tried_at + self._retry_s:
            return
        lasting: Engine | None = None
        try:
            lasting = self._open()
            with session(self._memory) as kept, session(lasting) as opened:
                count = opened.records.take_over(kept.records)
        except (Unusable, SQLAlchemyError, StoreError) as error:
            self._why = explain(error)
            if lasting is not None:
                lasting.dispose()
            return
        finally:
            self._tried_at = self._clock.now()
        _log.warning("%s can be used again; %d records made meanwhile are in it", self.location, count)
        self._memory.dispose()
        self._memory, self._lasting = None, lasting


def explain(error: Exception) -> str:
    """Return what went wrong in one line, without the statement that met it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
