"""What was decided and why, as operators and clients are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cotenant.domain.devices import GpuProcess, Sensors
from cotenant.domain.engine_kinds import DEFAULT_KIND, EngineKind
from cotenant.domain.exit_causes import Cause


class DecisionKind(StrEnum):
    """What a decision is about."""

    LOAD = "load"
    READY = "ready"
    EVICT = "evict"
    UNLOAD = "unload"
    DRAIN = "drain"
    FREED = "freed"
    NOT_FREED = "not_freed"
    FAILED = "failed"
    REFUSED = "refused"
    WAITING = "waiting"
    PINNED = "pinned"
    OVERCOMMITTED = "overcommitted"
    DEVICE_LOST = "device_lost"
    ADVISED = "advised"


@dataclass(frozen=True, slots=True)
class Decision:
    """One step of a model's story: a sentence with its numbers, and the event that caused it.

    `at` is seconds of the scheduler's clock; `number` orders decisions and names them in logs. `model` is
    None where a decision concerns a device or the configuration. Where a model goes, the fact `reason` holds
    the UnloadReason.
    """

    number: int
    at: float
    kind: DecisionKind
    model: str | None
    text: str
    cause: str = ""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WaitEstimate:
    """What a waiting request may expect: its place in line, and seconds until it is served, if known."""

    position: int
    eta_s: float | None
    waits_for: str


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come that began `running_s` ago and, by the last loads, takes `expected_s`.

    `read_bytes` of the `total_bytes` of its files are what the engine has taken in, from the disk or from the
    page cache; None where the kernel does not tell, or nobody has looked yet.
    """

    running_s: float
    expected_s: float
    read_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How a model is doing now. Rates are per second over the last minute; what is not known is None.

    `bytes_by_device` is what it claims on each of its devices. `load` is there while it is loading. `runtime`
    is the kind of its engine. `last_cause` is what was found behind `last_failure`, if that was its engine's.
    """

    name: str
    state: str
    pinned: bool = False
    in_flight: int = 0
    queued: int = 0
    slots: int = 0
    idle_s: float | None = None
    keep_alive_left_s: float | None = None
    requests_per_s: float = 0.0
    requests: int = 0
    loads: int = 0
    load_s: float | None = None
    devices: tuple[str, ...] = ()
    bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    predicted_bytes: int | None = None
    reported_bytes: int | None = None
    measured_bytes: int | None = None
    last_failure: str | None = None
    last_cause: Cause | None = None
    load: LoadProgress | None = None
    runtime: EngineKind = DEFAULT_KIND


@dataclass(frozen=True, slots=True)
class DeviceStatus(Sensors):
    """How a device's memory is shared, in bytes: our claims, what others hold, what is left to plan.

    Its sensors are as in its Reading. It admits `max_engines` at
    once, None for any number, shared through MPS if `mps`; `left_out` says why it is not used, if so.
    `processes` are those of others, None where they are not told.
    """

    uuid: str
    index: int | None
    name: str
    total_bytes: int | None
    free_bytes: int | None
    claimed_bytes: int
    foreign_bytes: int | None
    plannable_bytes: int
    overcommitted: bool = False
    residents: tuple[str, ...] = ()
    compute_capability: str | None = None
    compute_mode: str | None = None
    max_engines: int | None = None
    mps: bool = False
    left_out: str | None = None
    processes: tuple[GpuProcess, ...] | None = None
