"""Closed-loop clients, and what they show: models in constant demand do not take turns at every request."""

from collections.abc import Iterator
from itertools import islice, repeat
from random import Random

import pytest
from bench.workloads import spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.closed_loop import HABITS, Turn
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.models import Outcome, Request, SimulatedModel
from cotenant.simulation.world import World

_GB = 10**9
_SHORTEST_LOAD = 0.5
"""Load times vary: hardly one is shorter than this share of the usual one."""
_LEARNING = 6
"""Loads before it is known how soon each model is asked for."""


def world_of(*models: SimulatedModel) -> World:
    world = World(Scheduler(SchedulerSettings()), Machine([card(0, 24 * _GB)]), models, Random(1))
    world.begin([spec_of(model) for model in models])
    return world


def one_model(name: str, think_s: float, service_s: float) -> Iterator[Turn]:
    return repeat(Turn(think_s, Request(0.0, name, 0, 0, service_s=service_s)))


@pytest.mark.parametrize("habit", [*HABITS])
def test_a_client_asks_again_only_after_its_answer_and_not_after_the_end(habit: str) -> None:
    world = world_of(*(SimulatedModel(name, (10 * _GB,), load_s=5.0) for name in "abc"))
    world.visit(HABITS[habit](["a", "b", "c"], Random(2), 10.0), until=3000.0)
    answered_at = 0.0

    def ends(client: object) -> None:
        nonlocal answered_at
        answered_at = world.queue.now

    world.on_end = ends
    while world.run(steps=1):
        if world.clients:
            newest = world.clients[max(world.clients)]
            assert world.open_requests <= 1
            assert newest.outcome is not None or newest.request.at >= answered_at
    assert len(world.clients) > 20
    assert all(client.outcome is Outcome.SERVED for client in world.clients.values())
    assert max(client.request.at for client in world.clients.values()) <= 3000


def test_habits_are_what_they_are_called() -> None:
    asked = {
        habit: [turn.request.model for turn in islice(draw(["a", "b", "c"], Random(3), 5.0), 200)]
        for habit, draw in HABITS.items()
    }
    assert len({*asked["steady"]}) == 1
    assert len({*asked["alternating"][::2]}) == len({*asked["alternating"][1::2]}) == 1
    assert asked["agent"][::2] == 100 * ["c"]
    assert len({*asked["agent"][1::2]}) == 1
    switches = sum(a != b for a, b in zip(asked["bursts"], asked["bursts"][1:], strict=False))
    assert 10 < switches < 60
    assert {*asked["bursts"]} == {*"abc"}


@settings(max_examples=40)
@given(
    loads_s=st.tuples(st.floats(4, 40), st.floats(4, 40)),
    thinks_s=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    service_s=st.floats(0.1, 3),
    clients=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_two_models_in_constant_demand_stay_long_enough_to_pay_for_their_loads(
    loads_s: tuple[float, float],
    thinks_s: tuple[float, float],
    service_s: float,
    clients: tuple[int, int],
) -> None:
    models = [SimulatedModel(n, (16 * _GB,), load_s=s) for n, s in zip("ab", loads_s, strict=True)]
    world = world_of(*models)
    for model, think_s, count in zip(models, thinks_s, clients, strict=True):
        for _ in range(count):
            world.visit(islice(one_model(model.name, think_s, service_s), 40), until=1e9)
    world.run(until=40 * (service_s + 2) * 2 + 40 * sum(loads_s))
    for model, think_s, others in zip(models, thinks_s, reversed(clients), strict=True):
        served = sum(client.request.model == model.name for client in world.clients.values())
        # It stays until the others have waited for as long as its load takes.
        each = max(1, _SHORTEST_LOAD * model.load_s / others // (think_s + service_s))
        assert world.totals.of(model.name).loads <= served / each + _LEARNING
