"""Virtual time: a queue of actions, each with its instant, and the last steps, for messages of failures."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from random import Random

from cotenant.scheduling.commands import Command, PublishDecision, StartEngine
from cotenant.scheduling.events import DevicesRead, Event

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


class Timeline:
    """The last `kept` events with the commands that the scheduler answered."""

    def __init__(self, kept: int | None = 30) -> None:
        self._steps: deque[tuple[Event, Sequence[Command]]] = deque(maxlen=kept)

    def add(self, event: Event, commands: Sequence[Command]) -> None:
        """Record a step, except readings that change nothing."""
        if commands or not isinstance(event, DevicesRead):
            self._steps.append((event, commands))

    def lines(self) -> Iterator[str]:
        """Render the steps, one line for each event and each command."""
        for event, commands in self._steps:
            yield f"{event.at:9.2f}  {_event(event)}"
            for command in commands:
                yield f"{'':9}    → {_command(command)}"


def _event(event: Event) -> str:
    if isinstance(event, DevicesRead):
        read = (f"{r.device.id} free {r.free_bytes} others {r.foreign_bytes}" for r in event.readings)
        return f"DevicesRead {'; '.join(read)}"
    facts = (
        f"{name}={getattr(event, name)}" for name in event.__match_args__ if name not in ("at", "models")
    )
    return f"{type(event).__name__} {' '.join(facts)}"


def _command(command: Command) -> str:
    match command:
        case PublishDecision(decision):
            return f"{decision.kind} {decision.model or ''}: {decision.text}"
        case StartEngine(residency, model, placement):
            where = ", ".join(str(share.device.id) for share in placement.used_shares)
            return f"StartEngine #{residency} {model} on {where}"
        case _:
            return str(command)
