"""Whatever an advisor says, and however often: every request is served, within the same bound."""

import os
from random import Random

import pytest

from cotenant.domain.advisors import Advice, Hint
from cotenant.scheduling import events
from cotenant.simulation.machine import NO_FAULTS
from tests.simulation.seeded import SeededWorld, seeded_world

_SEEDS = int(os.environ.get("COTENANT_SIM_SEEDS", "60"))


def advise(seeded: SeededWorld, every_s: float) -> list[int]:
    """Have advice drawn at random come again and again; note for how many models each then stands."""
    stands: list[int] = []
    world, rng = seeded.world, Random(seeded.seed + 1)

    def hint(loads: int) -> Hint:
        factor = rng.choice([0.0, 0.25, 1.0, 4.0, 1e9])
        return Hint(loads, factor, rng.choice([0.0, 600.0, 1e9]), rng.random() < 0.5)

    def comes() -> None:
        now, models = world.queue.now, world.scheduler.state.models
        if now < seeded.ends_by_s - 10:
            hints = {name: hint(model.loads) for name, model in models.items()}
            world.send(events.AdviceGiven(now, Advice(now, hints)))
            stands.append(len(world.scheduler.state.advised))
            world.queue.after(rng.expovariate(1 / every_s), comes)

    world.queue.after(0.0, comes)
    return stands


@pytest.mark.slow
def test_without_faults_everybody_is_served_in_time_under_any_advice() -> None:
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, NO_FAULTS)
        stands = advise(seeded, every_s=2.0)
        seeded.run()
        assert max(stands) > 0
