"""How fragmented the free memory is, computed in a thread when somebody asks and something has changed."""

from functools import partial

from cotenant.concurrency.thread_gate import ThreadGate
from cotenant.domain.errors import QueueFull
from cotenant.domain.fragmentation import Defragmentation, Fragmentation
from cotenant.planning.defragment import PackingProblem, defragment
from cotenant.planning.fragmentation import FreeMemory, measure
from cotenant.planning.needs import Needs
from cotenant.scheduling.queries.fragmentation import free_memory, packing_problem, waiting_longest
from cotenant.scheduling.state import State

_MAX_WAITING = 64


class FragmentationMeter:
    """Measures the free memory of the scheduler; what was measured is kept until it changes.

    Planning a model takes about a millisecond, and the first measurement plans each for each device: requests
    to models must not wait for that.
    """

    def __init__(self) -> None:
        self._needs = Needs()
        # Status pages do not wait for a search, which may take a second.
        self._measurements, self._searches = (ThreadGate(_full, waiting=_MAX_WAITING) for _ in range(2))
        self._measured: tuple[FreeMemory, Fragmentation] | None = None
        self._proposed: tuple[PackingProblem, Defragmentation] | None = None

    async def measure(self, state: State, now: float) -> Fragmentation:
        """Return how fragmented the free memory is. Raises QueueFull if many ask at once."""
        memory = free_memory(state, now)
        if self._measured is None or self._measured[0] != memory:
            self._needs.keep_only({*state.models})
            self._measured = memory, await self._measurements.run(partial(measure, memory, self._needs))
        return self._measured[1]

    async def propose(self, state: State, now: float, name: str | None) -> Defragmentation:
        """Return the moves that let a model fit, by default the one that waits longest, else the largest.

        Raises UnknownModel, and QueueFull if many ask at once.
        """
        model = waiting_longest(state, now) if name is None else state.model(name)
        if model is None:
            found = await self.measure(state, now)
            model = state.models.get(found.largest_in_one_piece.name) if found.largest_in_one_piece else None
            if model is None or found.largest_in_one_piece == found.largest:
                return Defragmentation(None, True, text="no model would gain by moves of others")
        if model.residency is not None:
            return Defragmentation(model.spec.name, True, text=f"{model.spec.name} is loaded")
        problem = packing_problem(state, model)
        if self._proposed is None or self._proposed[0] != problem:
            self._proposed = problem, await self._searches.run(partial(defragment, problem, self._needs))
        return self._proposed[1]


def _full() -> QueueFull:
    return QueueFull("the fragmentation of memory is being computed", hint="Try again later.")
