"""Which GPU each service was given, in a database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cotenant.services.model import ApplyStatus, Assignment, SavedConfiguration, SeenDevice, Strategy
from cotenant.store.writer import Writer

if TYPE_CHECKING:
    from cotenant.store.services.rows import ServiceRows

T = TypeVar("T")


class SqlServiceBook:
    """A ServiceBook on an opened writer. Every method raises StoreError for what cannot be written or read.

    Several daemons may share a database: saves come one after another, whoever makes them.

    `save` publishes before it commits, so that files which cannot be written leave no configuration behind.
    If the process or the database ends in between, the files are those of a number that the database does not
    have. That does no harm: nothing is applied from it, and the next save takes the same number and writes
    the files anew.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def current(self) -> SavedConfiguration | None:
        """Return the configuration saved last; None before the first."""
        return await self._do(lambda rows: rows.current())

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], at: float, publish: Callable[[int], None]
    ) -> SavedConfiguration:
        """Write a configuration and its entry in the history, all or nothing.

        `publish` is given its number before the transaction ends, in the writer's thread: what it raises is
        raised here, and nothing is written.
        """
        given = tuple(assignments)
        return await self._do(lambda rows: rows.save(strategy, given, at, publish))

    async def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Keep how applying the configuration `number` stands. Raises StoreError if there is none."""
        await self._do(lambda rows: rows.record_apply(number, status))

    async def history(self, limit: int = 20) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first."""
        return await self._do(lambda rows: rows.history(limit))

    async def applied(self) -> SavedConfiguration | None:
        """Return the newest configuration whose apply succeeded; None before the first."""
        return await self._do(lambda rows: rows.applied())

    async def last_apply(self) -> ApplyStatus | None:
        """Return how the newest apply stands; None before the first."""
        return await self._do(lambda rows: rows.last_apply())

    async def see_devices(self, devices: Sequence[SeenDevice]) -> None:
        """Keep what GPUs there are now; those that are gone stay with the time when they were last seen.

        Assignments follow a GPU that was renumbered or has returned: `current` gives the index it has now.
        """
        given = tuple(devices)
        await self._do(lambda rows: rows.see_devices(given))

    async def devices(self) -> Sequence[SeenDevice]:
        """Return every GPU ever seen under its index, in index order; memory is in whole MiB."""
        return await self._do(lambda rows: rows.devices())

    async def setting(self, key: str) -> Mapping[str, object] | None:
        """Return a value of `system_settings`."""
        return await self._do(lambda rows: rows.setting(key))

    async def set_setting(self, key: str, value: Mapping[str, object]) -> None:
        """Keep a value of `system_settings`."""
        given, at = dict(value), time.time()
        await self._do(lambda rows: rows.set_setting(key, given, at))

    async def _do(self, work: Callable[[ServiceRows], T]) -> T:
        return await asyncio.wrap_future(self._writer.do(lambda session: work(session.services)))
