"""Several machines: cut off, lost, back, twice, and the daemon killed.

`COTENANT_SIM_SEEDS` says how many seeds.
"""

import os
from collections import Counter

import pytest

from cotenant.simulation.models import Outcome
from tests.simulation.seeded import ALL_FAULTS
from tests.simulation.seeded_nodes import seeded_nodes
from tests.simulation.test_healing import HealingWorld

_SEEDS = int(os.environ.get("COTENANT_SIM_SEEDS", "40"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_whatever_befalls_machines_the_laws_hold_and_every_request_ends() -> None:
    counts: Counter[str] = Counter()
    for seed in range(_SEEDS):
        world = seeded_nodes(seed, ALL_FAULTS).run()
        counts.update(adopted=world.adopted, discarded=world.discarded, forgotten=world.forgotten)
        counts.update(over_machines=world.over_machines)
        counts.update(served=sum(c.outcome is Outcome.SERVED for c in world.clients.values()))
    assert _SEEDS < 40 or min(counts.values()) > 0, f"some of {counts} is never tried"
    assert counts["served"] > 5 * _SEEDS


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_once_all_machines_are_back_every_feasible_request_is_served_within_the_bound() -> None:
    for seed in range(_SEEDS // 2):
        HealingWorld.healed(seeded_nodes(seed, ALL_FAULTS, requests=100, feasible=True)).run()
