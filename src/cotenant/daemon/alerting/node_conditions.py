"""What is wrong with machines now, by what is known of each."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import NodeState, NodeStatus
from cotenant.domain.units import format_duration

Condition: TypeAlias = tuple[AlertKind, str]
"""What is wrong, and with what."""

OVER: Final[Mapping[AlertKind, str]] = {
    AlertKind.NODE_SILENT: "{} answers again, or counts as lost",
    AlertKind.NODE_LOST: "{} answers again, or is missed no more",
    AlertKind.NODE_TWICE: "{} is there once again",
    AlertKind.NODE_VERSION: "{} runs the daemon's version",
    AlertKind.NODE_CLOCK: "the clock of {} is right again",
    AlertKind.NODE_LEASE: "the engines on {} have time again",
    AlertKind.LAUNCHER_DOWN: "{} answers again",
}
"""The kinds that are about machines, and what is said at their end."""
_CLOCK_OFF_S: Final = 1.0
_CLOCK_RIGHT_S: Final = 0.5
_SHORT: Final = 1 / 3
_ENOUGH: Final = 2 / 3


@dataclass(frozen=True, slots=True)
class Expected:
    """What machines are compared with: the daemon's version, and how long a lease lasts."""

    version: str
    lease_s: float


def conditions(
    nodes: Sequence[NodeStatus],
    expected: Expected,
    active: Collection[Condition],
    launcher_problem: str | None = None,
) -> Iterator[tuple[Condition, str]]:
    """Yield what is wrong now, in words.

    What is `active` already lasts until it is clearly over. `launcher_problem` is why machines cannot be
    reached at all.
    """
    if launcher_problem is not None:
        yield (AlertKind.LAUNCHER_DOWN, "ray"), f"machines cannot be reached through Ray: {launcher_problem}"
    for node in nodes:
        name = node.name
        for_s = "since the daemon began" if node.silent_s is None else f"for {format_duration(node.silent_s)}"
        if node.refused is not None:
            yield (AlertKind.NODE_VERSION, name), node.refused
            continue
        if node.state is NodeState.SUSPECT:
            yield (AlertKind.NODE_SILENT, name), f"{name} has not answered {for_s}"
        if node.state is NodeState.LOST:
            yield (AlertKind.NODE_LOST, name), f"{name} is lost: it has not answered {for_s}"
        if node.state not in _ANSWERS:
            continue
        if node.ways > 1:
            yield (AlertKind.NODE_TWICE, name), f"Ray lists {name} {node.ways} times, and it is one machine"
        if node.version is not None and node.version != expected.version:
            text = f"{name} runs version {node.version}, and the daemon {expected.version}"
            yield (AlertKind.NODE_VERSION, name), text
        bound_s = _CLOCK_RIGHT_S if (AlertKind.NODE_CLOCK, name) in active else _CLOCK_OFF_S
        if node.clock_off_s is not None and abs(node.clock_off_s) > bound_s:
            how = "ahead" if node.clock_off_s > 0 else "behind"
            text = f"the clock of {name} is {format_duration(abs(node.clock_off_s))} {how}"
            yield (AlertKind.NODE_CLOCK, name), text
        share = _ENOUGH if (AlertKind.NODE_LEASE, name) in active else _SHORT
        left_s = node.lease_left_s
        if left_s is not None and left_s < share * expected.lease_s:
            text = f"engines on {name} end in {format_duration(left_s)}, unless it hears of the daemon"
            yield (AlertKind.NODE_LEASE, name), text


_ANSWERS: Final = (NodeState.READY, NodeState.DRAINED)
