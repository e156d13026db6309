"""Hosts that put engines to sleep instead of ending them."""

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
    """A host whose engines can sleep. Once `sleeps` is false, it ends engines instead."""

    sleeps: bool

    @property
    def asleep(self) -> Mapping[str, int]:
        """The process id of each sleeping model, until its engine has ended."""
        ...

    async def end_sleeping(self, keep: Set[str] = frozenset()) -> Sequence[str]:
        """End the sleeping engines of models that are not in `keep`, and return their names."""
        ...
