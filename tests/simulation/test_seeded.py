"""`COTENANT_SIM_SEEDS=5000` runs as many seeds; a failure names its seed and tells the last steps."""

import os
from collections import Counter
from dataclasses import replace

import pytest

from cotenant.domain.residencies import LeaseId
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command
from cotenant.simulation.event_queue import Timeline
from cotenant.simulation.machine import NO_FAULTS
from cotenant.simulation.models import Outcome
from tests.simulation.seeded import ALL_FAULTS, SimulationFailure, seeded_world

_SEEDS = int(os.environ.get("COTENANT_SIM_SEEDS", "200"))
_WITHOUT_FAULTS = max(1, _SEEDS // 2)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_whatever_goes_wrong_the_laws_hold_and_every_request_ends() -> None:
    ends: Counter[Outcome | None] = Counter()
    for seed in range(_SEEDS):
        ends.update(client.outcome for client in seeded_world(seed, ALL_FAULTS).run().clients.values())
    assert sum(ends.values()) >= 50 * _SEEDS
    assert ends.keys() <= set(Outcome)
    if _SEEDS >= 50:
        assert ends.keys() == set(Outcome), "some way to end is never tried"
        assert ends[Outcome.SERVED] > 10 * _SEEDS


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_if_nothing_goes_wrong_every_request_is_served_within_the_bound() -> None:
    for seed in range(_WITHOUT_FAULTS):
        world = seeded_world(seed, NO_FAULTS).run()
        assert {client.outcome for client in world.clients.values()} == {Outcome.SERVED}


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_seed_tells_the_same_story(seed: int) -> None:
    def timeline() -> list[str]:
        seeded = seeded_world(seed, ALL_FAULTS)
        seeded.world.timeline = Timeline(kept=None)
        return [*seeded.run().timeline.lines()]

    first = timeline()
    assert len(first) > 100
    assert timeline() == first


def test_a_broken_law_is_told_with_its_seed_and_the_last_steps() -> None:
    seeded = seeded_world(7, NO_FAULTS)

    def break_a_law() -> None:
        state = seeded.world.scheduler.state
        for residency in state.residencies.values():
            residency.leases[LeaseId(-1)] = 0.0
        seeded.world.read()

    seeded.world.queue.at(8.0, break_a_law)
    with pytest.raises(SimulationFailure, match=r"seed 7: InvariantViolation: law 3(.|\n)*RequestArrived"):
        seeded.run()


def test_a_scheduler_that_forgets_a_request_is_found_out() -> None:
    seeded = seeded_world(7, NO_FAULTS)
    handle = seeded.world.scheduler.handle

    def forgetful(event: events.Event) -> list[Command]:
        forgets = isinstance(event, events.RequestArrived) and event.ticket == 10
        return [] if forgets else handle(event)

    seeded.world.scheduler.try_grant = lambda *_: None  # type: ignore[method-assign]
    seeded.world.scheduler.handle = forgetful  # type: ignore[method-assign]
    with pytest.raises(SimulationFailure, match="seed 7: ContractViolation"):
        seeded.run()


def test_footprints_that_are_too_small_are_found_out_by_the_card() -> None:
    faults = replace(NO_FAULTS, leaves_served=0.01)
    out_of_memory = sum(seeded_world(seed, faults).run().totals.out_of_memory for seed in range(20))
    assert out_of_memory > 0
