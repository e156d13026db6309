"""GPU configuration in the database, for callers in an event loop, which must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from cotenant.store.services.rows import ServiceRows
from cotenant.store.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")


def _in_transaction(
    method: Callable[Concatenate[ServiceRows, P], T],
) -> Callable[Concatenate[SqlServiceStore, P], Coroutine[Any, Any, T]]:
    """Return a method that runs `method` in the writer's thread, in a transaction of its own."""

    async def run(self: SqlServiceStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        done = self._writer.do(lambda session: method(session.services, *args, **kwargs))
        return await asyncio.wrap_future(done)

    return run


class SqlServiceStore:
    """The `ServiceStore` of an opened writer: the methods of ServiceRows, each in a transaction of its own.

    Every method raises StoreError for what cannot be written or read. Several daemons may share a database:
    saves are serialised, whichever daemon makes them.

    `save` calls `publish` before it commits, so that files which cannot be written leave no configuration
    behind. If the process or the database ends in between, the files are those of a number that the database
    does not have. That does no harm: nothing is applied from it, and the next save takes the same number and
    writes the files again.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    current = _in_transaction(ServiceRows.current)
    save = _in_transaction(ServiceRows.save)
    record_apply = _in_transaction(ServiceRows.record_apply)
    history = _in_transaction(ServiceRows.history)
    applied = _in_transaction(ServiceRows.applied)
    last_apply = _in_transaction(ServiceRows.last_apply)
    see_devices = _in_transaction(ServiceRows.see_devices)
    devices = _in_transaction(ServiceRows.devices)
    settings = _in_transaction(ServiceRows.settings)
    set_setting = _in_transaction(ServiceRows.set_setting)
