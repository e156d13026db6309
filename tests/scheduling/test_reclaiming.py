"""Memory that outlives the process that took it, where the driver tells processes apart."""

from cotenant.domain.decisions import DecisionKind
from tests.scheduling.harness import GB, Bench, card, model


def swap_begun() -> Bench:
    """`a` has been measured at 18 GB and is gone; `b` waits for its room."""
    bench = Bench.of([model("a", 20), model("b", 20)], [card(0)], reclaim_bound_s=10.0)
    bench.read(card(0), live=True, engine_bytes={})
    bench.touch("a")
    bench.now = 10
    residency = bench.state.models["a"].residency
    bench.read(card(0), live=True, engine_bytes={residency: 18 * GB}, foreign={0: 1})
    bench.ask("b")
    bench.gone("a")
    bench.now = 11
    return bench


def test_a_process_that_outlives_the_engine_keeps_its_claim_and_is_named_in_the_end() -> None:
    bench = swap_begun()
    for _ in range(3):
        bench.read(card(0), live=True, engine_bytes={}, foreign={0: 19}, holders="heir (pid 7, 18 GB)")
        bench.now += 1
    assert not bench.told(DecisionKind.FREED, "a")
    assert "b" not in bench.loading
    bench.wait(10)
    (told,) = bench.told(DecisionKind.NOT_FREED, "a")
    assert "heir (pid 7, 18 GB)" in told
    assert "10.0 s" in told
    assert bench.told(DecisionKind.REFUSED, "b"), "the heir's memory counts as others' from then on"


def test_memory_that_was_passed_on_before_the_end_was_told_is_no_less_awaited() -> None:
    bench = Bench.of([model("a", 20), model("b", 20)], [card(0)], reclaim_bound_s=10.0)
    bench.read(card(0), live=True, engine_bytes={})
    bench.touch("a")
    bench.now = 10
    residency = bench.state.models["a"].residency
    bench.read(card(0), live=True, engine_bytes={residency: 18 * GB})
    bench.ask("b")
    bench.read(card(0), live=True, engine_bytes={}, foreign={0: 18})
    bench.gone("a")
    bench.now = 11
    bench.read(card(0), live=True, engine_bytes={}, foreign={0: 18}, holders="heir (pid 7, 18 GB)")
    assert not bench.told(DecisionKind.FREED, "a")
    bench.wait(10)
    assert bench.told(DecisionKind.NOT_FREED, "a")


def test_the_next_model_is_loaded_as_soon_as_the_heir_lets_go() -> None:
    bench = swap_begun()
    bench.read(card(0), live=True, engine_bytes={}, foreign={0: 19})
    assert "b" not in bench.loading
    bench.now += 1
    bench.read(card(0), live=True, engine_bytes={}, foreign={0: 1})
    assert "b" in bench.loading
    assert "back after 2.0 s" in bench.told(DecisionKind.FREED, "a")[0]


def test_others_that_grow_a_little_meanwhile_are_no_heirs() -> None:
    bench = swap_begun()
    bench.read(card(0), live=True, engine_bytes={}, foreign={0: 3})
    assert bench.told(DecisionKind.FREED, "a")
    assert "b" in bench.loading
