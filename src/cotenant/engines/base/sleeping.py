"""Hosts that put engines to sleep in place of ending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol, runtime_checkable


class Meter(Protocol):
    """Measures the memory that our processes hold."""

    async def held_bytes(self, group: int) -> int | None:
        """Return what a process group holds on all GPUs; None if the driver does not report it."""
        ...

    async def free_host_bytes(self) -> int | None:
        """Return the free host RAM; None if unknown."""
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
