"""The database as services use it: the store implements this Protocol."""

from collections.abc import Callable, Sequence
from typing import Protocol

from cotenant.services.model import (
    ApplyStatus,
    Assignment,
    SavedConfiguration,
    SeenDevice,
    Strategy,
)


class ServiceStore(Protocol):
    """Remembers the GPU of each service, in the tables of GPU configuration.

    Unlike the journal it loses nothing silently: a failed read or write raises StoreError.
    """

    async def current(self) -> SavedConfiguration | None:
        """Return the configuration saved last; None before the first."""
        ...

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], at: float, publish: Callable[[int], None]
    ) -> SavedConfiguration:
        """Write a configuration and its entry in the history, all or nothing.

        `publish` is called with its number before the transaction ends, in a thread: what it raises is raised
        here, and nothing is written.
        """
        ...

    async def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Store the state of applying the configuration `number`."""
        ...

    async def history(self, limit: int) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first."""
        ...

    async def applied(self) -> SavedConfiguration | None:
        """Return the newest configuration whose apply succeeded; None before the first."""
        ...

    async def last_apply(self) -> ApplyStatus | None:
        """Return the state of the newest apply; None before the first."""
        ...

    async def see_devices(self, devices: Sequence[SeenDevice]) -> None:
        """Store which GPUs are present now; missing ones keep the time when they were last seen."""
        ...

    async def devices(self) -> Sequence[SeenDevice]:
        """Return every GPU ever seen under its index, in index order."""
        ...
