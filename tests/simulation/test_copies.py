"""Models have several copies, and how many changes: the laws hold, and no copy costs a request."""

import os
from collections import Counter
from typing import Final

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command, PublishDecision
from cotenant.simulation.machine import NO_FAULTS
from cotenant.simulation.models import Outcome
from tests.simulation.seeded import ALL_FAULTS, Mover, SeededWorld, seeded_world
from tests.simulation.test_healing import HealingWorld

_SEEDS: Final = int(os.environ.get("COTENANT_SIM_SEEDS", "200")) // 8


def told_of_copies(seeded: SeededWorld) -> Counter[DecisionKind]:
    """Count from now on what is decided about further copies."""
    found: Counter[DecisionKind] = Counter()
    handle = seeded.world.scheduler.handle

    def counted(event: events.Event) -> list[Command]:
        commands = handle(event)
        told = [each.decision for each in commands if isinstance(each, PublishDecision)]
        found.update(decision.kind for decision in told if "copy" in decision.facts)
        return commands

    seeded.world.scheduler.handle = counted  # type: ignore[method-assign]
    return found


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_among_all_faults_and_moves_copies_keep_the_laws() -> None:
    found: Counter[DecisionKind] = Counter()
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, ALL_FAULTS, copies=True)
        told = told_of_copies(seeded)
        if seed % 2:
            Mover(seeded, 3.0, drains=True)
        seeded.run()
        found += told
    if _SEEDS >= 50:
        once = {DecisionKind.READY, DecisionKind.EVICT, DecisionKind.FAILED, DecisionKind.MOVE}
        assert once <= found.keys(), f"copies had too little to do: {found}"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_if_nothing_goes_wrong_copies_cost_no_request_and_nobody_waits_beyond_the_bound() -> None:
    found: Counter[DecisionKind] = Counter()
    for seed in range(_SEEDS):
        seeded = seeded_world(seed, NO_FAULTS, copies=True)
        told = told_of_copies(seeded)
        world = seeded.run()
        assert {client.outcome for client in world.clients.values()} == {Outcome.SERVED}
        found += told
    assert found[DecisionKind.READY] > _SEEDS // 10


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_faults_models_with_copies_are_served_again() -> None:
    for seed in range(_SEEDS // 2):
        HealingWorld.of(seed, copies=True).run()
