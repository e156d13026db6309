"""What the scheduler knows of a model before it has ever run."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.planning.device_choice import Fit
from cotenant.scheduling.policy import DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and the rules for it.

    `fit` lays it over devices; `together` says that it is better spread than packed on one. `slots` requests
    run at once. It is unloaded `keep_alive_s` after its last request, None never. `load_s` is a first guess
    of its load time, replaced by what is seen. A higher `priority` waits less.
    """

    name: str
    fit: Fit
    together: bool = False
    slots: int = 1
    keep_alive_s: float | None = 300.0
    pinned: bool = False
    priority: int = 0
    load_s: float = 10.0


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """The policy's numbers, in seconds where they say so.

    `policy` names how victims are valued (see `policy`). A request is overdue after `overdue_s`, or three
    times the 95th percentile of recent waits if that is longer, but never later than after three times
    `overdue_s`; it may then drain busy models, for at most `drain_share` of the time and `drain_limit_s` at a
    go. A model stays loaded for `min_residency_s`, or its own load time if that is longer, unless an overdue
    request needs its room. Bytes not seen back `reclaim_bound_s` after a process has gone are given up, and
    reported.
    """

    policy: str = DEFAULT_POLICY
    reserve_bytes: int = 0
    overdue_s: float = 120.0
    min_residency_s: float = 1.0
    drain_share: float = 0.1
    drain_limit_s: float = 60.0
    reclaim_bound_s: float = 10.0
    max_queue: int = 256
    max_queue_total: int = 1024
    max_loaded: int | None = None
    backoff_s: float = 5.0
    backoff_limit_s: float = 300.0
    prefetch: bool = False
