"""Virtual time: what happens next, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

Action = Callable[[], None]


class Agenda:
    """Runs actions in the order of their instants, in seconds; simultaneous ones in an order drawn by `dice`.

    With `tick_s` every instant is put off to the next multiple of it, so that much happens at once.
    """

    def __init__(self, dice: Random, tick_s: float | None = None) -> None:
        self.now = 0.0
        self._dice = dice
        self._tick_s = tick_s
        self._entries: list[tuple[float, float, int, Action]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, instant: float, action: Action) -> None:
        """Run an action at an instant; one that has passed means now."""
        if self._tick_s is not None:
            instant = math.ceil(instant / self._tick_s - 1e-9) * self._tick_s
        self._count += 1
        heappush(self._entries, (max(self.now, instant), self._dice.random(), self._count, action))

    def after(self, seconds: float, action: Action) -> None:
        """Run an action some seconds from now."""
        self.at(self.now + seconds, action)

    def step(self) -> None:
        """Move on to the next action and run it."""
        self.now, _, _, action = heappop(self._entries)
        action()
