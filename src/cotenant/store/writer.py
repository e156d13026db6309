"""The one thread that touches the database, so that nobody else ever waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cotenant.store.repositories import Record, Records

T = TypeVar("T")
_MAX_BATCH: Final = 500
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """Something to read, where its answer is awaited, and what stands for it if nothing can be read."""

    read: Callable[[Records], Any]
    answer: Future[Any]
    otherwise: Any


class Writer:
    """Writes records in the order given, many in one transaction, and answers questions in their turn.

    SQLAlchemy is imported by the thread alone: a program that never opens a database does not pay for it.
    A fault is told once, until writing succeeds again; the records that met it are lost. At most
    `max_waiting` wait; those beyond are lost likewise. Raises StoreError as `open_database` does.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float, max_waiting: int) -> None:
        self._path = path
        self._waiting: queue.Queue[Record | _Question | None] = queue.Queue(max_waiting)
        self._lost = 0
        self._counting = threading.Lock()
        self._unreadable = False
        opened: Future[None] = Future()
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._run, args=(opened, busy_timeout_s), name="journal", daemon=True
        )
        self._thread.start()
        opened.result()

    def put(self, record: Record) -> None:
        """Have a record written. Never blocks."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._lose(1, "the disk does not keep up")

    def ask(self, read: Callable[[Records], T], otherwise: T) -> Future[T]:
        """Have something read, after all that was put before. Never blocks."""
        answer: Future[T] = Future()
        try:
            self._waiting.put_nowait(_Question(read, answer, otherwise))
        except queue.Full:
            answer.set_result(otherwise)
        return answer

    def close(self) -> None:
        """Wait until all that was put is written and the file is closed. Nothing may be put after it."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self, opened: Future[None], busy_timeout_s: float) -> None:
        try:
            from cotenant.store.database import open_database
            from cotenant.store.repositories import Records

            engine = open_database(self._path, busy_timeout_s=busy_timeout_s)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while self._serve(engine, Records):
                pass
        finally:
            engine.dispose()

    def _serve(self, engine: Engine, open_records: type[Records]) -> bool:
        """Write what waits now, and answer the question that ends it, if any; False once closed."""
        batch: list[Record] = []
        item = self._waiting.get()
        try:
            while item is not None and not isinstance(item, _Question):
                batch.append(item)
                if len(batch) == _MAX_BATCH:
                    break
                item = self._waiting.get_nowait()
        except queue.Empty:
            pass
        if batch:
            self._write(engine, open_records, batch)
        if isinstance(item, _Question):
            self._answer(engine, open_records, item)
        return item is not None

    def _write(self, engine: Engine, open_records: type[Records], batch: list[Record]) -> None:
        try:
            with engine.begin() as connection:
                open_records(connection).add(batch)
        except Exception as error:
            self._lose(len(batch), _explain(error))
            return
        with self._counting:
            lost, self._lost = self._lost, 0
        if lost:
            _log.warning("%s is written again; %d records were lost", self._path, lost)

    def _answer(self, engine: Engine, open_records: type[Records], question: _Question) -> None:
        if not question.answer.set_running_or_notify_cancel():
            return
        found = question.otherwise
        try:
            with engine.begin() as connection:
                found = question.read(open_records(connection))
        except Exception as error:
            if not self._unreadable:
                _log.warning("%s cannot be read: %s", self._path, _explain(error))
            self._unreadable = True
        else:
            self._unreadable = False
        question.answer.set_result(found)

    def _lose(self, count: int, why: str) -> None:
        with self._counting:
            first, self._lost = not self._lost, self._lost + count
        if first:
            _log.warning("%s cannot be written, so nothing is remembered for now: %s", self._path, why)


def _explain(error: Exception) -> str:
    """Return what went wrong in one line, without the statement that met it."""
    return str(getattr(error, "orig", None) or error)
