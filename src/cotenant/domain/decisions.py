"""What was decided and why, for operators and clients."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cotenant.domain.devices import GpuProcess, Sensors
from cotenant.domain.engine_kinds import DEFAULT_KIND, EngineKind
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import FileFetch, LoadCost


class DecisionKind(StrEnum):
    """The kind of a decision."""

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
    WARM = "warm"
    MOVE = "move"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Decision:
    """One step in the life of a model: a sentence with its numbers, and the event that caused it.

    `at` is seconds of the scheduler's clock; `number` orders decisions and identifies them in logs. `model`
    is None if a decision is about a device or the configuration. If a model is unloaded, the fact `reason` is
    the UnloadReason; if a move has ended, the fact `outcome` is the MoveOutcome.
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
    """What a waiting request may expect: its position in the queue, and seconds until served, if known."""

    position: int
    eta_s: float | None
    waits_for: str


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The progress of a load that began `running_s` ago; `expected_s` is estimated from the last loads.

    The engine has read `read_bytes` of the `total_bytes` of its files, from the disk or the page cache; None
    if the kernel does not report it, or before the first measurement. Before that its machine may be
    `fetching` them.
    """

    running_s: float
    expected_s: float
    read_bytes: int | None = None
    total_bytes: int | None = None
    fetching: FileFetch | None = None


@dataclass(frozen=True, slots=True)
class OtherEngine:
    """An engine of a model besides its first one: `copy`, `successor`, `leaving`, or `suspended`.

    A further `copy` serves too, or will. A copy that moves has a successor and those that leave; one that is
    suspended is on a node that does not answer. `name` is that of the copy, such as `m#2`.
    """

    role: str
    state: str
    bytes_by_device: Mapping[str, int]
    in_flight: int
    name: str = ""
    measured_bytes: int | None = None
    keep_alive_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The current state of a model. Rates are per second over the last minute; unknown is None.

    `bytes_by_device` is what it claims on each of its devices. `load` is set while it is loading. `runtime`
    is the kind of its engine. `last_cause` is the cause of `last_failure`, if its engine failed. `warm_bytes`
    of its files are kept in host RAM. `node` is the machine that it is on, where there are several, and
    `launcher` what starts its engines there: `ray`. `others` are its engines besides its first one, which
    `in_flight`, `slots` and all about memory are of. Of `max_copies` that it may have, `copies` are ready.
    `load_costs` are how soon it loads on each machine that has reported its files, `fetches` what machines
    fetch of them now.
    Over several machines, `node` is the one that runs it, and `link_bytes` are what each token that it
    generates takes over the network.
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
    warm_bytes: int | None = None
    node: str | None = None
    launcher: str | None = None
    others: tuple[OtherEngine, ...] = ()
    copies: int = 0
    max_copies: int = 1
    load_costs: Mapping[str, LoadCost] = field(default_factory=dict)
    fetches: tuple[FileFetch, ...] = ()
    link_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Memory of devices that a command leases, or waits for (`waiting`), in bytes.

    It has been in its `state` since `since_s` ago, and ends in `left_s`, None for no set time. Its process
    `pid` held `measured_bytes` when last seen. `env` shows a process exactly the devices of the lease.
    """

    name: str
    state: str
    predicted_bytes: int
    since_s: float
    left_s: float | None = None
    devices: tuple[str, ...] = ()
    bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    measured_bytes: int | None = None
    pid: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WarmStatus:
    """The model files that are kept in host RAM, in bytes: at most `budget_bytes`, `by_model` as last seen.

    `paused` says why nothing is read into RAM now, if so. Of several machines the bytes are sums, but of a
    model those on the machine that keeps most of it.
    """

    budget_bytes: int = 0
    kept_bytes: int = 0
    by_model: Mapping[str, int] = field(default_factory=dict)
    paused: str | None = None

    @classmethod
    def of_all(cls, by_node: Mapping[str | None, "WarmStatus"]) -> "WarmStatus":
        """Return the status of several machines, None being this one."""
        by_model: dict[str, int] = {}
        for status in by_node.values():
            for name, count in status.by_model.items():
                by_model[name] = max(count, by_model.get(name, 0))
        paused = [
            status.paused if node is None else f"{node}: {status.paused}"
            for node, status in by_node.items()
            if status.paused
        ]
        return cls(
            sum(status.budget_bytes for status in by_node.values()),
            sum(status.kept_bytes for status in by_node.values()),
            by_model,
            "; ".join(paused) or None,
        )


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The saved slots of unloaded models: how many, and their bytes, at most `limit_bytes`.

    The others count since the start: slots saved and restored, and the tokens that were not computed again.
    """

    limit_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    saved_total: int = 0
    restored_total: int = 0
    restored_tokens_total: int = 0


@dataclass(frozen=True, slots=True)
class DeviceStatus(Sensors):
    """How a device's memory is shared, in bytes: our claims, what others hold, what is left to plan.

    Its sensors are those of its Reading. It admits `max_engines` at once, None for any number, shared through
    MPS if `mps`; `left_out` says why it is not used.
    `drain` is `draining` while models leave it, then `drained`. `node` is its machine, where there are
    several. `processes` are those of others, None if
    unknown. A `unified` GPU shares host RAM, of which its bytes are.
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
    drain: str | None = None
    node: str | None = None
    processes: tuple[GpuProcess, ...] | None = None
    unified: bool = False

    @property
    def used_bytes(self) -> int | None:
        """Bytes in use by anyone."""
        total, free = self.total_bytes, self.free_bytes
        return None if total is None or free is None else total - free


class NodeState(StrEnum):
    """Whether a machine answers, and is used."""

    READY = "ready"
    SUSPECT = "suspect"
    """It has not answered for a while: nothing new goes there."""
    LOST = "lost"
    """It counts as gone, with all that ran there, until it answers again."""
    DRAINED = "drained"
    """It answers, and an operator wants nothing to run there."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A machine of the fleet; seconds and bytes, and what is unknown is None.

    It has been in its `state` for `since_s`. `silent_s` is how long ago it last answered, `lease_left_s` how
    long its engines would go on without a daemon, and `link_s` how long its last answer took. Its clock is
    `clock_off_s` ahead of ours. What starts its agent lists it `ways` times. `refused` says why its agent is
    not listened to. `warnings` are sentences on what else is wrong with it.
    """

    name: str
    state: NodeState
    since_s: float = 0.0
    silent_s: float | None = None
    address: str | None = None
    launcher: str = "ray"
    cards: int = 0
    free_bytes: int | None = None
    engines: int = 0
    lease_left_s: float | None = None
    link_s: float | None = None
    clock_off_s: float | None = None
    version: str | None = None
    machine_id: str | None = None
    ways: int = 1
    refused: str | None = None
    warnings: tuple[str, ...] = ()


class Histogram:
    """Counts of values by upper bound, the last one unbounded, and the sum of the values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
