"""One open database for everything that is stored in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from cotenant.clock import Clock
from cotenant.store.journal import SqlJournal
from cotenant.store.location import Location
from cotenant.store.writer import Writer

if TYPE_CHECKING:
    from cotenant.store.services.store import SqlServiceStore


class Store:
    """A database by its path or URL, with the scheduler's journal and GPU configuration in it.

    Opening waits for the disk or the server: do it before the event loop runs, or in a thread. While the
    server or the disk is unavailable, the journal remembers in memory, and GPU configuration raises
    StoreError. Opening raises StoreError for a database that is a newer Cotenant's or another program's, or
    whose driver is missing, and BadSetting for a URL that cannot be used.

    A lock that another program holds is waited for during `busy_timeout_s`. At most `max_waiting` records
    wait to be written. An unavailable database is tried again after `retry_s`, at the next request.
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
        self._writer = Writer(
            where, busy_timeout_s=busy_timeout_s, max_waiting=max_waiting, retry_s=retry_s, clock=clock
        )
        # SQLAlchemy, which this imports, is not to be loaded by programs that open no database.
        from cotenant.store.services.store import SqlServiceStore

        self.journal = SqlJournal(self._writer)
        self.services: SqlServiceStore = SqlServiceStore(self._writer)

    async def close(self) -> None:
        """Write what is pending, and close; what is recorded later is dropped."""
        await asyncio.to_thread(self._writer.close)
