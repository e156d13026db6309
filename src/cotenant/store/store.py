"""One open database: the record of loads, footprints and decisions in it, and GPU configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cotenant.analysis.calibration import LEARNED_FROM, past_runs
from cotenant.domain.keys import KeyUses
from cotenant.domain.records import DecisionRecord, PastRuns, Record
from cotenant.store.writer import Writer

if TYPE_CHECKING:
    from cotenant.store.repositories import Records
    from cotenant.store.services.store import SqlServiceStore

T = TypeVar("T")


class SqlJournal:
    """Stores footprints, load times and decisions from one run of the daemon to the next.

    It is in a database that several daemons may share. Recording returns at once and never fails: what cannot
    be stored is logged once and dropped. Answers are empty while nothing can be read.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def record(self, record: Record) -> None:
        """Record the memory of a load on one device, the duration of a load, a decision, or a key's use."""
        self._writer.put(record)

    async def past_runs(self, default_overhead_bytes: int) -> PastRuns:
        """Return what loads of earlier runs teach; `analysis.calibration` states the rules."""
        footprints = await self._ask(lambda records: records.footprints.newest(LEARNED_FROM))
        loads = await self._ask(lambda records: records.loads.newest(LEARNED_FROM))
        return past_runs(footprints, loads, default_overhead_bytes)

    async def decisions(self, model: str | None = None, limit: int = 100) -> Sequence[DecisionRecord]:
        """Return the last `limit` decisions, about one model or all, oldest first."""
        return await self._ask(lambda records: records.decisions.newest(limit, model))

    async def key_uses(self, day: str) -> Mapping[str, KeyUses]:
        """Return what each API key has used, in all and on a day."""
        empty: Mapping[str, KeyUses] = {}
        return await asyncio.wrap_future(
            self._writer.read(lambda records: records.key_uses.totals(day), empty)
        )

    async def close(self) -> None:
        """Write what is pending, and close; what is recorded later is dropped."""
        await asyncio.to_thread(self._writer.close)

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
