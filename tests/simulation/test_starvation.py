"""The guard: a rare model gets its turn beside a hot one, within what its settings promise."""

from random import Random

import pytest
from bench.workloads import spec_of

from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import POLICIES
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.models import Request, SimulatedModel
from cotenant.simulation.world import World

_GB = 10**9
_LOAD_SPREAD = 2.0
_SETTINGS = SchedulerSettings(overdue_s=30.0, drain_limit_s=20.0)


def longest_waits(models: list[SimulatedModel], requests: list[Request], policy: str) -> dict[str, float]:
    settings = SchedulerSettings(
        policy=policy, overdue_s=_SETTINGS.overdue_s, drain_limit_s=_SETTINGS.drain_limit_s
    )
    world = World(Scheduler(settings), Machine([card(0, 24 * _GB)]), models, Random(1))
    world.begin([spec_of(model) for model in models])
    world.expect(sorted(requests, key=lambda request: request.at))
    world.run()
    longest: dict[str, float] = {}
    for client in world.clients.values():
        assert client.granted_at is not None
        wait = client.granted_at - client.request.at
        longest[client.request.model] = max(wait, longest.get(client.request.model, 0.0))
    return longest


def busy(model: SimulatedModel, rng: Random, gap_s: float, service_s: float, seconds: float) -> list[Request]:
    """Requests that never let a model go idle."""
    at, found = 0.0, []
    while at < seconds:
        at += rng.expovariate(1 / gap_s)
        tokens = round(rng.uniform(0.5, 1) * service_s * model.decode_per_s)
        found.append(Request(at, model.name, 0, tokens))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*POLICIES])
def test_a_rare_model_beside_a_hot_one_waits_no_longer_than_its_bound(policy: str) -> None:
    hot = SimulatedModel("hot", (20 * _GB,), load_s=5.0, slots=8)
    rare = SimulatedModel("rare", (20 * _GB,), load_s=5.0)
    service_s = 10.0
    requests = busy(hot, Random(2), 1.5, service_s, 1200)
    requests += [Request(60.0 + 120 * n, "rare", 10, 10) for n in range(9)]
    longest = longest_waits([hot, rare], requests, policy)
    unload_s, load_s = 1.0, _LOAD_SPREAD * rare.load_s
    # Overdue; credit for the drain; the longest request in flight; the swap.
    assert longest["rare"] > _SETTINGS.overdue_s, "the hot model was idle: this shows nothing"
    assert longest["rare"] <= _SETTINGS.overdue_s + _SETTINGS.drain_limit_s + service_s + unload_s + load_s
    assert longest["hot"] < _SETTINGS.overdue_s + service_s + 2 * (unload_s + load_s)


@pytest.mark.slow
def test_small_models_that_come_and_go_do_not_keep_a_large_one_out() -> None:
    small = [SimulatedModel(f"small{n}", (7 * _GB,), load_s=4.0, slots=2) for n in range(8)]
    large = SimulatedModel("large", (20 * _GB,), load_s=8.0)
    rng, service_s = Random(3), 6.0
    requests = [request for model in small for request in busy(model, rng, 15.0, service_s, 1500)]
    requests += [Request(100.0 + 300 * n, "large", 10, 10) for n in range(5)]
    longest = longest_waits([*small, large], requests, "cost")
    # At worst all small ones are overdue before it: each has its turn of a drain and a swap.
    turn_s = service_s + 1.0 + _LOAD_SPREAD * small[0].load_s + 1 / _SETTINGS.drain_share
    assert longest["large"] <= 3 * _SETTINGS.overdue_s + 3 * turn_s + _LOAD_SPREAD * large.load_s


@pytest.mark.slow
def test_under_overload_the_rare_model_waits_no_longer_than_the_others() -> None:
    models = [SimulatedModel(f"m{n}", (7 * _GB,), load_s=4.0, slots=2) for n in range(8)]
    rare = SimulatedModel("rare", (20 * _GB,), load_s=8.0)
    requests = [request for model in models for request in busy(model, Random(4), 12.0, 25.0, 600)]
    requests.append(Request(100.0, "rare", 10, 10))
    longest = longest_waits([*models, rare], requests, "cost")
    assert longest["rare"] <= max(longest[model.name] for model in models)
