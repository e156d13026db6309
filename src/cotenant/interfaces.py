"""The Protocols that the shell implements for the rest of the program, and the values that they exchange."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cotenant.domain.advisors import AdviceStatus, AdvisorStatus
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import (
    Decision,
    DeviceStatus,
    Histogram,
    LeaseStatus,
    ModelStatus,
    NodeStatus,
    SlotStatus,
    WaitEstimate,
    WarmStatus,
)
from cotenant.domain.devices import NO_MPS_TERMS, Device, Inventory, MpsTerms
from cotenant.domain.engines import (
    ALONE,
    NO_OPTIONS,
    Companions,
    Endpoint,
    EngineBuild,
    EngineEnd,
    EngineOptions,
    EngineReport,
    RemotePart,
)
from cotenant.domain.errors import EngineDied, EngineHung, ModelUnloaded
from cotenant.domain.exit_causes import Cause
from cotenant.domain.fragmentation import Defragmentation, Fragmentation
from cotenant.domain.hub import PullStep
from cotenant.domain.launching import ON_HOST, LaunchOptions, SlotCache
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.moves import MovePlan
from cotenant.domain.placements import Placement, PlanAnswer, PlanQuery
from cotenant.domain.requests import DEFAULT_TERMS, GuestTerms, LeaseTerms, RequestRules, ServedModel


class GpuProbe(Protocol):
    """Finds the devices of this machine, or describes others."""

    def inventory(self) -> Inventory:
        """Measure every device now. Never raises because of the hardware: problems are in the Inventory."""


@dataclass(frozen=True, slots=True)
class EngineOrder:
    """What to run: a named model with its placement.

    `model_path` is None if the engine finds the model by name. `options` are the operator's settings for the
    engine. `env` and `args` are the operator's additions, applied last. `launch` says whether it runs in a
    container. `mps` is what it gets of cards that it shares. `planned_gpus` are those that it was planned
    on, also described ones, which it cannot see; `planned` is that plan if they are described ones. `recipe`
    is the model's own, before layers became a number. Without `slot_cache`, no slot can be saved. A model
    over several machines has `parts` on others: an engine there `lends_gpus`, those of its placement.
    """

    name: str
    model_path: Path | None
    kind: ModelKind
    placement: Placement
    projector_path: Path | None = None
    companions: Companions = ALONE
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    options: EngineOptions = NO_OPTIONS
    launch: LaunchOptions = ON_HOST
    planned_gpus: tuple[Device, ...] = ()
    planned: Placement | None = None
    recipe: Recipe | None = None
    mps: MpsTerms = NO_MPS_TERMS
    slot_cache: SlotCache | None = None
    parts: tuple[RemotePart, ...] = ()
    lends_gpus: bool = False


class Engine(Protocol):
    """One supervised process that runs one model, or a part of a server that others run."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; known before it is ready."""

    @property
    def pid(self) -> int | None:
        """The process id, also that of its group; None if the process is not ours."""

    @property
    def build(self) -> EngineBuild:
        """The program that is running."""

    @property
    def log_path(self) -> Path | None:
        """The file with its output; None if the process is not ours."""

    @property
    def problem(self) -> str | None:
        """What it last answered while it was not ready, such as a status; None if nothing."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers. Raises EngineLoadFailed or EngineLoadTimeout once its process is gone."""

    async def wait_exit(self) -> EngineEnd:
        """Wait until the process is gone, and return how it ended and why."""

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown."""

    def report(self) -> EngineReport | None:
        """Read back the bytes that the engine says it took; None if it did not say."""

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop, kill it after `grace_s` seconds, and return when the process group is gone."""


