"""How fragmented the free memory is, computed in a thread when somebody asks and something has changed."""

from functools import partial

from cotenant.concurrency.thread_gate import ThreadGate
from cotenant.domain.errors import QueueFull
from cotenant.domain.fragmentation import Fragmentation
from cotenant.planning.fragmentation import FreeMemory, measure
from cotenant.planning.needs import Needs
from cotenant.scheduling.fragmentation import free_memory
from cotenant.scheduling.state import State

_MAX_WAITING = 64


class FragmentationMeter:
    """Measures the free memory of the scheduler; what was measured is kept until it changes.

    Planning a model takes about a millisecond, and the first measurement plans each for each device: requests
    to models must not wait for that.
    """

    def __init__(self) -> None:
        self._needs = Needs()
        self._gate = ThreadGate(_full, waiting=_MAX_WAITING)
        self._measured: tuple[FreeMemory, Fragmentation] | None = None

    async def measure(self, state: State, now: float) -> Fragmentation:
        """Return how fragmented the free memory is. Raises QueueFull if many ask at once."""
        memory = free_memory(state, now)
        if self._measured is None or self._measured[0] != memory:
            self._needs.keep_only({*state.models})
            self._measured = memory, await self._gate.run(partial(measure, memory, self._needs))
        return self._measured[1]


def _full() -> QueueFull:
    return QueueFull("the fragmentation of memory is being computed", hint="Try again later.")
