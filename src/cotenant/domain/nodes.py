"""Other machines that run engines: what can go wrong with them."""

from cotenant.domain.errors import CotenantError


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
