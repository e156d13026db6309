"""Replays of a workload, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from cotenant.domain.devices import Device
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import Policy
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine
from cotenant.simulation.models import SimulatedModel
from cotenant.simulation.workload import Request, quantile
from cotenant.simulation.world import Outcome, World


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
    world.begin([model.spec(keep_alive_s=keep_alive_s, whole_card=whole_card) for model in models])
    world.expect(requests, patience_s)
    world.run()
    return report(world)


def report(world: World) -> Report:
    """Sum up how the requests of a world fared."""
    account = world.close_account()
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
        loads=account.loads,
        loaded_bytes=account.loaded_bytes,
        idle_share=account.idle_byte_s / account.ready_byte_s if account.ready_byte_s else 0.0,
    )
