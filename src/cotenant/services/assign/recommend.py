"""Scores what each strategy would assign, and recommends one: why, and what equal scores mean.

The weights and what earns them are in docs/strategies.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.units import GIB, format_bytes, format_count
from cotenant.services.assign.memory import assigned_devices, divided, needed_bytes, relative_speeds
from cotenant.services.model import (
    TITLES,
    Assignment,
    AssignmentPlan,
    Service,
    ServiceDevice,
    ServiceRole,
    Strategy,
)

WEIGHTS: Final = {"fit": 40, "llm_headroom": 20, "critical_speed": 20, "memory": 10, "changes": 10}
"""The points that each measure can earn, 100 in all."""
_WHAT: Final = {
    "fit": "fit",
    "llm_headroom": "the LLM's headroom",
    "critical_speed": "the speed of critical services",
    "memory": "budgets below the need",
    "changes": "containers that change",
}
_ENOUGH_HEADROOM: Final = 0.1
"""The share of its GPU that is enough to stay free for an LLM."""
_OVERFILLED: Final = 0.5
"""The most that a layout which overfills a GPU can earn of the points for the fit."""


@dataclass(frozen=True, slots=True)
class ScoredStrategy:
    """What a strategy would assign, measured. `points` are those of each of WEIGHTS, `score` their sum.

    `worst_over_bytes` is by how much the GPU that is overfilled most is. `llm_headroom_bytes` is the least
    that stays free on a GPU of an LLM, None without LLMs; `critical_speed` the mean speed of the GPUs of
    critical services as a share of the fastest, None without any. `memory_share` is what budgets leave
    services of their need, `n_changes` the containers that an apply would recreate.
    """

    strategy: Strategy
    assignments: tuple[Assignment, ...]
    worst_over_bytes: int
    llm_headroom_bytes: int | None
    critical_speed: float | None
    memory_share: float
    n_changes: int
    points: Mapping[str, float]
    reason: str

    @property
    def fits(self) -> bool:
        """Whether it overfills no GPU."""
        return self.worst_over_bytes == 0

    @property
    def score(self) -> float:
        """The points together, to a tenth."""
        return round(sum(self.points.values()), 1)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Every strategy with its score, in the order of Strategy, and the one to use, None if there is none.

    `text` says why in a sentence, `tie` what strategies of the same score have in common, empty without any.
    `measured_bytes` is what services were measured to hold; for the others their stated need counts.
    """

    recommended: Strategy | None
    text: str
    tie: str = ""
    strategies: tuple[ScoredStrategy, ...] = ()
    measured_bytes: Mapping[str, int] = field(default_factory=dict)


def recommend(
    plans: Iterable[tuple[AssignmentPlan, int]],
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    measured_bytes: Mapping[str, int],
    present: Strategy,
) -> Recommendation:
    """Score the plans, each with the number of containers that it changes, and recommend one.

    `services` are the enabled ones. `measured_bytes` replaces their stated need. `devices` have the bytes of
    others beside that. Of equal scores the `present` strategy wins, then fewer changes, then the order of
    Strategy, `manual` last; one that pins nothing is never recommended.
    """
    scored = tuple(_scored(plan, count, services, devices, measured_bytes) for plan, count in plans)
    able = [each for each in scored if any(service.gpus for service in each.assignments)]
    if not able:
        why = "no service can be pinned" if services else "no service is configured"
        return Recommendation(None, f"No strategy is recommended: {why}.", "", scored, measured_bytes)
    manual, kept = Strategy.MANUAL, present
    able.sort(key=lambda one: (-one.score, one.strategy is not kept, one.n_changes, one.strategy is manual))
    best, *others = able
    text = f"{TITLES[best.strategy]} is recommended, with {best.score:g} of 100 points"
    behind = next((each for each in others if each.score < best.score), None)
    if behind is not None:
        ahead = {name: best.points[name] - behind.points[name] for name in WEIGHTS}
        loses, wins = _listed(ahead), _listed({name: -points for name, points in ahead.items()})
        text += f": {TITLES[behind.strategy]}, which comes next with {behind.score:g}, "
        text += f"loses {loses or 'a little of each'}{wins and f', and wins {wins}'}"
    equal = [each for each in others if each.score == best.score]
    tie = _tie(best, equal, present) if equal else ""
    return Recommendation(best.strategy, f"{text}.", tie, scored, measured_bytes)


def _listed(points: Mapping[str, float]) -> str:
    """List what earns points, the most first."""
    shown = sorted(((round(count, 1), name) for name, count in points.items()), reverse=True)
    return " and ".join(f"{count:g} for {_WHAT[name]}" for count, name in shown if count > 0)


