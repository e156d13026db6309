"""Events, the inputs of the scheduler. Instants are seconds of the daemon's clock."""

from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.domain.advisors import Advice
from cotenant.domain.devices import DeviceId
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import LoadCost
from cotenant.domain.placements import Placement
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

    `keep_alive_s` is how long the model stays loaded after it; None uses the model's own. `conversation` are
    keys of its beginnings, the shortest first.
    """

    ticket: TicketId
    model: str
    deadline: float
    priority: int = 0
    keep_alive_s: float | None = None
    conversation: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestAsked(RequestArrived):
    """A command that is not ours wants memory: it is leased for `lasts_s`, None until `GuestEnded`.

    `model` is the lease's name, as `spec` has it, which no other has; the rest is as for a request.
    """

    spec: ModelSpec
    lasts_s: float | None = None


@dataclass(frozen=True, slots=True)
class GuestEnded(Event):
    """A lease ends, granted or not, for the reason `why`; one that has ended already is no fault."""

    model: str
    why: str


@dataclass(frozen=True, slots=True)
class RequestLeft(Event):
    """A client that was waiting has left."""

    ticket: TicketId


@dataclass(frozen=True, slots=True)
class LeaseReleased(Event):
    """A request has ended: it is answered, or its client has left."""

    lease: LeaseId


@dataclass(frozen=True, slots=True)
class EngineReady(Event):
    """An engine is ready: its model is loaded.

    `placement` replaces the planned one if the engine has laid itself out.
    """

    residency: ResidencyId
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class EngineExited(Event):
    """An engine's process is gone; `why` is the reason as text, `cause` the diagnosed cause."""

    residency: ResidencyId
    why: str
    cause: Cause = Cause.UNKNOWN


@dataclass(frozen=True, slots=True)
class DevicesRead(Event):
    """All devices of a `node` were measured, in planned order. A missing device of that node is lost.

    Without a node they are those of this machine. Its cost grows with the devices of the node, not with all.
    """

    readings: tuple[DeviceReading, ...]
    node: str | None = None


@dataclass(frozen=True, slots=True)
class NodeSilent(Event):
    """A node has not answered for `silent_s`: nothing new goes there; its models may be loaded elsewhere.

    `why` is a sentence without its period that says more, if more is known.
    """

    node: str
    silent_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class NodeLost(Event):
    """A node counts as gone, with its devices and all that ran there; `why` is a clause.

    What its engines still send to clients is left alone. It may come back, and is missed unless `for_good`.
    """

    node: str
    why: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class NodeBack(Event):
    """A node answers that was silent or lost, or for the first time.

    What was not forgotten of it goes on. After a loss DevicesRead follows, and then EngineFound for each of
    its engines.
    """

    node: str


@dataclass(frozen=True, slots=True)
class EngineFound(Event):
    """An engine runs that this scheduler has not started, or has forgotten; it is answered by one command.

    That is AdoptEngine if its model can be served by it, and else DiscardEngine. `engine` is the shell's name
    for it, which offers it once. It runs what would be started for `model` now on the devices of `placement`,
    which the ledger knows; EngineReady or EngineExited follows if it is not `ready`.
    """

    engine: str
    model: str
    placement: Placement
    ready: bool = True


@dataclass(frozen=True, slots=True)
class LoadCostsRead(Event):
    """How soon models load on each machine, by its name: all that is known of each of them now."""

    by_model: Mapping[str, Mapping[str, LoadCost]]


@dataclass(frozen=True, slots=True)
class ModelsChanged(Event):
    """These models are served from now on; those in `replaced` must be reloaded to take effect."""

    models: tuple[ModelSpec, ...]
    replaced: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LoadAsked(Event):
    """The operator wants a model loaded, or it is preloaded at start: `why` says which."""

    model: str
    why: str = "asked for by the operator"


@dataclass(frozen=True, slots=True)
class UnloadAsked(Event):
    """The operator wants a model unloaded once its requests have ended."""

    model: str


@dataclass(frozen=True, slots=True)
class PinAsked(Event):
    """The operator pins or unpins a model."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class MoveAsked(Event):
    """The operator wants a loaded model on these devices: on one that fits, else over several."""

    model: str
    devices: frozenset[DeviceId]


@dataclass(frozen=True, slots=True)
class MoveCancelled(Event):
    """The operator wants a model that moves to stay where it is."""

    model: str


@dataclass(frozen=True, slots=True)
class DrainsChanged(Event):
    """From now on nothing is placed on exactly these devices, and what is there leaves."""

    devices: frozenset[DeviceId]


@dataclass(frozen=True, slots=True)
class AdviceGiven(Event):
    """An advisor has responded."""

    advice: Advice


@dataclass(frozen=True, slots=True)
class WarmChanged(Event):
    """From now on `kept_bytes` of a model's files are kept in host RAM, 0 for none; `why` says more."""

    model: str
    kept_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """The daemon is stopping: no request is admitted."""


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """The instant of the last WakeAt has come."""
