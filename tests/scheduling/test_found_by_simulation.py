"""Faults that seeded worlds brought to light, each as the shortest story that shows it."""

from dataclasses import replace

from cotenant.domain.decisions import DecisionKind
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from tests.scheduling.harness import GB, Bench, card, fit_over, model


def totals(bench: Bench, *free_gb: float) -> None:
    """Measure cards whose driver tells free memory, and not whose the rest is."""
    readings = tuple(
        DeviceReading(card(index), bench.now, 24 * GB, round(free * GB)) for index, free in enumerate(free_gb)
    )
    bench.send(events.DevicesRead(bench.now, readings))


def test_what_a_load_under_way_has_taken_is_not_mistaken_for_others_memory() -> None:
    bench = Bench.of([model("resident", 8), model("new", 14)], [card(0)])
    totals(bench, 24)
    bench.touch("resident")
    bench.ask("new")
    bench.now = 1
    totals(bench, 2.5)
    assert not bench.stopping, "the resident is evicted for bytes that are the new model's own"
    assert not bench.told(DecisionKind.OVERCOMMITTED)


def test_a_model_is_not_refused_for_room_that_a_load_under_way_holds() -> None:
    bench = Bench.of([model("loading", 16), model("b", 16)], [card(0)])
    totals(bench, 24)
    bench.ask("loading")
    bench.now = 1
    totals(bench, 8)
    ticket = bench.ask("b")
    assert ticket not in bench.refused


def test_a_limit_on_loaded_models_evicts_on_another_card_where_the_needed_one_is_empty() -> None:
    models = [model("a", 8), model("b", 8), model("large", 20)]
    bench = Bench.of(models, [card(0, 10), card(1, 10), card(2, 24)], max_loaded=2)
    bench.touch("a")
    bench.now = 10
    bench.touch("b")
    ticket = bench.ask("large")
    assert set(bench.stopping) == {"a"}
    bench.gone("a")
    bench.ready("large")
    assert ticket in bench.granted


def test_under_overload_a_request_is_overdue_all_the_same() -> None:
    bench = Bench.of([model("a", 20)], [card(0)], overdue_s=100.0)
    bench.state.waits.extend([5000.0] * 200)
    assert bench.state.overdue_after_s() == 300.0


def test_what_an_engine_holds_is_summed_over_its_cards() -> None:
    wide = replace(model("wide", 0), fit=fit_over([10 * GB, 6 * GB]))
    bench = Bench.of([wide], [card(0), card(1)])
    bench.touch("wide")
    (residency,) = bench.state.residencies.values()
    readings = tuple(
        DeviceReading(
            card(i), 1.0, 24 * GB, (24 - gb) * GB, foreign_bytes=0, engine_bytes={residency.id: gb * GB}
        )
        for i, gb in enumerate([10, 6])
    )
    bench.send(events.DevicesRead(1.0, readings))
    assert residency.measured_bytes == 16 * GB
