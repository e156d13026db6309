"""What is recommended from recorded requests, when nothing is, and that chance decides neither."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.clock import ManualClock
from cotenant.config.configuration import Configuration, ModelDefaults
from cotenant.daemon.workload import POLICY, Workload, advice_as_json
from cotenant.hardware.gpus.inventory import probe
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.simulation.advise import NEEDED_REQUESTS, Advice, Dimension, advise, interval
from cotenant.simulation.models import Request, fit_size
from cotenant.simulation.variant import Tenant

GIB = 1 << 30


def workload(
    requests: Sequence[Request], *, keep_alive_s: float | None = 300.0, gpus: str = "24GiB", **specs: Any
) -> Workload:
    names = sorted({request.model for request in requests})
    given: dict[str, Any] = {"keep_alive_s": keep_alive_s, "slots": 2, "load_s": 8.0, **specs}
    tenants = tuple(Tenant(ModelSpec(name, fit_size(name, 8 * GIB), **given), 600.0) for name in names)
    configuration = Configuration(defaults=ModelDefaults(keep_alive_s=keep_alive_s))
    return Workload(requests, configuration, probe(gpus, ManualClock()).inventory(), stated=tenants)


def advised(at: Workload, seed: int = 0) -> Advice:
    return advise(at.variant, at.dimensions, at.requests, seed=seed)


def every(gap_s: float, models: str, count: int = 240) -> list[Request]:
    return [Request(gap_s * n, models[n % len(models)], 100, 60) for n in range(count)]


def test_a_keep_alive_that_is_plainly_wrong_is_found_whatever_the_seed():
    at = workload(every(25.0, "ab"), keep_alive_s=20.0)
    for seed in (0, 7):
        advice = advised(at, seed)
        assert [(change.key, change.before, change.after) for change in advice.changes] == [
            (("defaults", "keep_alive"), 20.0, 120.0)
        ]
        assert advice.gain is not None
        assert advice.gain.low_s <= advice.gain.mean_s <= advice.gain.high_s < -7
    told = advice_as_json(advice, at, {})
    assert told["yaml"] == "defaults:\n  keep_alive: 2m  # now 20s\n"
    assert told["present"]["loads"] == 240
    assert told["proposed"]["loads"] == 2


def test_the_same_log_and_seed_give_the_same_advice():
    rng, at_s, found = Random(4), 0.0, []
    for _ in range(200):
        at_s += rng.expovariate(1 / 20)
        found.append(Request(at_s, rng.choice("aaabbcd"), 100, rng.randint(20, 400)))
    at = workload(found)
    first, again, other = (
        advise(at.variant, lambda waiting: at.dimensions(waiting)[1:4], at.requests, seed=seed)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first.tried != other.tried
    assert all(after <= before * 1.05 + 0.05 for before, after in (first.waits or {}).values())


def test_too_few_requests_are_not_enough_and_nothing_is_replayed():
    advice = advised(workload(every(25.0, "ab", NEEDED_REQUESTS - 1), keep_alive_s=20.0))
    assert (advice.enough, advice.replays, advice.changes) == (False, 0, ())
    assert advised(workload(every(25.0, "ab", NEEDED_REQUESTS), keep_alive_s=20.0)).changes


def test_where_nothing_can_be_better_nothing_is_recommended():
    at = workload(every(25.0, "ab"), keep_alive_s=None)
    advice = advised(at)
    assert advice.changes == ()
    assert advice.proposed is None
    assert advice_as_json(advice, at, {})["text"].startswith("Nothing is recommended: none of ")


def test_what_makes_another_model_wait_longer_is_not_recommended():
    # Two models, of which one fits: that which is asked for often would win by a pin, the other would starve.
    requests = every(20.0, "aaaab")
    at = workload(requests, gpus="10GiB")
    pin = Dimension(("models", "a", "pinned"), False, (True,))
    advice = advise(at.variant, lambda _: [pin], requests)
    assert advice.changes == ()
    assert [each.hurt for each in advice.tried] == ["b"]


def test_more_slots_are_tried_only_as_far_as_they_cost_and_win_where_requests_queue():
    burst = [Request(600.0 * n + k, "a", 0, 3000, service_s=40.0) for n in range(24) for k in range(10)]
    changes = {change.key: change.after for change in advised(workload(burst)).changes}
    assert changes[("models", "a", "parallel")] == 8
    slower = workload(burst).variant({("models", "a", "parallel"): 8}).tenants[0]
    assert slower.slowdown == 2.0


def test_pinned_models_and_policies_are_tried_and_values_that_are_present_are_not():
    at = workload(every(20.0, "abc"), pinned=True)
    at = replace(at, stated=tuple(replace(tenant, preload=True) for tenant in at.stated))
    found = {each.key: (each.present, each.values) for each in at.dimensions(["a"])}
    assert found[POLICY] == ("gdsf", ["lru", "cost"])
    assert found[("defaults", "keep_alive")] == (300.0, [30.0, 120.0, 900.0, 3600.0, 14400.0, math.inf])
    assert found[("models", "a", "pinned")] == (True, [False])
    assert found[("models", "a", "preload")] == (True, [False])
    assert ("models", "b", "pinned") in found
    assert not {("devices", "order"), ("defaults", "split_policy")} & found.keys(), "there is one card"
    two = replace(at, inventory=probe("8GiB,24GiB", ManualClock()).inventory())
    assert {each.key: each.values for each in two.dimensions([])}[("devices", "order")] == ["index"]


@settings(max_examples=30)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=400), st.integers(0, 9))
def test_an_interval_holds_the_mean_and_is_the_same_again(differences: list[float], seed: int):
    found = interval(differences, seed)
    assert found == interval(differences, seed)
    assert found.mean_s == pytest.approx(sum(differences) / len(differences))
    assert found.low_s <= found.high_s
    assert min(differences) - 1e-9 <= found.low_s
    assert found.high_s <= max(differences) + 1e-9


def test_an_interval_is_off_zero_for_a_shift_and_not_for_noise_or_one_burst():
    rng = Random(1)
    noise = [rng.gauss(0, 3) for _ in range(400)]
    assert interval([each - 1 for each in noise], 0).high_s < 0
    assert interval(noise, 0).low_s < 0 < interval(noise, 0).high_s
    # Neighbours that gain together are one observation: a single burst proves nothing.
    assert interval([*([0.0] * 380), *([-30.0] * 20)], 0).high_s >= 0


def test_a_request_that_is_refused_counts_as_one_that_waits_to_its_end():
    requests = every(20.0, "ab")
    at = workload(requests, gpus="10GiB")
    never: Mapping[tuple[str, ...], object] = {("models", "a", "pinned"): True}
    world = at.variant(never).replay(requests)
    unanswered = [client for client in world.clients.values() if client.granted_at is None]
    assert unanswered
    assert all(client.deadline - client.request.at == 600.0 for client in unanswered)
