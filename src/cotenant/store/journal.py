"""The record of loads, footprints and decisions, in a database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cotenant.analysis.calibration import estimate_errors, expected_load_times, learned_overheads, seen_bytes
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadTimes, Record
from cotenant.store.location import Location
from cotenant.store.writer import Writer

if TYPE_CHECKING:
    from cotenant.store.repositories import Records

T = TypeVar("T")
_LEARNED_FROM: Final = 2_000


class SqlJournal:
    """A Journal in a database that several daemons may share, given by its location or by its opened writer.

    Opening waits for the disk: do it before the event loop runs, or in a thread. Raises StoreError for a
    database that is a newer Cotenant's or another program's, BadSetting for a URL that cannot be used.
    """

    def __init__(self, where: Path | str | Location | Writer) -> None:
        self._writer = where if isinstance(where, Writer) else Writer(where)

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
