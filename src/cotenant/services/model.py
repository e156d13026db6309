"""The values of this package: services, GPUs, settings, assignments, configurations, the state of applies.

A VRAM budget is counted in GB of 2^30 bytes, as in the applications that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from cotenant.domain.devices import DeviceId
from cotenant.domain.vendors import Vendor


class Strategy(StrEnum):
    """The rule that assigns services to GPUs."""

    MANUAL = "manual"
    VRAM_BASED = "vram_based"
    LATENCY_OPTIMIZED = "latency_optimized"
    ISOLATION_FIRST = "isolation_first"
    BALANCED = "balanced"


TITLES: Final[Mapping[Strategy, str]] = {
    Strategy.MANUAL: "Manual",
    Strategy.VRAM_BASED: "VRAM-based",
    Strategy.LATENCY_OPTIMIZED: "Latency-optimized",
    Strategy.ISOLATION_FIRST: "Isolation-first",
    Strategy.BALANCED: "Balanced",
}


class ServiceRole(StrEnum):
    """The kind of a service: `isolation_first` keeps LLMs apart."""

    LLM = "llm"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Service:
    """A container that uses a GPU, as its operator describes it.

    `model` is shown to people. `vram_bytes` is its need, None if unknown. `budget_env` is the variable that
    sets its VRAM budget in GB; without one it cannot be limited. `health_url` is polled until it returns a
    status below 400; without it the container's health check counts, and without that, that it keeps running.
    `gpu_count` is how many GPUs a strategy gives it, None for one; `n_gpus` is over how many its assignment
    divides its memory, in equal parts.
    """

    name: str
    model: str | None = None
    vram_bytes: int | None = None
    role: ServiceRole = ServiceRole.OTHER
    latency_critical: bool = False
    enabled: bool = True
    budget_env: str | None = None
    health_url: str | None = None
    health_timeout_s: float = 120.0
    n_gpus: int = 1
    gpu_count: GpuCount | None = None


@dataclass(frozen=True, slots=True)
class ServiceDevice:
    """A GPU, as input of the strategies.

    `occupied_bytes` is in use by others than services: foreign processes and the scheduler's models.
    `assumed_bytes` is in use besides, and taken for services' own, though none is seen to run there.
    `speed` orders GPUs, faster is more (bytes/s of memory bandwidth); None where it is not known.
    `render_node` is the number of an AMD card's device file, /dev/dri/renderD128 for 128.
    """

    id: DeviceId
    index: int
    name: str
    total_bytes: int
    occupied_bytes: int = 0
    speed: float | None = None
    healthy: bool = True
    assumed_bytes: int = 0
    vendor: Vendor | None = None
    render_node: int | None = None

    @property
    def ref(self) -> GpuRef:
        """Its index and id."""
        return GpuRef(self.index, self.id)


GpuCount = int | Literal["all"]


@dataclass(frozen=True, slots=True)
class GpuRef:
    """A GPU: `device_id` stays valid when GPUs are renumbered, `gpu_index` is what people know."""

    gpu_index: int | None = None
    device_id: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A service and the GPUs to which it is pinned; it is unpinned without one.

    `gpu_index` and `device_id` name the first GPU, `more` those after it. `vram_budget_gb` is passed to the
    service in its budget variable, for all its GPUs together; None sets no budget. `by_hand` says that an
    operator chose the GPU, `budget_auto` that Cotenant computed the budget, and so computes it anew with
    every save; `count` is how many GPUs an operator asked for without naming them. None of these makes an
    assignment another one.
    """

    service: str
    gpu_index: int | None = None
    device_id: DeviceId | None = None
    vram_budget_gb: float | None = None
    by_hand: bool = field(default=False, compare=False)
    budget_auto: bool = field(default=False, compare=False)
    more: tuple[GpuRef, ...] = ()
    count: GpuCount | None = field(default=None, compare=False)

    @property
    def gpus(self) -> tuple[GpuRef, ...]:
        """Every GPU that it names, by index or by id."""
        first = GpuRef(self.gpu_index, self.device_id)
        return () if first == GpuRef() else (first, *self.more)

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices of the GPUs that are present, as far as it knows them."""
        return tuple(each.gpu_index for each in self.gpus if each.gpu_index is not None)

    def on(self, gpus: Iterable[GpuRef]) -> Assignment:
        """Return it with these GPUs in place of its own."""
        first, *more = [*gpus] or [GpuRef()]
        return replace(self, gpu_index=first.gpu_index, device_id=first.device_id, more=tuple(more))


class DeviceNames(StrEnum):
    """How compose files name a GPU: by NVML's index, or by UUID, which survives renumbering."""

    INDEX = "index"
    UUID = "uuid"


class WarningKind(StrEnum):
    """The reason of a warning."""

    BUDGET_EXCEEDS_GPU = "budget_exceeds_gpu"
    COMBINED_EXCEEDS_GPU = "combined_exceeds_gpu"
    LLM_ON_SMALL_GPU = "llm_on_small_gpu"
    GPU_MISSING = "gpu_missing"
    GPU_UNHEALTHY = "gpu_unhealthy"
    UNKNOWN_SERVICE = "unknown_service"
    MEMORY_ASSUMED = "memory_assumed"


