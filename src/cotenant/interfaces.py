"""What the shell implements, as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cotenant.domain.advisors import AdvisorStatus
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import Decision, DeviceStatus, ModelStatus, WaitEstimate
from cotenant.domain.devices import Inventory
from cotenant.domain.engine_options import NO_OPTIONS, EngineOptions
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport
from cotenant.domain.errors import EngineDied
from cotenant.domain.hub import PullStep
from cotenant.domain.launching import ON_HOST, LaunchOptions
from cotenant.domain.models import ModelKind, ModelShape, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, LoadTimes
from cotenant.domain.requests import ServedModel


class GpuProbe(Protocol):
    """Finds the devices of this machine, or describes some that it does not have."""

    def inventory(self) -> Inventory:
        """Measure every device now. Never raises because of the hardware: problems are in the Inventory."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOrder:
    """What to run: a model under a name, laid out by a placement.

    `model_path` is None where the engine knows the model by another name. `options` are what the operator
    says of the engine. `use_fit_params` leaves the split to the engine's own fitting. `env` and `args`
    are the operator's additions, applied last. `launch` says whether it runs in a container.
    """

    name: str
    model_path: Path | None
    kind: ModelKind
    placement: Placement
    projector_path: Path | None = None
    use_fit_params: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    options: EngineOptions = NO_OPTIONS
    launch: LaunchOptions = ON_HOST


class Engine(Protocol):
    """One supervised process that runs one model, or a part of a server that somebody else runs."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; known before it is ready."""
        ...

    @property
    def pid(self) -> int | None:
        """The process id, also its group's; None where the process is not ours."""
        ...

    @property
    def build(self) -> EngineBuild:
        """The program that runs."""
        ...

    @property
    def log_path(self) -> Path | None:
        """The file that takes its output; None where that is not ours."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers. Raises EngineLoadFailed or EngineLoadTimeout, the process gone by then."""
        ...

    async def wait_exit(self) -> EngineEnd:
        """Return when the process has gone, with how and why."""
        ...

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown."""
        ...

    def report(self) -> EngineReport | None:
        """Read back the bytes that the engine says it took; None if it did not say."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, insist after `grace_s`, and return when the process group is gone."""
        ...


class EngineHost(Protocol):
    """Starts engines on this machine."""

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises EngineMissing or EngineLacksDevice before anything runs."""
        ...


class Lease(Protocol):
    """The right to send one request to an engine."""

    @property
    def endpoint(self) -> Endpoint:
        """Where to send it."""
        ...

    async def death(self, within_s: float) -> EngineDied | None:
        """Tell what the engine died of, if it is seen within `within_s` seconds to have died."""
        ...

    def release(self, *, abandoned: bool = False) -> None:
        """Give the slot back, once.

        `abandoned` says that the engine may still be generating for a client that left: the slot then counts
        as taken until the engine is seen to have freed it.
        """
        ...


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a request asks of its lease; None stands for the model's own setting.

    `keep_alive_s` is how long the model stays loaded after it, 0 not at all. A higher `priority` goes first.
    """

    priority: int | None = None
    keep_alive_s: float | None = None
    timeout_s: float | None = None


DEFAULT_TERMS = LeaseTerms()


class Router(Protocol):
    """Knows which models there are and hands out leases on them."""

    def models(self) -> Sequence[ServedModel]:
        """List what is served, loaded or not."""
        ...

    def resolve(self, name: str) -> str:
        """Return the own name of the model that a client's name or alias means. Raises UnknownModel."""
        ...

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once, or return None when the request must wait. Raises UnknownModel."""
        ...

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease:
        """Wait for a lease, which may load the model and evict others.

        Raises UnknownModel, QueueFull, WaitTimeout, DoesNotFit, EngineLoadFailed or ShuttingDown.
        """
        ...

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Tell what a request for this model that waits now may expect; None if it need not wait."""
        ...


class Operator(Protocol):
    """What an operator sees of the daemon, and orders to it. Names may be aliases; all raise UnknownModel."""

    def statuses(self) -> Sequence[ModelStatus]:
        """How every model is doing."""
        ...

    def devices(self) -> Sequence[DeviceStatus]:
        """How every device's memory is shared."""
        ...

    def why(self, name: str) -> Sequence[Decision]:
        """The last decisions about a model, oldest first."""
        ...

    def recent(self) -> Sequence[Decision]:
        """The last decisions about anything, oldest first."""
        ...

    def log_path(self, name: str) -> Path | None:
        """The log of the model's engine, running or last run."""
        ...

    async def load(self, name: str) -> None:
        """Load it, or return if it is loaded. Raises DoesNotFit, EngineLoadFailed, EngineLoadTimeout."""
        ...

    async def unload(self, name: str) -> None:
        """Unload it once its requests are answered; return when its memory is free."""
        ...

    def pin(self, name: str, pinned: bool) -> None:
        """Keep it loaded whatever happens, or stop doing so."""
        ...

    async def reload(self) -> Sequence[str]:
        """Read the configuration again and say what changed. Raises BadSetting and changes nothing."""
        ...

    def decisions(self) -> AsyncIterator[Decision]:
        """Follow decisions as they are made. A slow reader misses the oldest: the numbers show gaps."""
        ...


