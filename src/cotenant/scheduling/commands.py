"""Commands from the scheduler to the shell.

Every StartEngine is followed by EngineReady or EngineExited, and every StopEngine by EngineExited, unless
ForgetEngine comes before that.
"""

from dataclasses import dataclass

from cotenant.domain.decisions import Decision
from cotenant.domain.exit_causes import Cause
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, TicketId


@dataclass(frozen=True, slots=True)
class Grant:
    """Let a waiting request use a residency; release the lease if the client has left."""

    ticket: TicketId
    lease: LeaseId
    residency: ResidencyId


@dataclass(frozen=True, slots=True)
class Refuse:
    """End a waiting request without a grant; `retry_after_s` is when another attempt may make sense.

    `cause` is the diagnosed cause of a failed load.
    """

    ticket: TicketId
    code: RefusalCode
    text: str
    retry_after_s: float | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Load a model onto these devices."""

    residency: ResidencyId
    model: str
    placement: Placement


@dataclass(frozen=True, slots=True)
class StopEngine:
    """Stop an engine and wait until its process is gone; it may cut requests that have not ended.

    One that has `moved` is not kept asleep: its devices are to be free.
    """

    residency: ResidencyId
    cuts_requests: bool = False
    moved: bool = False


@dataclass(frozen=True, slots=True)
class AdoptEngine:
    """Take over a found engine for a residency; if it was not ready, EngineReady or EngineExited follows."""

    residency: ResidencyId
    model: str
    placement: Placement
    engine: str


@dataclass(frozen=True, slots=True)
class DiscardEngine:
    """End a found engine, since `why`; nothing follows."""

    engine: str
    why: str


@dataclass(frozen=True, slots=True)
class ForgetEngine:
    """Leave an engine alone: its node is lost. Nothing follows; what it still sends to clients goes on."""

    residency: ResidencyId
    why: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send TimerFired at this instant; it replaces the previous one."""

    at: float


@dataclass(frozen=True, slots=True)
class PublishDecision:
    """Publish a decision."""

    decision: Decision


Command = (
    Grant
    | Refuse
    | StartEngine
    | StopEngine
    | AdoptEngine
    | DiscardEngine
    | ForgetEngine
    | WakeAt
    | PublishDecision
)
