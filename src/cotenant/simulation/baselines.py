"""What policies are compared with."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cotenant.domain.devices import Device
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import Policy, Victim
from cotenant.simulation.models import SimulatedModel
from cotenant.simulation.run import Report, replay
from cotenant.simulation.workload import Request

UNBOUNDED: Final = SchedulerSettings(max_queue=1 << 30, max_queue_total=1 << 30)
"""Replays measure waits, and refuse nobody."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to run many models: what to evict, when to unload unasked, and whether models share a card."""

    policy: str
    keep_alive_s: float | None = None
    whole_card: bool = False
    clairvoyant: bool = False

    def run(
        self,
        requests: Sequence[Request],
        models: Sequence[SimulatedModel],
        cards: Sequence[Device],
        *,
        settings: SchedulerSettings = UNBOUNDED,
        seed: int = 0,
    ) -> Report:
        """Replay a workload in this way."""
        return replay(
            requests,
            models,
            cards,
            replace(settings, policy=self.policy),
            policy=foresight(requests) if self.clairvoyant else None,
            keep_alive_s=self.keep_alive_s,
            whole_card=self.whole_card,
            seed=seed,
        )


BASELINES: Final = {
    "one model per GPU": Baseline("lru", whole_card=True),
    "lru": Baseline("lru"),
    "lru, 5 min": Baseline("lru", keep_alive_s=300.0),
    "gdsf": Baseline("gdsf"),
    "cost": Baseline("cost"),
    "clairvoyant": Baseline("cost", clairvoyant=True),
}


def foresight(requests: Sequence[Request]) -> Policy:
    """Return the policy that knows when each model is asked for next: the sooner, the dearer is a reload.

    Not the optimum, which nobody can compute, but what better guesses of the future may bring.
    """
    arrivals: dict[str, list[float]] = {}
    for request in requests:
        arrivals.setdefault(request.model, []).append(request.at)

    def cost(victim: Victim) -> float:
        known = arrivals.get(victim.model, [])
        following = bisect_right(known, victim.now)
        if following == len(known):
            return 0.0
        queued_behind = bisect_right(known, known[following] + victim.load_s) - following - 1
        delay = victim.load_s * (1 + queued_behind / 2)
        return delay / max(1.0, known[following] - victim.now)

    return cost