@dataclass(frozen=True, slots=True)
class PlanQuery:
    """What to plan, and on what, without loading it.

    The model is one that is served (`model`), a file (`path`), or what `shape` says of a file named `name`,
    with a projector of `projector_bytes`. `recipe` are the fields of a Recipe that shall be other than the
    model's own or, where it has none, the configured ones. `gpus` describes GPUs in place of the detected
    ones. `beside_loaded` counts what Cotenant's models hold as taken; they may go otherwise. Bytes that are
    None are the configured ones.
    """

    model: str | None = None
    path: str | None = None
    shape: ModelShape | None = None
    name: str = ""
    projector_bytes: int = 0
    recipe: Mapping[str, object] = field(default_factory=dict)
    gpus: str | None = None
    beside_loaded: bool = False
    reserve_bytes: int | None = None
    min_budget_bytes: int | None = None
    overhead_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """How a model would lie: the result over `budgets`, in planned order, with all that led to it.

    `recipe` is the one planned, before layers became a number. `path` is None where the file is elsewhere.
    `gpus` is what was requested; `described_as` also names GPUs that the daemon was started with.
    """

    name: str
    path: Path | None
    shape: ModelShape
    recipe: Recipe
    budgets: tuple[Budget, ...]
    result: Placement | Refusal
    reserve_bytes: int
    min_budget_bytes: int
    overhead_bytes: int
    projector_path: Path | None = None
    gpus: str | None = None
    described_as: str | None = None
    problems: tuple[str, ...] = ()


class Planner(Protocol):
    """Plans a model without loading it."""

    async def plan(self, asked: PlanQuery) -> PlanAnswer:
        """Lay a model over devices, or say why it cannot be and what would fit.

        Raises UnknownModel, ModelFileError, BadRequest for a path that it may not look at, BadDeviceSpec,
        BadRecipe and BadSplit.
        """
        ...


class AdvisorBook(Protocol):
    """How the advisor does."""

    def status(self) -> AdvisorStatus:
        """Its questions so far, and whether it is left alone."""
        ...


class AlertBook(Protocol):
    """What is wrong, and what has been."""

    def active(self) -> Sequence[Alert]:
        """What is wrong now, oldest first."""
        ...

    def recent(self) -> Sequence[Alert]:
        """The last beginnings and ends, oldest first."""
        ...

    def totals(self) -> Mapping[AlertKind, int]:
        """How many of each kind have begun."""
        ...

    def follow(self) -> AsyncIterator[Alert]:
        """Follow alerts as they begin and end. A slow reader misses the oldest."""
        ...


class Puller(Protocol):
    """Fetches models from a hub into the folder that is served."""

    def pull(self, name: str) -> AsyncGenerator[PullStep, None]:
        """Fetch a model by its name on the hub and yield the progress; it is verified at the end.

        Closing the generator ends the pull; what has come is kept for the next. Raises BadHubName, HubError
        or NotOffered.
        """
        ...


class Journal(Protocol):
    """Remembers what models took and what was decided, from one run of the daemon to the next.

    Recording returns at once and never fails: what cannot be kept is logged once and left out.
    Answers are empty while nothing can be read.
    """

    def record_footprint(self, record: FootprintRecord) -> None:
        """Keep what a load took on one device."""
        ...

    def record_load(self, record: LoadRecord) -> None:
        """Keep how long a load took."""
        ...

    def record_decision(self, record: DecisionRecord) -> None:
        """Keep a decision."""
        ...

    async def overheads(self, default_bytes: int, engine: str | None = None) -> Mapping[str, int]:
        """Return the overhead learned per device name; `calibration.learned_overheads` states the rule."""
        ...

    async def estimate_errors(self) -> Mapping[str, float]:
        """Return how far off predictions were per model, as a fraction of what was measured."""
        ...

    async def seen_bytes(self) -> Mapping[str, int]:
        """Return what each model was last measured to hold, where a driver reported it."""
        ...

    async def load_times(self) -> Mapping[str, LoadTimes]:
        """Return how long each model's next load should take, by its last ones."""
        ...

    async def decisions(self, model: str | None = None, limit: int = 100) -> Sequence[DecisionRecord]:
        """Return the last `limit` decisions, about one model or all, oldest first."""
        ...

    async def close(self) -> None:
        """Keep what is still to be kept, and close."""
        ...
