"""Guests lease memory at random: the laws hold, everything ends, and nobody runs out of memory for them."""

import os
from collections import Counter
from typing import Final

import pytest

from cotenant.domain.residencies import RefusalCode
from cotenant.simulation.machine import NO_FAULTS
from cotenant.simulation.models import Outcome
from tests.simulation.guests import Guests
from tests.simulation.seeded import ALL_FAULTS, Mover, seeded_world

_SEEDS: Final = int(os.environ.get("COTENANT_SIM_SEEDS", "200")) // 10
_EVERY_S: Final = 8.0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_guests_among_all_faults_keep_the_laws() -> None:
    found: Counter[str] = Counter()
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, ALL_FAULTS)
        guests = Guests(seeded, _EVERY_S, honest=seed % 2 == 0)
        Mover(seeded, _EVERY_S, drains=True)
        seeded.run()
        guests.check_end()
        found += guests.outcomes
    assert found["granted"] > _SEEDS
    assert found["command ended"] > _SEEDS // 2


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_what_is_leased_is_there_and_models_are_served_around_it() -> None:
    granted = 0
    served: Counter[Outcome | None] = Counter()
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, NO_FAULTS)
        guests = Guests(seeded, _EVERY_S)
        world = seeded.world
        world.run(until=seeded.ends_by_s)
        guests.check_end()
        assert not world.open_requests, f"seed {seed}: a request does not end"
        assert not world.totals.out_of_memory, f"seed {seed}: a load ran out of memory"
        assert not guests.outcomes["out of memory"], f"seed {seed}: a guest did not get what it leases"
        granted += guests.outcomes["granted"]
        asked = [each for each in world.clients.values() if each.request.model not in guests.leases]
        served.update(each.outcome for each in asked)
        refused = [each for each in asked if each.outcome is not Outcome.SERVED]
        assert {each.refusal for each in refused} <= {RefusalCode.DOES_NOT_FIT}
        assert all(each.retry_after_s for each in refused), f"seed {seed}: nobody says when to come back"
    assert granted > 2 * _SEEDS
    assert served[Outcome.SERVED] > sum(served.values()) // 2
