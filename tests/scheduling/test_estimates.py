"""How long a request is told to wait: what must happen first counts, and what is unknown is said to be."""

from dataclasses import replace

import pytest

from tests.scheduling.harness import GB, Bench, card, fit_whole, model


def eta(bench: Bench, name: str) -> float | None:
    estimate = bench.scheduler.wait_estimate(name, bench.now)
    assert estimate is not None
    return estimate.eta_s


def waits_for(bench: Bench, name: str) -> str:
    estimate = bench.scheduler.wait_estimate(name, bench.now)
    assert estimate is not None
    return estimate.waits_for


def served(bench: Bench, name: str, seconds: float) -> None:
    """One request that takes so long."""
    (ticket,) = bench.load(name)
    bench.wait(seconds)
    bench.done(ticket)


def two_models_for_one_card(**facts: object) -> Bench:
    return Bench.of([model("busy", 20, keep_alive_s=None, **facts), model("cold", 20)], [card(0)])


def test_behind_a_busy_model_its_requests_the_unload_and_the_load_count() -> None:
    bench = two_models_for_one_card()
    served(bench, "busy", 20)
    bench.load("busy")
    bench.wait(5)
    bench.ask("cold")
    assert eta(bench, "cold") == pytest.approx(15 + 2)
    assert waits_for(bench, "cold").endswith("behind 1 request of busy")
    bench.wait(10)
    assert eta(bench, "cold") == pytest.approx(7.5 + 2), "15 s of the usual 20 have passed"
    bench.wait(25)
    assert eta(bench, "cold") == pytest.approx(20 + 2), "it takes longer than usual: nobody knows how long"


def test_how_long_requests_take_is_unknown_before_the_first_has_ended() -> None:
    bench = two_models_for_one_card()
    bench.load("busy", requests=2)
    bench.ask("cold")
    assert eta(bench, "cold") is None
    assert waits_for(bench, "cold").endswith("behind 1 request of busy")
    assert eta(bench, "busy") is None


def test_a_victim_with_a_queue_of_its_own_makes_the_time_unknown() -> None:
    bench = two_models_for_one_card()
    served(bench, "busy", 20)
    bench.load("busy", requests=3)
    bench.ask("cold")
    assert eta(bench, "cold") is None


def test_the_queue_before_a_request_counts_by_slots() -> None:
    bench = two_models_for_one_card(slots=2)
    served(bench, "busy", 20)
    bench.load("busy", requests=3)
    bench.wait(5)
    assert eta(bench, "busy") == pytest.approx(15)
    bench.ask("busy")
    assert eta(bench, "busy") == pytest.approx(15)
    bench.ask("busy")
    assert eta(bench, "busy") == pytest.approx(15 + 20)


def test_a_load_counts_with_the_queue_behind_it_and_never_says_now_while_it_takes_longer() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    bench.ask("a")
    assert eta(bench, "a") == pytest.approx(2)
    bench.ask("a")
    assert eta(bench, "a") is None, "how long the first takes is unknown"
    bench.now = 10.0
    bench.state.models["a"].service_s = 4.0
    assert eta(bench, "a") == pytest.approx(5 + 4)


def test_an_unload_that_took_long_is_expected_to_take_as_long_again() -> None:
    bench = two_models_for_one_card()
    bench.touch("busy")
    first = bench.ask("cold")
    bench.wait(6)
    bench.gone("busy")
    bench.ready("cold")
    bench.done(first)
    bench.ask("busy")
    assert "cold" in bench.stopping
    assert eta(bench, "busy") == pytest.approx(6 + bench.state.models["busy"].load_s)


def test_a_drain_counts_what_is_left_of_the_requests_that_it_waits_for() -> None:
    bench = Bench.of(
        [model("busy", 20, keep_alive_s=None), model("cold", 20)],
        [card(0)],
        overdue_s=10.0,
        drain_limit_s=60.0,
    )
    served(bench, "busy", 40)
    bench.load("busy")
    bench.ask("cold")
    bench.wait(15)
    assert "cold" in bench.state.reservations
    assert eta(bench, "cold") == pytest.approx(25 + 2)


def test_who_waits_besides_for_the_same_room_makes_the_time_unknown() -> None:
    bench = Bench.of([model(name, 20, keep_alive_s=None) for name in ("busy", "b", "c")], [card(0)])
    served(bench, "busy", 20)
    bench.load("busy")
    bench.ask("b")
    bench.ask("c")
    assert eta(bench, "c") is None


def test_a_request_that_waited_too_long_says_behind_whom() -> None:
    bench = two_models_for_one_card()
    bench.load("busy")
    ticket = bench.ask("cold", wait_s=5)
    waited_for = waits_for(bench, "cold")
    assert waited_for.endswith("behind 1 request of busy")
    bench.wait(6)
    assert bench.refused[ticket].text == f"waited 5.0 s for {waited_for}"


@pytest.mark.parametrize("index", range(11))
def test_one_that_fits_one_card_only_waits_for_all_that_are_expected_to_end_before(index: int) -> None:
    """Which card that is makes no difference to how it is found: the first, the last or between."""

    def own(budgets):
        return fit_whole(20 * GB)([each for each in budgets if each.device.id == f"GPU-{index}"])

    names = [f"m{n}" for n in range(11)]
    big = replace(model("big", 20), fit=own)
    loaded = [model(name, 20, keep_alive_s=None) for name in names]
    bench = Bench.of([*loaded, big], [card(n) for n in range(11)])
    for name in names:
        (ticket,) = bench.load(name)
        bench.now += 100
        bench.done(ticket)
    for name in names:
        bench.load(name)
        bench.now += 1
    bench.ask("big")
    estimate = bench.scheduler.wait_estimate("big", bench.now)
    ahead = [f"1 request of {name}" for name in names[: index + 1]]
    assert estimate.waits_for == f"room on a GPU, behind {', '.join(ahead)}"
    assert estimate.eta_s == pytest.approx(100 - 11 + index + bench.state.models["big"].load_s)
