"""Whether a node answers: ours, since Ray notices a death after 10 to 60 s. Pure; instants are given."""

from dataclasses import dataclass
from enum import StrEnum


class Liveness(StrEnum):
    """What the daemon thinks of a node."""

    READY = "ready"
    SUSPECT = "suspect"
    """It has not answered for a while: nothing new goes there."""
    LOST = "lost"
    """It counts as gone, with all that ran there, until it answers again."""


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """Seconds of silence after which a node is suspect, and lost; how long its engines outlive the daemon."""

    suspect_after_s: float
    lost_after_s: float
    lease_s: float


class NodeLiveness:
    """One node's. While `blind`, the daemon has no way to any node: silence then says nothing about one.

    Its engines still end with their lease, so after that it is lost however good the excuse. A node that is
    suspect or lost becomes ready by an answer alone. It has been in its `state` since the instant `since`.
    """

    def __init__(self, rules: LivenessRules, at: float) -> None:
        self.rules = rules
        self._heard_at = at
        self._blind_since: float | None = None
        self._excused_s = 0.0
        self.state = Liveness.READY
        self.since = at

    def heard(self, at: float) -> bool:
        """Note an answer; return whether the node was suspect or lost."""
        self._heard_at, self._excused_s = at, 0.0
        if self._blind_since is not None:
            self._blind_since = at
        if self.state is Liveness.READY:
            return False
        self.state, self.since = Liveness.READY, at
        return True

    def ended(self, at: float) -> None:
        """Note that its agent has ended: it is suspect at once."""
        if self.state is Liveness.READY:
            self.state, self.since = Liveness.SUSPECT, at

    def set_blind(self, blind: bool, at: float) -> None:
        """Note that the way to all nodes is gone, or there again."""
        if self._blind_since is not None:
            self._excused_s += at - self._blind_since
        self._blind_since = at if blind else None

    def silent_s(self, at: float) -> float:
        """Return how long it has not answered."""
        return at - self._heard_at

    def check(self, at: float) -> Liveness | None:
        """Return what it has become, SUSPECT or LOST; None if nothing changed. LOST may skip SUSPECT."""
        rules, silent_s = self.rules, self.silent_s(at)
        blind_s = 0.0 if self._blind_since is None else at - self._blind_since
        meant_s = silent_s - self._excused_s - blind_s
        if silent_s >= rules.lease_s or meant_s >= rules.lost_after_s:
            found = Liveness.LOST
        elif meant_s >= rules.suspect_after_s:
            found = Liveness.SUSPECT
        else:
            return None
        # Excuses that come late make nothing better: only an answer does.
        if found is self.state or self.state is Liveness.LOST:
            return None
        self.state, self.since = found, at
        return found
