"""Replays of a workload, and what they come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from bench.workloads import spec_of
from cotenant.domain.devices import Device
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import Policy
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine
from cotenant.simulation.models import Outcome, Request, SimulatedModel, quantile
from cotenant.simulation.variant import foresight
from cotenant.simulation.world import World


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay came to. Waits are seconds from arrival to grant, of the requests that were served.

    `worst_model_s` is the mean wait of the model that waited longest; `idle_share` is how much of the loaded
    bytes, over time, nobody used. Shares are from 0 to 1.
    """

    served: int
    refused: int
    mean_s: float
    p95_s: float
    p99_s: float
    max_s: float
    worst_model_s: float
    within_10_s: float
    within_30_s: float
    loads: int
    loaded_bytes: int
    idle_share: float


def replay(
    requests: Sequence[Request],
    models: Sequence[SimulatedModel],
    cards: Sequence[Device],
    settings: SchedulerSettings,
    *,
    policy: Policy | None = None,
    keep_alive_s: float | None = None,
    whole_card: bool = False,
    patience_s: float = math.inf,
    seed: int = 0,
) -> Report:
    """Serve a workload in virtual time; `policy` stands in for the one that the settings name.

    Load times vary about each model's own by `seed`; nothing fails. With `whole_card` a model shares its card
    with nobody.
    """
    world = World(Scheduler(settings, policy), Machine(cards), models, Random(seed), watched=False)
    world.begin([spec_of(model, keep_alive_s=keep_alive_s, whole_card=whole_card) for model in models])
    world.expect(requests, patience_s)
    world.run()
    return report(world)


def report(world: World) -> Report:
    """Sum up how the requests of a world fared."""
    totals = world.final_totals()
    waits: list[float] = []
    by_model: dict[str, list[float]] = {}
    for client in world.clients.values():
        if client.granted_at is not None:
            wait = client.granted_at - client.request.at
            waits.append(wait)
            by_model.setdefault(client.request.model, []).append(wait)
    waits.sort()
    count = max(1, len(waits))
    return Report(
        served=len(waits),
        refused=sum(c.outcome in (Outcome.REFUSED, Outcome.TIMED_OUT) for c in world.clients.values()),
        mean_s=sum(waits) / count,
        p95_s=quantile(waits, 0.95),
        p99_s=quantile(waits, 0.99),
        max_s=waits[-1] if waits else 0.0,
        worst_model_s=max((sum(own) / len(own) for own in by_model.values()), default=0.0),
        within_10_s=sum(wait <= 10 for wait in waits) / count,
        within_30_s=sum(wait <= 30 for wait in waits) / count,
        loads=totals.loads,
        loaded_bytes=totals.loaded_bytes,
        idle_share=totals.idle_byte_s / totals.ready_byte_s if totals.ready_byte_s else 0.0,
    )


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