@dataclass(frozen=True, slots=True)
class ServiceWarning:
    """A warning about one service, one GPU, or both. It does not prevent saving or applying."""

    kind: WarningKind
    text: str
    service: str | None = None
    gpu_index: int | None = None


@dataclass(frozen=True, slots=True)
class AssignmentPlan:
    """Every enabled service with its GPU, in the order of the services, and warnings."""

    strategy: Strategy
    assignments: tuple[Assignment, ...]
    warnings: tuple[ServiceWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """How one service's assignment differs between two configurations; None where it has none.

    `reason` says why its container is recreated although the assignment is the same.
    """

    service: str
    before: Assignment | None
    after: Assignment | None
    reason: str | None = None


class ProgressState(StrEnum):
    """The progress of a service's container in an apply."""

    PENDING = "pending"
    RECREATING = "recreating"
    WAITING_HEALTHY = "waiting_healthy"
    HEALTHY = "healthy"
    FAILED = "failed"


class ApplyState(StrEnum):
    """The state of an apply. `interrupted`: the daemon ended in the middle of it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class OnFailure(StrEnum):
    """What to do when a service does not start or does not become healthy."""

    ROLLBACK = "rollback"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class ServicesSettings:
    """The containers that are pinned to GPUs, and how they are recreated.

    `command` is the argument vector of the compose command, None to find one; `project` is the name of its
    project, None to let compose choose. Generated files go to `output_dir`. `parallel` bounds how many
    services are recreated at once, `command_timeout_s` one run of the compose command.
    """

    compose_files: tuple[Path, ...]
    output_dir: Path
    command: tuple[str, ...] | None = None
    project: str | None = None
    strategy: Strategy = Strategy.VRAM_BASED
    items: tuple[Service, ...] = ()
    device_ids: DeviceNames = DeviceNames.INDEX
    on_failure: OnFailure = OnFailure.ROLLBACK
    parallel: int = 2
    command_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ServiceProgress:
    """The progress of one service: its container, its target GPUs, and an error message if it failed.

    `more` are the GPUs after the first.
    """

    service: str
    state: ProgressState
    gpu_index: int | None = None
    container_id: str | None = None
    message: str | None = None
    more: tuple[GpuRef, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyStatus:
    """An apply: its state and the services that it recreates. Times are Unix seconds.

    `number` is the configuration's. `message` states its result and the cause of a failure.
    """

    number: int
    state: ApplyState
    started_at: float
    finished_at: float | None = None
    services: tuple[ServiceProgress, ...] = ()
    message: str | None = None

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self.state in (ApplyState.RUNNING, ApplyState.ROLLING_BACK)


@dataclass(frozen=True, slots=True)
class ApplyOrder:
    """Which services to recreate, and from what to what.

    `number` is the configuration's. `changed` are the services to recreate, `before` the assignments with
    which their containers were created and `after` the new ones, by service. `restore_number` is the
    configuration whose files are restored if one fails under `OnFailure.ROLLBACK`, None if there is none.
    """

    number: int
    changed: Sequence[Service]
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]
    on_failure: OnFailure = OnFailure.ROLLBACK
    restore_number: int | None = None


@dataclass(frozen=True, slots=True)
class SavedConfiguration:
    """Assignments that were saved at `at` (Unix seconds), and the result of applying them.

    `number` identifies them in the history. `apply` is None for one that was never applied.
    """

    number: int
    at: float
    strategy: Strategy
    assignments: tuple[Assignment, ...] = ()
    apply: ApplyStatus | None = None


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """A GPU as it was last seen; `last_seen_at` is Unix seconds. Unknown is None."""

    gpu_index: int
    device_id: DeviceId
    name: str | None
    total_bytes: int | None
    available_bytes: int | None
    compute_capability: str | None
    last_seen_at: float


@dataclass(frozen=True, slots=True)
class ContainerState:
    """The state of a service's container, as its engine reports it. Unknown is None.

    `assignment` is the one with which it was created, with the GPU that it got; None if Cotenant did not pin
    it. `healthy` is the result of its health check, None if it has none.
    """

    service: str
    container_id: str | None = None
    running: bool = False
    healthy: bool | None = None
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class ServicesView:
    """GPU configuration as an operator sees it: what is saved, what runs, warnings and problems.

    `applied` is the configuration that was applied last, None before the first apply; `changes` is what
    applying the saved one would recreate. `strategy` is the saved one's, before the first the
    configured one. `problems` are sentences (a generated file was edited, a compose file is missing, no GPU
    was found).
    """

    services: Sequence[Service]
    devices: Sequence[ServiceDevice]
    saved: SavedConfiguration | None
    applied: SavedConfiguration | None
    warnings: Sequence[ServiceWarning] = ()
    problems: Sequence[str] = ()
    edited: Sequence[Path] = ()
    changes: Sequence[Change] = ()
    strategy: Strategy = Strategy.VRAM_BASED
