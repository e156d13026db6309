from random import Random

import pytest
from bench.replay import BASELINES, UNBOUNDED, replay
from bench.workloads import ARENA, draw_models

from cotenant.scheduling.policy import Victim
from cotenant.simulation.event_queue import EventQueue
from cotenant.simulation.machine import card
from cotenant.simulation.models import Request, SimulatedModel
from cotenant.simulation.variant import foresight

GB = 10**9


def model(name: str, gb: int, slots: int = 1) -> SimulatedModel:
    return SimulatedModel(name, (gb * GB,), load_s=4.0, decode_per_s=10.0, slots=slots)


def test_a_report_counts_waits_loads_and_idle_bytes() -> None:
    requests = [Request(0.0, "a", 0, 100), Request(1.0, "a", 0, 10), Request(50.0, "a", 0, 100)]
    found = replay(requests, [model("a", 10)], [card(0, 24 * GB)], UNBOUNDED)
    load_s = found.max_s if found.max_s < 12 else found.max_s - 9
    assert (found.served, found.refused, found.loads, found.loaded_bytes) == (3, 0, 1, 10 * GB)
    assert 2 < load_s < 8, "the first waits for the load"
    assert found.max_s == pytest.approx(load_s + 10 - 1), "the second for the slot of the first as well"
    assert found.mean_s == pytest.approx((load_s + found.max_s) / 3)
    assert found.worst_model_s == pytest.approx(found.mean_s)
    assert found.within_30_s == 1.0
    assert found.idle_share == pytest.approx((50 - load_s - 11) / (60 - load_s))


def test_waits_that_no_patience_bears_are_refused() -> None:
    requests = [Request(0.0, "a", 0, 100), Request(0.0, "b", 0, 100)]
    models = [model("a", 20), model("b", 20)]
    found = replay(requests, models, [card(0, 24 * GB)], UNBOUNDED, patience_s=9.0)
    assert (found.served, found.refused) == (1, 1)


def test_sharing_a_card_spares_reloads() -> None:
    requests = [Request(20.0 * n, "ab"[n % 2], 0, 10) for n in range(20)]
    models = [model("a", 8), model("b", 8)]
    alone, shared = (
        BASELINES[name].run(requests, models, [card(0, 24 * GB)]) for name in ("one model per GPU", "lru")
    )
    assert alone.loads == 20
    assert shared.loads == 2


def test_a_keep_alive_lets_idle_models_go() -> None:
    requests = [Request(400.0 * n, "a", 0, 10) for n in range(3)]
    loads = {
        name: BASELINES[name].run(requests, [model("a", 8)], [card(0, 24 * GB)]).loads
        for name in ("lru", "lru, 5 min")
    }
    assert loads == {"lru": 1, "lru, 5 min": 3}


def test_clairvoyance_evicts_whoever_is_wanted_last() -> None:
    requests = [Request(0.0, "a", 0, 10), Request(20.0, "b", 0, 10), Request(40.0, "c", 0, 10)]
    requests += [Request(60.0, "a", 0, 10)]
    models = [model(name, 10) for name in "abc"]
    loads = {
        name: BASELINES[name].run(requests, models, [card(0, 24 * GB)]).loads
        for name in ("lru", "clairvoyant")
    }
    assert loads == {"lru": 4, "clairvoyant": 3}


def test_foresight_counts_those_who_would_queue_behind_the_reload() -> None:
    cost = foresight([Request(10.0, "one", 0, 1), *(Request(10.0 + n, "many", 0, 1) for n in range(3))])

    def victim(name: str) -> Victim:
        return Victim(name, demand=None, load_s=5.0, bytes=1, now=0.0, all_gaps=None)  # type: ignore[arg-type]

    assert cost(victim("many")) > cost(victim("one")) > cost(victim("never")) == 0


@pytest.mark.slow
def test_a_replay_is_the_same_every_time() -> None:
    requests = ARENA.stretched(12).draw(Random(1))[:200]
    models = draw_models(ARENA.names(), Random(2), largest_bytes=20 * GB)
    cards = [card(0, 24 * GB), card(1, 24 * GB)]
    for way in BASELINES.values():
        first = way.run(requests, models, cards)
        assert first.served == 200
        assert way.run(requests, models, cards) == first


def test_simultaneous_actions_run_in_an_order_drawn_by_the_rng() -> None:
    def order(seed: int) -> list[int]:
        done: list[int] = []
        agenda = EventQueue(Random(seed), tick_s=1.0)
        for number in range(6):
            agenda.at(0.1 * number + 0.05, lambda number=number: done.append(number))  # type: ignore[misc]
        while len(agenda):
            agenda.step()
        assert agenda.now == 1.0
        return done

    assert order(1) == order(1) != order(2)