def _tie(best: ScoredStrategy, equal: Sequence[ScoredStrategy], present: Strategy) -> str:
    """Say what strategies of the best score have in common, and why one of them is recommended."""
    names = " and ".join(TITLES[each.strategy] for each in equal)
    alike = all(each.assignments == best.assignments for each in equal)
    how = "they assign every service alike" if alike else "they differ in nothing that counts"
    if best.strategy is present:
        why = "is the present one"
    elif any(each.n_changes > best.n_changes for each in equal):
        why = "changes the fewest containers"
    else:
        why = "comes first in the list"
    return (
        f"{names} score{'s' if len(equal) == 1 else ''} the same, since {how}; {TITLES[best.strategy]} {why}."
    )


def _scored(
    plan: AssignmentPlan,
    n_changes: int,
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    measured_bytes: Mapping[str, int],
) -> ScoredStrategy:
    named = {each.service: each for each in plan.assignments}
    placed = [
        (service, assignment, _gpus(assignment, devices))
        for service in services
        for assignment in (named.get(service.name, Assignment(service.name)),)
    ]
    over, worst, headroom = _memory(placed, devices, measured_bytes)
    speeds = relative_speeds(devices)
    slowest = [
        min((speeds[gpu.id] for gpu in gpus), default=0.0) for one, _, gpus in placed if one.latency_critical
    ]
    speed = sum(slowest) / len(slowest) if slowest else None
    needed = sum(one.vram_bytes or 0 for one in services)
    given = sum(_allowed(one, each) for one, each, _ in placed)
    share = given / needed if needed else 1.0
    shares = {
        "fit": _OVERFILLED * max(0.0, 1 - worst / max(1, over.total_bytes)) if over else 1.0,
        "llm_headroom": min(1.0, max(0.0, headroom[0] / _ENOUGH_HEADROOM)) if headroom else 1.0,
        "critical_speed": 1.0 if speed is None else speed,
        "memory": share,
        "changes": max(0.0, 1 - n_changes / len(services)) if services else 1.0,
    }
    left = headroom[1] if headroom else None
    facts = [f"GPU {over.index} is overfilled by {format_bytes(worst)}" if over else "Everything fits"]
    if left is not None:
        facts.append(f"the LLM's GPU keeps {format_bytes(left) if left > 0 else 'nothing'} free")
    if speed is not None:
        facts.append(f"critical services get {speed:.0%} of the fastest GPU's speed")
    if share < 0.9995:
        facts.append(f"budgets leave {share:.0%} of the memory needed")
    facts.append(f"{format_count(n_changes, 'container') if n_changes else 'no container'} would change")
    return ScoredStrategy(
        plan.strategy,
        plan.assignments,
        worst,
        left,
        speed,
        share,
        n_changes,
        {name: weight * shares[name] for name, weight in WEIGHTS.items()},
        f"{'; '.join(facts)}.",
    )


_Placed = Sequence[tuple[Service, Assignment, Sequence[ServiceDevice]]]


def _memory(
    placed: _Placed, devices: Sequence[ServiceDevice], measured_bytes: Mapping[str, int]
) -> tuple[ServiceDevice | None, int, tuple[float, int] | None]:
    """Return the GPU that services overfill most, None if none, and by how many bytes; then the headroom.

    That is the least that stays free on a GPU of an LLM, as a share of the GPU and in bytes; None without.
    """
    free = {device.id: device.total_bytes - device.occupied_bytes for device in devices}
    over: tuple[int, ServiceDevice | None] = (0, None)
    for service, assignment, gpus in placed:
        one = divided(service, assignment)
        use = needed_bytes(one, assignment.vram_budget_gb)
        measured = measured_bytes.get(service.name)
        if measured is not None:
            limited = assignment.vram_budget_gb is not None and service.budget_env is not None
            use = min(use if limited else measured, -(-measured // one.n_gpus))
        for device in gpus:
            free[device.id] -= use
            if use and -free[device.id] > over[0]:
                over = -free[device.id], device
    headroom = [
        (free[device.id] / max(1, device.total_bytes), free[device.id])
        for service, _, gpus in placed
        if service.role is ServiceRole.LLM
        for device in gpus
    ]
    return over[1], over[0], min(headroom, default=None)


def _allowed(service: Service, assignment: Assignment) -> int:
    """Return the bytes of its need that a service may take."""
    need, budget_gb = service.vram_bytes or 0, assignment.vram_budget_gb
    return need if budget_gb is None or service.budget_env is None else min(need, round(budget_gb * GIB))


def _gpus(assignment: Assignment, devices: Sequence[ServiceDevice]) -> Sequence[ServiceDevice]:
    """Return the GPUs of an assignment; that of lowest index for a service that is not pinned, by CUDA."""
    return assigned_devices(assignment, devices) or sorted(devices, key=lambda each: each.index)[:1]
