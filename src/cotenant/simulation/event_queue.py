"""Virtual time: a queue of actions, each with its instant."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

Action = Callable[[], None]


class EventQueue:
    """Runs actions in the order of their instants, in seconds; simultaneous ones in random order.

    `tick_s` rounds every instant up to a multiple of it, so that many actions are simultaneous.
    """

    def __init__(self, rng: Random, tick_s: float | None = None) -> None:
        self.now = 0.0
        self._rng = rng
        self._tick_s = tick_s
        self._entries: list[tuple[float, float, int, Action]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, instant: float, action: Action) -> None:
        """Schedule an action; an instant in the past means now."""
        if self._tick_s is not None:
            instant = math.ceil(instant / self._tick_s - 1e-9) * self._tick_s
        self._count += 1
        heappush(self._entries, (max(self.now, instant), self._rng.random(), self._count, action))

    def after(self, seconds: float, action: Action) -> None:
        """Schedule an action some seconds from now."""
        self.at(self.now + seconds, action)

    def step(self) -> None:
        """Advance to the next action and run it."""
        self.now, _, _, action = heappop(self._entries)
        action()
