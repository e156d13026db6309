"""One open database: the record of loads, footprints and decisions in it, and GPU configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from cotenant.analysis.calibration import estimate_errors, expected_load_times, learned_overheads, seen_bytes
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadTimes, Record
from cotenant.store.writer import Writer

if TYPE_CHECKING:
    from cotenant.store.repositories import Records
    from cotenant.store.services.store import SqlServiceStore

T = TypeVar("T")
_LEARNED_FROM: Final = 2_000


class SqlJournal:
    """Stores footprints, load times and decisions from one run of the daemon to the next.

    It is in a database that several daemons may share. Recording returns at once and never fails: what cannot
    be stored is logged once and dropped. Answers are empty while nothing can be read.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def record(self, record: Record) -> None:
        """Record the memory of a load on one device, the duration of a load, or a decision."""
        self._writer.put(record)

    async def overheads(self, default_bytes: int, engine: str | None = None) -> Mapping[str, int]:
        """Return the overhead learned per device name; `calibration.learned_overheads` states the rule."""
        return learned_overheads(await self._footprints(), default_bytes, engine)

    async def estimate_errors(self) -> Mapping[str, float]:
        """Return how far off predictions were per model, as a fraction of what was measured."""
        return estimate_errors(await self._footprints())

    async def seen_bytes(self) -> Mapping[str, int]:
        """Return the bytes that each model was last measured to hold, if a driver reports them."""
        return seen_bytes(await self._footprints())

    async def load_times(self) -> Mapping[str, LoadTimes]:
        """Return the expected duration of each model's next load, from its last ones."""
        return expected_load_times(await self._ask(lambda records: records.loads.newest(_LEARNED_FROM)))

    async def decisions(self, model: str | None = None, limit: int = 100) -> Sequence[DecisionRecord]:
        """Return the last `limit` decisions, about one model or all, oldest first."""
        return await self._ask(lambda records: records.decisions.newest(limit, model))

    async def close(self) -> None:
        """Write what is pending, and close; what is recorded later is dropped."""
        await asyncio.to_thread(self._writer.close)

    async def _footprints(self) -> list[FootprintRecord]:
        return await self._ask(lambda records: records.footprints.newest(_LEARNED_FROM))

    async def _ask(self, read: Callable[[Records], list[T]]) -> list[T]:
        empty: list[T] = []
        return await asyncio.wrap_future(self._writer.read(read, empty))


class Store:
    """An opened database, with the scheduler's journal and GPU configuration in it.

    While the server or the disk is unavailable, the journal remembers in memory, and GPU configuration raises
    StoreError.
    """

    def __init__(self, writer: Writer) -> None:
        # SQLAlchemy, which this imports, is not to be loaded by programs that open no database.
        from cotenant.store.services.store import SqlServiceStore

        self.journal = SqlJournal(writer)
        self.services: SqlServiceStore = SqlServiceStore(writer)

    async def close(self) -> None:
        """Write what is pending, and close; what is recorded later is dropped."""
        await self.journal.close()
