"""Variants of cards and policies over one log, and what is told of each."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.simulation.machine import card
from cotenant.simulation.models import Request, fit_size, speed_of
from cotenant.simulation.results import ReplayResult
from cotenant.simulation.variant import Tenant, Variant

GB = 10**9
SETTINGS = SchedulerSettings(policy="lru")


def tenant(name: str, gb: float = 10, *, slots: int = 1, load_s: float = 4.0, **spec: object) -> Tenant:
    told = ModelSpec(
        name, fit_size(name, round(gb * GB)), slots=slots, keep_alive_s=None, load_s=load_s, **spec
    )  # type: ignore[arg-type]
    return Tenant(told, patience_s=600.0)


def variant(tenants: Sequence[Tenant], *gbs: float, **told: object) -> Variant:
    cards = tuple(card(index, round(gb * GB)) for index, gb in enumerate(gbs))
    return Variant("v", cards, replace(SETTINGS, **told), tuple(tenants))  # type: ignore[arg-type]


def cycle(names: str, gap_s: float = 20.0) -> list[Request]:
    return [Request(gap_s * n, name, 0, 0, service_s=2.0) for n, name in enumerate(names)]


def test_results_count_in_total_and_by_model() -> None:
    found = variant([tenant("a"), tenant("b"), tenant("c")], 24).run(cycle("abcaab"))
    total = found.total
    assert (total.requests, total.answered, total.refusals) == (6, 6, 0)
    assert (total.loads, total.evictions, total.all_unloads) == (5, 3, 3)
    assert total.loaded_bytes == 50 * GB
    assert {name: (s.requests, s.loads) for name, s in found.models.items()} == {
        "a": (3, 2), "b": (2, 2), "c": (1, 1),
    }  # fmt: skip
    assert total.waits.share == pytest.approx(5 / 6), "the second of two in a row waits for nothing"
    assert total.waits.p50_s <= total.waits.p95_s <= total.waits.p99_s <= total.waits.max_s < 10
    assert found.worst_model is not None
    assert found.models[found.worst_model].waits.mean_s == max(s.waits.mean_s for s in found.models.values())
    assert total.loaded_s == pytest.approx(sum(score.loaded_s for score in found.models.values()))
    assert found.held_share == pytest.approx(total.loaded_s * 10 / (24 * found.span_s))


def test_more_memory_never_means_more_loads_by_lru_without_queues() -> None:
    names = "".join(Random(1).choices("abcdef", [6, 5, 4, 3, 2, 1], k=120))
    tenants = [tenant(name, 8) for name in sorted({*names})]
    loads = [variant(tenants, room).run(cycle(names, gap_s=20.0)).total.loads for room in (8, 16, 24, 32, 48)]
    assert loads == sorted(loads, reverse=True)
    assert loads[-1] == len(tenants) < loads[0]


def test_two_policies_differ_where_the_most_wanted_is_not_the_last_used() -> None:
    tenants = [tenant("a", 8), tenant("b", 8), tenant("c", 8)]
    loads = {
        policy: variant(tenants, 17, policy=policy).run(cycle("aaaabc" * 6, gap_s=8.0)).models["a"].loads
        for policy in ("lru", "gdsf")
    }
    assert loads == {"lru": 6, "gdsf": 1}, "gdsf needs to have seen that a is asked for often"


def test_a_priority_is_the_requests_own_also_where_it_is_0_else_the_models() -> None:
    first, second, third = cycle("aaa", gap_s=1.0)
    served = variant([tenant("a", priority=5)], 24)
    longest = [
        served.run([first, replace(second, priority=own), third]).total.waits.max_s for own in (None, 5, 0)
    ]
    assert longest[0] == longest[1] < longest[2], "the third goes before the second"


def test_a_keep_alive_is_the_models_or_the_requests_own() -> None:
    requests = cycle("aa", gap_s=100.0)
    short = replace(tenant("a"), spec=replace(tenant("a").spec, keep_alive_s=30.0))
    own = [replace(request, keep_alive_s=30.0) for request in requests]
    loads = [
        variant([each], 24).run(asked).total.loads
        for each, asked in ((tenant("a"), requests), (short, requests), (tenant("a"), own))
    ]
    assert loads == [1, 2, 2]


def test_who_waits_too_long_is_refused_and_named() -> None:
    slow = replace(tenant("a", load_s=60.0), patience_s=10.0)
    found = variant([slow, tenant("b", 99)], 24).run(
        [*cycle("ab"), Request(50.0, "a", 0, 0, service_s=1.0, patience_s=200.0)]
    )
    assert found.total.refused == {"timed_out": 1, "does_not_fit": 1}
    assert found.models["a"].answered == 1
    (refusal,) = variant([slow, tenant("b", 99)], 24).refusals()
    assert refusal.model == "b"
    assert "needs 92.2 GiB" in refusal.reason


def test_full_queues_refuse_as_the_daemons_do() -> None:
    at_once = [Request(0.0, "a", 0, 0, service_s=5.0) for _ in range(5)]
    assert variant([tenant("a")], 24, max_queue=2).run(at_once).total.refused == {"queue_full": 3}


def test_what_was_measured_counts_unless_a_speed_is_stated() -> None:
    asked = [Request(0.0, "a", 0, 100, service_s=7.0)]
    stated = replace(tenant("a"), tokens_per_s=50.0)
    spans = [variant([each], 24).run(asked, seed=1).span_s for each in (tenant("a"), stated)]
    assert spans[0] - spans[1] == pytest.approx(5.0)


def test_what_is_preloaded_waits_for_nobody_to_ask() -> None:
    eager = replace(tenant("a"), preload=True)
    assert variant([eager], 24).run([Request(20.0, "a", 0, 0, service_s=1.0)]).total.waits.max_s == 0
    assert variant([tenant("a")], 24).run([Request(20.0, "a", 0, 0, service_s=1.0)]).total.waits.max_s > 0


def test_a_replay_is_the_same_every_time_and_another_by_another_seed() -> None:
    def replayed(seed: int) -> ReplayResult:
        return variant([tenant("a"), tenant("b"), tenant("c")], 24).run(cycle("abcabcab", 5.0), seed=seed)

    assert replayed(3) == replayed(3) != replayed(4)


def test_how_far_it_is_is_told_to_the_end() -> None:
    told: list[float] = []
    requests = cycle("ab" * 500, gap_s=30.0)
    both = variant([tenant("a"), tenant("b")], 24)
    assert both.run(requests, progress=told.append) == both.run(requests)
    assert told == sorted(told)
    assert 0.5 < told[-1] <= 1.0


def test_a_size_without_a_file_lies_on_one_card_or_on_as_many_as_it_needs() -> None:
    room = variant([tenant("a", 15)], 10, 10)
    assert [*room.refusals()] == []
    assert room.run(cycle("a")).total.loaded_bytes == 15 * GB
    (refusal,) = variant([tenant("a", 21)], 10, 10).refusals()
    assert refusal.reason == "a needs 19.6 GiB, and there is room for 18.6 GiB"


def test_a_speed_is_reckoned_from_size_and_memory() -> None:
    assert speed_of(9 * GB)[1] == pytest.approx(0.6 * 900 / 9)
    assert speed_of(9 * GB, 450 * GB)[1] == pytest.approx(0.6 * 450 / 9)
    assert speed_of(1)[1] == 200
    assert speed_of(9 * GB, 450 * GB, 77.0)[1] == 77.0


def test_a_small_model_is_unloaded_as_fast_as_it_is_small() -> None:
    tenants = [tenant("a", load_s=0.05), tenant("b", load_s=0.05)]
    requests = [Request(0.2 * n, "ab"[n % 2], 0, 0, service_s=0.01) for n in range(40)]
    for seed in range(5):
        found = variant(tenants, 12, min_residency_s=0.0).run(requests, seed=seed)
        assert found.total.loads == len(requests)