class EngineHost(Protocol):
    """Starts engines on this machine."""

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises EngineMissing or EngineLacksDevice before anything runs."""


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send a request to an engine at `endpoint`: a slot, until freed by `_free(abandoned)`.

    The engine may be silent for `silence_s`, and its answer may take `answer_s` in whole, None for any time.
    `missed` is set while its machine is silent.
    """

    endpoint: Endpoint
    _end: asyncio.Future[EngineEnd]
    _free: Callable[[bool], None] | None
    silence_s: float
    answer_s: float | None
    missed: asyncio.Event

    async def death(self, within_s: float) -> EngineDied | ModelUnloaded | None:
        """Return why it died; None if that is not seen in `within_s` seconds, or its machine is missed."""
        missed = asyncio.ensure_future(self.missed.wait())
        news: set[asyncio.Future[Any]] = {self._end, missed}
        try:
            await asyncio.wait(news, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            missed.cancel()
        end = self._end.result() if self._end.done() else None
        if end is not None and end.cuts_requests:
            return ModelUnloaded(f"{end.why} before the answer was complete")
        if end is None or end.cause is None:
            return None
        return (EngineHung if end.cause is Cause.HUNG else EngineDied)(end.why, cause=end.cause)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call once the engine has ended."""
        self._end.add_done_callback(lambda _: call())

    def release(self, *, abandoned: bool = False) -> None:
        """Return the slot; a second call does nothing.

        `abandoned` says that the engine may still be generating for a client that left: the slot then counts
        as taken until the engine has freed it.
        """
        if self._free is not None:
            free, self._free = self._free, None
            free(abandoned)


class Router(Protocol):
    """Knows the served models and grants leases on them."""

    def models(self) -> Sequence[ServedModel]:
        """List the served models, loaded or not."""

    def names(self) -> Collection[str]:
        """The names of the served models."""

    def resolve(self, name: str) -> str:
        """Return the name of the model with this name or alias. Raises UnknownModel."""

    def rules(self, name: str) -> RequestRules | None:
        """Return the rules of requests that use this name or alias; None if there are none."""

    def has_copies(self, name: str) -> bool:
        """Whether several engines may serve a model, so that it matters which one has a conversation."""

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once, or return None if the request must wait. Raises UnknownModel."""

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease:
        """Wait for a lease, which may load the model and evict others.

        Raises UnknownModel, QueueFull, WaitTimeout, DoesNotFit, EngineLoadFailed or ShuttingDown.
        """

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Return what one more request may expect; None if it need not wait."""


RemoteLog = Callable[[int | None, int], Awaitable[tuple[bytes, int, int]]]
"""Returns bytes of a log elsewhere, from an offset or the end of it; their offset, and the log's size."""


class Operator(Protocol):
    """The operator's view of the daemon, and commands to it. Names may be aliases; all raise UnknownModel."""

    def statuses(self) -> Sequence[ModelStatus]:
        """The state of every model."""

    def devices(self) -> Sequence[DeviceStatus]:
        """The memory of every device and its users."""

    async def fragmentation(self) -> Fragmentation:
        """How much of the free memory models that are not loaded cannot use."""

    async def defragmentation(self, name: str | None = None, *, unasked: bool = False) -> Defragmentation:
        """The moves that let a model fit; by default one that waits, or the largest that could.

        Without a name, or `unasked`, there are none if the configuration does not want them proposed.
        """

    async def defragment(self, name: str | None = None) -> Defragmentation:
        """Make these moves, one after another. Raises CannotMove if one of them fails."""

    def warm(self) -> WarmStatus | None:
        """The model files that are kept in host RAM; None if none are to be."""

    def saved_slots(self) -> SlotStatus | None:
        """The saved slots of unloaded models; None if none are to be saved."""

    def decision_times(self) -> Mapping[str, Histogram]:
        """The seconds that decisions took, by the event that each was about."""

    def why(self, name: str) -> Sequence[Decision]:
        """The last decisions about a model, oldest first."""

    def recent(self) -> Sequence[Decision]:
        """The last decisions about anything, oldest first."""

    def log_path(self, name: str) -> Path | None:
        """The log of the model's engine, running or last run; None if it is on another machine."""

    def remote_log(self, name: str) -> RemoteLog | None:
        """The same, on another machine; reading raises NodeUnreachable."""

    async def load(self, name: str) -> None:
        """Load it, or return if it is loaded. Raises DoesNotFit, EngineLoadFailed, EngineLoadTimeout."""

    async def unload(self, name: str) -> None:
        """Unload it once its requests have ended; return when its memory is free."""

    def pin(self, name: str, pinned: bool) -> None:
        """Never evict it, or allow that again."""

    async def reload(self) -> Sequence[str]:
        """Read the configuration again and say what changed. Raises BadSetting and changes nothing."""

    def decisions(self) -> AsyncIterator[Decision]:
        """Yield decisions as they are made. A slow reader misses the oldest: the numbers show gaps."""


class Lessor(Protocol):
    """Leases memory to guests: commands that are not ours."""

    def leases(self) -> Sequence[LeaseStatus]:
        """All leases, the oldest first."""

    async def lease(self, terms: GuestTerms) -> LeaseStatus:
        """Wait for memory.

        Raises UnknownDevice, BadRequest, DoesNotFit, WaitTimeout, QueueFull or ShuttingDown.
        """

    async def ended(self, name: str) -> str:
        """Return why a lease has ended, once it has. Raises UnknownLease."""

    def end(self, name: str, why: str) -> None:
        """End a lease. Raises UnknownLease."""

    def why(self, name: str) -> Sequence[Decision]:
        """The last decisions about a lease, oldest first. Raises UnknownLease."""


class Mover(Protocol):
    """Moves models and drains devices. A GPU is an index, a UUID or its beginning, else UnknownDevice."""

    def plan_move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        """How a model would move to these. Raises UnknownModel, or CannotMove, which says why not."""

    async def move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        """Move it, and return once it is served there. Raises as `plan_move`, also if the move fails."""

    def cancel_move(self, name: str) -> None:
        """Have it stay where it is, if it moves. Raises UnknownModel."""

    def plan_drain(self, gpu: str) -> Sequence[MovePlan]:
        """What would become of each model on a device that is drained."""

    async def drain(self, gpu: str, drained: bool) -> None:
        """Drain a device, or use it again. Raises BadRequest if only the configuration can do that."""


class Planner(Protocol):
    """Plans a model without loading it."""

    async def plan(self, asked: PlanQuery) -> PlanAnswer:
        """Place a model on devices, or say why that is impossible and what would fit.

        Raises UnknownModel, ModelFileError, BadRequest for a path that is not allowed, BadDeviceSpec,
        BadRecipe, BadSplit, and QueueFull if many plans wait already.
        """


class NodeBook(Protocol):
    """The machines of the fleet, by name. What names one raises UnknownNode."""

    def nodes(self) -> Sequence[NodeStatus]:
        """Every machine that is known, whether it answers or not."""

    def plan_drain(self, name: str) -> Sequence[MovePlan]:
        """What would become of each model on a machine that is drained."""

    async def drain(self, name: str, drained: bool) -> None:
        """Drain all devices of a machine, or use it again. Raises BadRequest or StoreError."""

    def forget(self, name: str) -> None:
        """Miss a machine no more that is lost. Raises BadRequest for one that is not."""


class WorkloadAdviser(Protocol):
    """Replays the requests that the daemon recorded with other settings."""

    def status(self) -> AdviceStatus:
        """Return the last search."""

    def start(self) -> AdviceStatus:
        """Begin a search, unless one is running or none can begin; return the last one."""


class AdvisorBook(Protocol):
    """The state of the advisor."""

    def status(self) -> AdvisorStatus:
        """Its questions so far, and whether it is not asked any more."""


class AlertBook(Protocol):
    """Current and past alerts."""

    def active(self) -> Sequence[Alert]:
        """The current alerts, oldest first."""

    def recent(self) -> Sequence[Alert]:
        """The last beginnings and ends of alerts, oldest first."""

    def totals(self) -> Mapping[AlertKind, int]:
        """The number of alerts that began, by kind."""

    def follow(self) -> AsyncIterator[Alert]:
        """Yield alerts as they begin and end. A slow reader misses the oldest."""


class Puller(Protocol):
    """Fetches models from a hub into the folder that is served."""

    def pull(self, name: str) -> AsyncGenerator[PullStep, None]:
        """Fetch a model by its name on the hub and yield the progress; it is verified at the end.

        Closing the generator stops the pull; the received bytes are kept for the next pull. Raises
        BadHubName, HubError or NotOffered.
        """
