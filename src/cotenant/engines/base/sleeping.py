"""Hosts that put engines to sleep in place of ending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol, runtime_checkable


class Meter(Protocol):
    """Measures what processes of ours hold, for those who must see memory come back."""

    async def held_bytes(self, group: int) -> int | None:
        """Return what a process group holds on all GPUs; None where no driver tells."""
        ...

    async def free_host_bytes(self) -> int | None:
        """Return the host RAM that is free; None if it cannot be told."""
        ...


@runtime_checkable
class SleepingHost(Protocol):
    """A host that keeps engines asleep. Once `sleeps` is false, it ends all engines that stop."""

    sleeps: bool

    @property
    def asleep(self) -> Mapping[str, int]:
        """The process of each model that sleeps."""
        ...

    async def end_sleeping(self, keep: Set[str] = frozenset()) -> Sequence[str]:
        """End what sleeps, except the models in `keep`, and return the names."""
        ...
