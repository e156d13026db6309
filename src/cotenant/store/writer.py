"""The only thread that uses the database, so that no other thread waits for a disk or a server."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cotenant.clock import Clock, SystemClock
from cotenant.domain.errors import StoreError
from cotenant.store.location import Location, locate

if TYPE_CHECKING:
    from cotenant.domain.records import Record
    from cotenant.store.database import Database, Session
    from cotenant.store.repositories import Records

T = TypeVar("T")
_MAX_BATCH: Final = 500
_CLOSES_WITHIN_S: Final = 15.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    """A read, the future of its result, and the result if the database cannot be read."""

    read: Callable[[Records], Any]
    answer: Future[Any]
    default: Any


@dataclass(frozen=True, slots=True)
class _Task:
    """Work in a transaction of its own; its exception is raised to the caller."""

    work: Callable[[Session], Any]
    answer: Future[Any]


class Writer:
    """Writes records and performs reads in the order given; many records share one transaction.

    Only the thread imports SQLAlchemy, so a program that never opens a database does not import it.
    A failure to write records is logged once, until writing succeeds again; those records are lost. At most
    `max_waiting` wait; further ones are lost too. Tasks are never lost: they are done, or raise. Raises
    StoreError and BadSetting as `Database` does.
    """

    def __init__(
        self,
        where: Path | str | Location,
        *,
        busy_timeout_s: float = 5.0,
        max_waiting: int = 10_000,
        retry_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._location = locate(where)
        self._waiting: queue.Queue[Record | _Read | _Task | None] = queue.Queue(max_waiting)
        self._lost = 0
        self._count_lock = threading.Lock()
        self._unreadable = False
        # Nothing may be queued after the item that ends the thread: it would never be answered.
        self._queue_lock = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()

        def run() -> None:
            self._run(opened, busy_timeout_s, retry_s, clock or SystemClock())

        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=run, name="store", daemon=True)
        self._thread.start()
        opened.result()

    def put(self, record: Record) -> None:
        """Queue a record to be written, unless closed. Never blocks."""
        if self._put(record) is False:
            self._count_lost(1, "the disk does not keep up")

    def read(self, read: Callable[[Records], T], default: T) -> Future[T]:
        """Queue a read, after everything queued before. Never blocks."""
        answer: Future[T] = Future()
        if not self._put(_Read(read, answer, default)):
            answer.set_result(default)
        return answer

    def do(self, work: Callable[[Session], T]) -> Future[T]:
        """Queue work in one transaction of the durable database, after everything queued before.

        Never blocks. The future raises StoreError for a database that cannot be used, and whatever `work`
        raises; nothing is written then.
        """
        answer: Future[T] = Future()
        queued = self._put(_Task(work, answer))
        if not queued:
            why = "is closed" if queued is None else "does not keep up"
            answer.set_exception(
                StoreError(f"{self._location} {why}", hint="Try again; check the disk or the server.")
            )
        return answer

    def close(self, within_s: float = _CLOSES_WITHIN_S) -> None:
        """Wait until everything queued is written and the database is closed; what comes later is dropped.

        Waits at most `within_s` for a disk or a server that does not respond, then logs a warning.
        """
        deadline = time.monotonic() + within_s
        with self._queue_lock:
            self._closed = True
        if self._thread.is_alive():
            # At each call: at the first there may have been no room.
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=within_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _log.warning("%s does not respond: what was still to be written is lost", self._location)

    def _put(self, item: Record | _Read | _Task) -> bool | None:
        """Queue an item for the thread: False if the queue is full, None once closed."""
        with self._queue_lock:
            if self._closed:
                return None
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                return False
            return True

    def _run(self, opened: Future[None], busy_timeout_s: float, retry_s: float, clock: Clock) -> None:
        try:
            from cotenant.store.database import Database

            database = Database(self._location, busy_timeout_s=busy_timeout_s, retry_s=retry_s, clock=clock)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while self._serve(database):
                pass
        finally:
            database.close()

    def _serve(self, database: Database) -> bool:
        """Write the records that wait now, and do the task after them, if any; False once closed."""
        batch: list[Record] = []
        item = self._waiting.get()
        try:
            while item is not None and not isinstance(item, (_Read, _Task)):
                batch.append(item)
                if len(batch) == _MAX_BATCH:
                    break
                item = self._waiting.get_nowait()
        except queue.Empty:
            pass
        if batch:
            self._write(database, batch)
        if isinstance(item, _Read):
            self._do_read(database, item)
        elif isinstance(item, _Task):
            self._do_task(database, item)
        return item is not None

    def _write(self, database: Database, batch: list[Record]) -> None:
        try:
            with database.records() as session:
                session.records.add(batch)
        except Exception as error:
            self._count_lost(len(batch), _explain(error))
            return
        with self._count_lock:
            lost, self._lost = self._lost, 0
        if lost:
            _log.warning("%s is written again; %d records were lost", self._location, lost)

    def _do_read(self, database: Database, pending: _Read) -> None:
        if not pending.answer.set_running_or_notify_cancel():
            return
        found = pending.default
        try:
            with database.records() as session:
                found = pending.read(session.records)
        except Exception as error:
            if not self._unreadable:
                _log.warning("%s cannot be read: %s", self._location, _explain(error))
            self._unreadable = True
        else:
            self._unreadable = False
        pending.answer.set_result(found)

    def _do_task(self, database: Database, task: _Task) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        if not task.answer.set_running_or_notify_cancel():
            return
        try:
            with database.durable() as session:
                result = task.work(session)
        except SQLAlchemyError as error:
            from cotenant.store.database import unusable

            task.answer.set_exception(unusable(self._location, _explain(error)))
        except BaseException as error:
            task.answer.set_exception(error)
        else:
            task.answer.set_result(result)

    def _count_lost(self, count: int, why: str) -> None:
        with self._count_lock:
            first, self._lost = not self._lost, self._lost + count
        if first:
            _log.warning("%s cannot be written, so nothing is remembered for now: %s", self._location, why)


def _explain(error: Exception) -> str:
    from cotenant.store.database import explain

    return explain(error)
