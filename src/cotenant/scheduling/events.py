"""What happens to the scheduler. Every event says when, in seconds of the daemon's clock."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain.advisors import Advice
from cotenant.domain.exit_causes import Cause
from cotenant.domain.residencies import LeaseId, ResidencyId, TicketId
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at an instant."""

    at: float


@dataclass(frozen=True, slots=True)
class RequestArrived(Event):
    """A client wants a model and waits until `deadline`.

    `keep_alive_s` is how long the model stays loaded after it; None leaves that to the model.
    """

    ticket: TicketId
    model: str
    deadline: float
    priority: int = 0
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestLeft(Event):
    """A client that was waiting has left."""

    ticket: TicketId


@dataclass(frozen=True, slots=True)
class LeaseReleased(Event):
    """A request is answered, or given up by its client."""

    lease: LeaseId


@dataclass(frozen=True, slots=True)
class EngineReady(Event):
    """An engine answers: its model is loaded."""

    residency: ResidencyId


@dataclass(frozen=True, slots=True)
class EngineExited(Event):
    """An engine's process is gone, asked to or not; `why` tells it, `cause` is what was found behind it."""

    residency: ResidencyId
    why: str
    cause: Cause = Cause.UNKNOWN


@dataclass(frozen=True, slots=True)
class DevicesRead(Event):
    """All devices were measured, in planned order. One that is missing is lost."""

    readings: tuple[DeviceReading, ...]


@dataclass(frozen=True, slots=True)
class ModelsChanged(Event):
    """The models served are these from now on; those in `replaced` must be loaded anew to take effect."""

    models: tuple[ModelSpec, ...]
    replaced: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LoadAsked(Event):
    """The operator wants a model loaded, or it is to be loaded at start."""

    model: str


@dataclass(frozen=True, slots=True)
class UnloadAsked(Event):
    """The operator wants a model unloaded once its requests are answered."""

    model: str


@dataclass(frozen=True, slots=True)
class PinAsked(Event):
    """The operator wants a model kept loaded, or no longer."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class AdviceGiven(Event):
    """An advisor has responded."""

    advice: Advice


@dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """The daemon is to end: nothing is admitted any more."""


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """An instant that the scheduler asked for has come."""
