"""The only thread that uses the database, so that no other thread waits for a disk or a server."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cotenant.clock import Clock, SystemClock
from cotenant.domain.errors import StoreError
from cotenant.store.location import Location, explain, locate, unusable

if TYPE_CHECKING:
    from cotenant.domain.records import Record
    from cotenant.store.database import Database, Session
    from cotenant.store.repositories import Records

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Writer:
    """Writes records and performs reads in the order given; many records share one transaction.

    The database is given by its path or URL. Opening it waits for the disk or the server: do it before the
    event loop runs, or in a thread. Raises StoreError for a database that is a newer Cotenant's or another
    program's, or whose driver is missing, and BadSetting for a URL that cannot be used.

    Only the thread imports SQLAlchemy, so a program that never opens a database does not import it.
    Records that cannot be written are kept in memory, as `Database` says. At most `max_waiting` wait for a
    slow disk; further ones are lost, which is logged once, until writing succeeds again. Tasks are never
    lost: they are done, or raise. A lock that another program holds is waited for during `busy_timeout_s`. An
    unavailable database is tried again after `retry_s`, at the next request.
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
        self._waiting: queue.Queue[Record | Callable[[Database], None] | None] = queue.Queue(max_waiting)
        self._lost = 0
        self._count_lock = threading.Lock()
        # Nothing may be queued after the item that ends the thread: it would never be answered.
        self._queue_lock = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        arguments = (opened, busy_timeout_s, retry_s, clock or SystemClock())
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=arguments, name="store", daemon=True)
        self._thread.start()
        opened.result()

    def put(self, record: Record) -> None:
        """Queue a record to be written, unless closed. Never blocks."""
        if self._put(record) is False:
            self._count_lost(1, "the disk does not keep up")

    def read(self, read: Callable[[Records], T], default: T) -> Future[T]:
        """Queue a read, after everything queued before. Never blocks."""
        answer: Future[T] = Future()
        if not self._put(lambda database: self._do_read(database, read, answer, default)):
            answer.set_result(default)
        return answer

    def do(self, work: Callable[[Session], T]) -> Future[T]:
        """Queue work in one transaction of the durable database, after everything queued before.

        Never blocks. The future raises StoreError for a database that cannot be used, and whatever `work`
        raises; nothing is written then.
        """
        answer: Future[T] = Future()
        queued = self._put(lambda database: self._do_task(database, work, answer))
        if not queued:
            why = "is closed" if queued is None else "does not keep up"
            answer.set_exception(
                StoreError(f"{self._location} {why}", hint="Try again; check the disk or the server.")
            )
        return answer

    def close(self, within_s: float = 15.0) -> None:
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

    def _put(self, item: Record | Callable[[Database], None]) -> bool | None:
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
        """Write the records that wait now, and do what comes after them, if anything; False once closed."""
        batch: list[Record] = []
        item = self._waiting.get()
        try:
            while item is not None and not callable(item):
                batch.append(item)
                if len(batch) == 500:
                    break
                item = self._waiting.get_nowait()
        except queue.Empty:
            pass
        if batch:
            self._write(database, batch)
        if callable(item):
            item(database)
        return item is not None

    def _write(self, database: Database, batch: list[Record]) -> None:
        try:
            database.use(lambda records: records.add(batch))
        except Exception as error:
            self._count_lost(len(batch), explain(error))
            return
        with self._count_lock:
            lost, self._lost = self._lost, 0
        if lost:
            _log.warning("%s is written again; %d records were lost", self._location, lost)

    def _do_read(
        self, database: Database, read: Callable[[Records], T], answer: Future[T], default: T
    ) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(database.use(read))
        except Exception as error:
            _log.warning("%s cannot be read: %s", self._location, explain(error))
            answer.set_result(default)

    def _do_task(self, database: Database, work: Callable[[Session], T], answer: Future[T]) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        if not answer.set_running_or_notify_cancel():
            return
        try:
            with database.durable() as session:
                result = work(session)
        except SQLAlchemyError as error:
            answer.set_exception(unusable(self._location, explain(error)))
        except BaseException as error:
            answer.set_exception(error)
        else:
            answer.set_result(result)

    def _count_lost(self, count: int, why: str) -> None:
        with self._count_lock:
            first, self._lost = not self._lost, self._lost + count
        if first:
            _log.warning("%s cannot be written, so nothing is remembered for now: %s", self._location, why)
