"""Services: containers that use a GPU and that Cotenant does not route to, and where they are pinned.

A VRAM budget is counted in GB of 2^30 bytes, as the applications that read it and their documents do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cotenant.domain.devices import DeviceId


class Strategy(StrEnum):
    """The rule that assigns services to GPUs."""

    MANUAL = "manual"
    VRAM_BASED = "vram_based"
    LATENCY_OPTIMIZED = "latency_optimized"
    ISOLATION_FIRST = "isolation_first"
    BALANCED = "balanced"


class ServiceRole(StrEnum):
    """What a service does, as far as it matters to where it goes."""

    LLM = "llm"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Service:
    """A container that uses a GPU, as its operator describes it.

    `model` tells people what runs in it. `vram_bytes` is what it needs, None if nobody said. `budget_env` is
    the variable by which it takes a VRAM budget in GB; a service without one cannot be told to use less.
    `health_url` is asked until it answers with a status below 400; without it the container's own check
    counts, and where there is none, that it still runs.
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


@dataclass(frozen=True, slots=True)
class ServiceDevice:
    """A GPU as strategies see it.

    `occupied_bytes` is in use there by others than services: foreign processes and the scheduler's residents.
    `speed` orders GPUs, faster is more (bytes/s of memory bandwidth); None where it is not known.
    """

    id: DeviceId
    index: int
    name: str
    total_bytes: int
    occupied_bytes: int = 0
    speed: float | None = None
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Assignment:
    """A service and the GPU to which it is pinned; None leaves it unpinned.

    `device_id` outlives a renumbering of the GPUs, `gpu_index` is what people know. `vram_budget_gb` is what
    the service is told through its budget variable; None tells it nothing.
    """

    service: str
    gpu_index: int | None = None
    device_id: DeviceId | None = None
    vram_budget_gb: float | None = None


class DeviceNames(StrEnum):
    """How compose files name a GPU: by NVML's index, or by UUID, which outlives a renumbering."""

    INDEX = "index"
    UUID = "uuid"


class WarningKind(StrEnum):
    """What an assignment is warned of."""

    BUDGET_EXCEEDS_GPU = "budget_exceeds_gpu"
    COMBINED_EXCEEDS_GPU = "combined_exceeds_gpu"
    LLM_ON_SMALL_GPU = "llm_on_small_gpu"
    GPU_MISSING = "gpu_missing"
    GPU_UNHEALTHY = "gpu_unhealthy"
    UNKNOWN_SERVICE = "unknown_service"


@dataclass(frozen=True, slots=True)
class ServiceWarning:
    """What should be known of an assignment and stops nothing; about one service, one GPU, or both."""

    kind: WarningKind
    text: str
    service: str | None = None
    gpu_index: int | None = None


@dataclass(frozen=True, slots=True)
class AssignmentPlan:
    """Every enabled service with its GPU, in the order of the services, and what should be known of it."""

    strategy: Strategy
    assignments: tuple[Assignment, ...]
    warnings: tuple[ServiceWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """How one service's assignment differs between two configurations; None where it has none."""

    service: str
    before: Assignment | None
    after: Assignment | None


class ProgressState(StrEnum):
    """How far a service's container is in an apply."""

    PENDING = "pending"
    RECREATING = "recreating"
    WAITING_HEALTHY = "waiting_healthy"
    HEALTHY = "healthy"
    FAILED = "failed"


class ApplyState(StrEnum):
    """How an apply stands. `interrupted`: the daemon ended in the middle of it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class OnFailure(StrEnum):
    """What is done when a service does not come back."""

    ROLLBACK = "rollback"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class ServiceProgress:
    """How far one service is: its container, where it was told to go, and what went wrong, in words."""

    service: str
    state: ProgressState
    gpu_index: int | None = None
    container_id: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ApplyStatus:
    """An apply: which services are recreated and how it stands. Times are Unix seconds.

    `number` is the configuration's. `message` says in one sentence how it ended and what was to blame.
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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ApplyStatus:
        """Read what `dataclasses.asdict` made. Raises KeyError, TypeError or ValueError for anything else."""
        services = tuple(
            ServiceProgress(**{**each, "state": ProgressState(each["state"])}) for each in value["services"]
        )
        return cls(**{**value, "state": ApplyState(value["state"]), "services": services})


@dataclass(frozen=True, slots=True)
class ApplyOrder:
    """Which services to recreate, and from what to what.

    `number` is the configuration's. `changed` are the services to recreate, `before` what their containers
    were created with and `after` what they shall be created with, by service. `restore_number` is the
    configuration whose files are put back if one fails under `OnFailure.ROLLBACK`, None if there is none.
    """

    number: int
    changed: Sequence[Service]
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]
    on_failure: OnFailure = OnFailure.ROLLBACK
    restore_number: int | None = None


@dataclass(frozen=True, slots=True)
class SavedConfiguration:
    """Assignments that were saved at `at` (Unix seconds), and how applying them ended.

    `number` counts them, and names them in the history. `apply` is None for one that was never applied.
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
    """What a service's container is now, as its engine tells. Unknown is None.

    `assignment` is the one with which it was created, None if Cotenant did not pin it. `healthy` is the
    verdict of its own check, None if it has none.
    """

    service: str
    container_id: str | None = None
    running: bool = False
    healthy: bool | None = None
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class ServicesView:
    """GPU configuration as an operator sees it: what is saved, what runs, and what should be known.

    `applied` is the configuration that the containers were last created with, None before the first apply;
    `changes` is what applying the saved one would change. `strategy` is the saved one's, before the first the
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
