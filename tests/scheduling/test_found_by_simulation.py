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


def test_a_timer_that_is_due_is_not_put_off_by_a_model_that_falls_idle_meanwhile() -> None:
    bench = Bench.of([model("idle", 5), model("busy", 5)], [card(0)])
    (short,) = bench.load("idle")
    bench.load("busy")
    late = bench.ask("busy", wait_s=30)
    due = bench.wake_at
    assert due == 30
    bench.now = 30.001
    bench.done(short)
    assert bench.wake_at == due, "the timer of a request's deadline is replaced before it has fired"
    bench.wait(0)
    assert late in bench.refused


def test_a_model_that_is_to_stay_loaded_is_loaded_again_when_what_was_in_its_way_is_gone() -> None:
    bench = Bench.of([model("kept", 8, pinned=True)], [card(0)])
    bench.touch("kept")
    for others in (0, 20):
        bench.now += 1
        bench.read(*[card(0)][: others // 20], foreign={0: others})
        if others == 0:
            bench.gone("kept")
    assert not bench.loading
    refusals = bench.told(DecisionKind.REFUSED)
    bench.now += 1
    bench.read(card(0), foreign={0: 20})
    assert bench.told(DecisionKind.REFUSED) == refusals, "it is told with each Reading"
    assert bench.ask("kept") in bench.refused
    bench.now += 1
    bench.read(card(0))
    assert "kept" in bench.loading


def test_a_model_that_was_unloaded_by_hand_while_it_did_not_fit_stays_unloaded() -> None:
    bench = Bench.of([model("kept", 8, pinned=True)], [card(0)])
    bench.touch("kept")
    bench.read()
    bench.gone("kept")
    bench.send(events.UnloadAsked(bench.now, "kept"))
    bench.read(card(0))
    assert not bench.loading


def test_a_refusal_says_who_is_in_the_way_and_to_come_back_unless_it_is_for_ever() -> None:
    bench = Bench.of([model("a", 16), model("huge", 60)], [card(0), card(1)])
    readings = tuple(
        DeviceReading(card(i), 1.0, 24 * GB, 4 * GB, foreign_bytes=20 * GB, engine_bytes={}, holders=who)
        for i, who in enumerate(["python (pid 12, 18.6 GiB)", ""])
    )
    bench.send(events.DevicesRead(1.0, readings))
    refused = bench.refused[bench.ask("a")]
    assert "other processes hold 18.6 GiB of GPU 0 card: python (pid 12, 18.6 GiB)" in refused.text
    assert "GPU 1 card: not named by the driver" in refused.text
    assert refused.retry_after_s == 30
    bench.send(events.DevicesRead(2.0, readings[:1]))
    assert "GPU 1 card is lost" in bench.refused[bench.ask("a")].text
    forever = bench.refused[bench.ask("huge")]
    assert forever.retry_after_s is None
    assert "other processes" not in forever.text
