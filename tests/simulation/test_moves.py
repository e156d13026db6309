"""Models move at random, and cards are drained: the laws hold, and a move costs no request."""

import os
from collections import Counter
from typing import Final

import pytest

from cotenant.domain.moves import MoveOutcome
from cotenant.simulation.machine import NO_FAULTS
from cotenant.simulation.models import Outcome
from tests.simulation.seeded import ALL_FAULTS, Mover, seeded_world

_SEEDS: Final = int(os.environ.get("COTENANT_SIM_SEEDS", "200")) // 4
_EVERY_S: Final = 3.0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_moves_among_all_faults_keep_the_laws() -> None:
    outcomes: Counter[object] = Counter()
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, ALL_FAULTS)
        mover = Mover(seeded, _EVERY_S, drains=True)
        seeded.run()
        outcomes += mover.outcomes
    if _SEEDS >= 50:
        # Reloads are rare: few models are so large.
        ends = {outcome.value for outcome in MoveOutcome} - {MoveOutcome.RELOAD.value}
        assert ends <= outcomes.keys(), "some way to end is never tried"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_moves_alone_cost_no_request() -> None:
    moved = 0
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, NO_FAULTS)
        mover = Mover(seeded, _EVERY_S, drains=False)
        world = seeded.run()
        assert {client.outcome for client in world.clients.values()} == {Outcome.SERVED}
        moved += mover.outcomes[MoveOutcome.LIVE.value]
    assert moved > _SEEDS // 10
