"""What the scheduler knows about a model before its first load."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.fragmentation import DefragmentMode
from cotenant.domain.residencies import ONE_COPY, Copies
from cotenant.domain.settings import setting
from cotenant.planning.device_needs import Fit
from cotenant.scheduling.policy import DEFAULT_POLICY

MAX_COUNT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and the rules for it.

    `fit` places it on devices, of which it uses only those that it `allows` (None: any); while some that it
    names are not there, `elsewhere` returns how else it may be placed, None if it may not. Where it
    `is_unclear` which of all devices it names, `fit` refuses them together, and nothing is placed. With
    `together` it is spread over all rather than packed on one. `slots` requests run at once. It is unloaded
    `keep_alive_s` after its last request, None never. `load_s` is the first estimate of its load time,
    replaced by measurements. A higher `priority` waits less. One with `preload` is loaded again if its
    engine dies. `seen_bytes` is what it was measured to hold, if its memory cannot be computed. A `guest`
    is no model, but memory that is leased to a command which is not ours (`guests`). There are as many
    `copies` as it says. `across` places it over several machines, None if it may not be; it is used only
    while no machine that is there could hold it, with nothing else loaded.
    """

    name: str
    fit: Fit
    allows: Callable[[Device], bool] | None = None
    elsewhere: Callable[[Sequence[Device]], Fit | None] | None = None
    is_unclear: Callable[[Sequence[Device]], bool] | None = None
    together: bool = False
    slots: int = 1
    keep_alive_s: float | None = 300.0
    pinned: bool = False
    preload: bool = False
    priority: int = 0
    load_s: float = 10.0
    seen_bytes: int | None = None
    guest: bool = False
    copies: Copies = ONE_COPY
    across: Fit | None = None


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """The policy's numbers, in seconds where they say so.

    `policy` names the eviction policy. A request is overdue after `overdue_s`, or three times the 95th
    percentile of recent waits if that is longer, but never later than after three times `overdue_s`; it may
    then drain busy models, for at most `drain_share` of the time and `drain_limit_s` each. A model stays
    loaded for at least `min_residency_s`, unless an overdue request needs its room; `residence` says how long
    beyond that. If `machines_come`, what fits nowhere may fit once another one answers. If the bytes of a
    gone process are not free after `reclaim_bound_s`, the claim ends, which is reported.
    """

    policy: str = setting(DEFAULT_POLICY, "how victims of an eviction are valued", reads="policy")
    reserve_bytes: int = 0
    overdue_s: float = setting(
        120.0, "after this wait a request goes before all others", key="overdue", reads="duration"
    )
    min_residency_s: float = setting(
        0.0,
        "a loaded model stays at least this long, whoever waits for its room",
        key="min_residency",
        reads="duration",
    )
    drain_share: float = setting(
        0.1, "share of the time that busy models may be drained for overdue requests", reads="share"
    )
    drain_limit_s: float = setting(60.0, "longest single drain", key="drain_limit", reads="duration")
    reclaim_bound_s: float = setting(
        10.0,
        "how long to wait for memory to be seen free after an engine has gone",
        key="reclaim_bound",
        reads="duration",
    )
    unload_grace_s: float = setting(
        30.0,
        "how long an operator's unload waits for the model's requests; then it cuts them",
        key="unload_grace",
        reads="duration",
    )
    max_queue: int = setting(
        256, "requests that may wait for one model", help="requests that may wait for a model", most=MAX_COUNT
    )
    max_queue_total: int = setting(1024, "requests that may wait in all", most=MAX_COUNT)
    max_loaded: int | None = setting(
        None, "models loaded at once; without it, as many as fit", least=1, most=MAX_COUNT
    )
    backoff_s: float = 5.0
    backoff_limit_s: float = 300.0
    defragment: DefragmentMode = setting(
        DefragmentMode.ADVISE,
        "moves of loaded models that would let one fit: told, or made if none may be evicted for it",
    )
    machines_come: bool = False
    prefetch: bool = setting(False, "load models that are likely next into free memory")
