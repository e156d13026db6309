"""The last steps of a simulation, for the message of a failure."""

from collections import deque
from collections.abc import Iterator, Sequence

from cotenant.scheduling.commands import Command, PublishDecision, StartEngine
from cotenant.scheduling.events import DevicesRead, Event


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
