"""Several machines: what can go wrong between them, and how soon a model loads on each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cotenant.domain.errors import CotenantError
from cotenant.domain.units import format_duration


class NodeError(CotenantError):
    """A fault of another machine that runs engines, or of its agent."""


class NodeUnreachable(NodeError):
    """The agent of a machine did not answer; it may have done what it was asked for."""


class AgentGone(NodeUnreachable):
    """No agent runs on a machine that can be reached: its engines have ended with it."""


class BadNodeMessage(NodeError):
    """A message between daemon and agent cannot be read."""


class WrongProtocol(NodeError):
    """Daemon and agent speak two versions of their protocol."""


class StaleEpoch(NodeError):
    """Another daemon, which began later, commands this machine."""


class LeaseOver(NodeError):
    """The agent has not heard from a daemon for too long, and starts nothing until it has."""


class FileState(StrEnum):
    """Where a file is, from the fastest to read on."""

    WARM = "warm"
    """On this machine, and in its page cache."""
    LOCAL = "local"
    SHARED = "shared"
    """On a file system of the network."""
    ABSENT = "absent"
    DIFFERENT = "different"
    """Another file of this name: its size is not that of the daemon's."""


@dataclass(frozen=True, slots=True)
class FileFetch:
    """A file that a machine fetches, and how much of it has come."""

    node: str
    file: str
    received_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class LoadCost:
    """How long a model takes to load on a machine, None if it cannot be loaded there.

    `state` is that of the file which is slowest to read. `why` says what is missing, if it cannot be loaded.
    """

    seconds: float | None
    state: FileState
    why: str = ""

    @property
    def text(self) -> str:
        """Such as `warm, 4.0 s`, or `absent`."""
        return self.state if self.seconds is None else f"{self.state}, {format_duration(self.seconds)}"


def costs_text(costs: Mapping[str, LoadCost], first: str | None = None, *, most: int = 4) -> str:
    """Return `b: warm, 4.0 s; c: absent`: a machine that is `first`, then the others, fastest first."""

    def key(node: str) -> tuple[bool, bool, float, str]:
        seconds = costs[node].seconds
        return node != first, seconds is None, seconds or 0.0, node

    nodes = sorted(costs, key=key)
    more = f"; and {len(nodes) - most} more" if len(nodes) > most else ""
    return "; ".join(f"{node}: {costs[node].text}" for node in nodes[:most]) + more


def missing_text(costs: Mapping[str, LoadCost]) -> Iterable[str]:
    """Yield what machines lack that cannot load a model: `b, c: no file /m.gguf`."""
    nodes_by_why: dict[str, list[str]] = {}
    for node in sorted(costs):
        if costs[node].seconds is None:
            nodes_by_why.setdefault(costs[node].why, []).append(node)
    return (f"{', '.join(nodes)}: {why}" for why, nodes in nodes_by_why.items())
