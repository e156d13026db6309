import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import HOST_ID, Device, DeviceKind
from cotenant.domain.errors import UnknownModel
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.residencies import ResidencyState
from cotenant.scheduling import events
from cotenant.scheduling.demand import Demand
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import GB, Bench, RefusalCode, card, fit_nowhere, fit_over, model


def one_card(*models, gb: float = 24, **settings) -> Bench:
    return Bench.of(models, [card(0, gb)], **settings)


def test_concurrent_cold_requests_cause_one_load() -> None:
    bench = one_card(model("a", 10, slots=8))
    tickets = [bench.ask("a") for _ in range(5)]
    assert list(bench.loading) == ["a"]
    bench.ready("a")
    assert bench.granted.keys() == set(tickets)
    assert bench.state.models["a"].loads == 1


def test_two_models_on_two_cards_load_at_once_and_on_one_card_in_turn() -> None:
    both = Bench.of([model("a", 20), model("b", 20)], [card(0), card(1)])
    both.ask("a")
    both.ask("b")
    assert set(both.loading) == {"a", "b"}
    one = one_card(model("a", 8), model("b", 8))
    one.ask("a")
    one.ask("b")
    assert set(one.loading) == {"a"}
    one.ready("a")
    assert set(one.loading) == {"b"}


def test_a_model_that_never_becomes_ready_blocks_nobody_else() -> None:
    bench = Bench.of([model("stuck", 8), model("b", 8), model("c", 8)], [card(0), card(1)])
    bench.ask("stuck")
    first = bench.ask("b")
    bench.ready("b")
    assert first in bench.granted
    second = bench.ask("c")
    assert "c" in bench.loading
    bench.ready("c")
    assert second in bench.granted
    assert "stuck" in bench.loading


def test_ready_models_are_served_while_others_wait() -> None:
    bench = one_card(model("hot", 20, slots=2), model("cold", 20))
    hot = bench.load("hot")
    bench.ask("cold")
    also = bench.ask("hot")
    assert also in bench.granted
    assert hot[0] in bench.granted


def test_an_unused_card_is_taken_first_then_the_fullest_that_fits() -> None:
    bench = Bench.of([model(n, 5) for n in "abc"] + [model("d", 15)], [card(0, 24), card(1, 16)])
    for name in "abc":
        bench.load(name)
    places = {
        name: [*bench.state.residencies[bench.state.models[name].residency].bytes_by_device] for name in "abc"
    }
    assert places == {"a": ["GPU-0"], "b": ["GPU-1"], "c": ["GPU-1"]}
    bench.load("d")
    assert "d" not in bench.stopping
    assert bench.state.models["d"].residency is not None


def test_the_idle_are_evicted_and_the_busy_never() -> None:
    bench = one_card(model("busy", 10), model("idle", 10), model("new", 10))
    (busy,) = bench.load("busy")
    bench.touch("idle")
    bench.now = 100
    bench.ask("new")
    assert set(bench.stopping) == {"idle"}
    bench.gone("idle")
    assert set(bench.loading) == {"new"}
    bench.ready("new")
    assert busy in bench.granted
    (told,) = bench.told(DecisionKind.EVICT, "idle")
    assert told.startswith("evicted: idle 1 m 40 s")
    assert "for new, whose first request had waited" in told


def test_no_more_is_evicted_than_needed_and_only_on_the_needed_card() -> None:
    """Both cards are full: of card 0 two of a, b and c would have to go, of card 1 only d, and not e."""
    sizes = {"a": 10, "d": 20, "b": 10, "c": 4, "e": 4}
    bench = Bench.of([*(model(*each) for each in sizes.items()), model("new", 12)], [card(0), card(1)])
    for name in sizes:
        bench.touch(name)
        bench.now += 1
    assert not bench.stopping
    bench.ask("new")
    assert set(bench.stopping) == {"d"}


def test_a_model_over_two_cards_evicts_on_both() -> None:
    wide = replace(model("wide", 0), fit=fit_over([20 * GB, 20 * GB]))
    bench = Bench.of([model("a", 10), model("b", 10), wide], [card(0), card(1)])
    bench.touch("a")
    bench.touch("b")
    ticket = bench.ask("wide")
    assert set(bench.stopping) == {"a", "b"}
    bench.gone("a")
    assert "wide" not in bench.loading
    bench.gone("b")
    bench.ready("wide")
    assert ticket in bench.granted


def test_bytes_are_seen_back_before_the_next_load_or_given_up_and_reported() -> None:
    bench = one_card(model("a", 20), model("b", 20))
    bench.read(card(0), live=True)
    bench.touch("a")
    bench.now = 10
    bench.read(card(0), live=True, foreign={0: 0})
    bench.read(replace(card(0)), live=True)
    ticket = bench.ask("b")
    bench.gone("a")
    assert "b" not in bench.loading
    bench.wait(bench.state.settings.reclaim_bound_s + 1)
    assert bench.told(DecisionKind.NOT_FREED, "a")
    assert "b" in bench.loading
    bench.ready("b")
    assert ticket in bench.granted


def test_a_reading_that_shows_the_engine_gone_releases_its_claim() -> None:
    bench = one_card(model("a", 20), model("b", 20))
    bench.read(card(0), live=True)
    bench.touch("a")
    bench.now = 10
    bench.ask("b")
    bench.gone("a")
    bench.now = 10.5
    bench.read(card(0), live=True, engine_bytes={})
    assert "b" in bench.loading
    assert bench.told(DecisionKind.FREED, "a")


def test_a_model_that_can_never_fit_is_refused_at_once() -> None:
    bench = one_card(model("huge", 50))
    ticket = bench.ask("huge")
    assert bench.refused[ticket].code is RefusalCode.DOES_NOT_FIT


def test_a_model_that_fits_only_without_a_pinned_one_is_refused_and_told_why() -> None:
    bench = one_card(model("keeper", 20, pinned=True), model("b", 20))
    bench.touch("keeper")
    ticket = bench.ask("b")
    assert bench.refused[ticket].code is RefusalCode.DOES_NOT_FIT
    assert "next to keeper (pinned)" in bench.refused[ticket].text


def test_a_failed_load_is_told_to_all_and_backed_off() -> None:
    bench = one_card(model("a", 10))
    tickets = [bench.ask("a"), bench.ask("a")]
    bench.die("a", "a could not be loaded: out of memory")
    assert not bench.refused
    assert "a" in bench.loading, "a crash may be an accident: it is tried once more"
    bench.die("a", "a could not be loaded: out of memory", Cause.HOST_MEMORY)
    assert {bench.refused[ticket].code for ticket in tickets} == {RefusalCode.LOAD_FAILED}
    again = bench.ask("a")
    assert {bench.refused[ticket].cause for ticket in (*tickets, again)} == {Cause.HOST_MEMORY}
    assert "out of memory" in bench.refused[again].text
    assert bench.refused[again].retry_after_s == pytest.approx(5)
    bench.wait(6)
    bench.ask("a")
    assert "a" in bench.loading
    bench.die("a", "again")
    assert bench.state.models["a"].retry_at == pytest.approx(bench.now + 10)


def test_an_engine_that_dies_serving_is_loaded_anew_for_those_who_wait() -> None:
    bench = one_card(model("a", 10))
    bench.load("a")
    waiting = bench.ask("a")
    bench.die("a")
    assert "a" in bench.loading
    bench.ready("a")
    assert waiting in bench.granted


def test_engines_that_serve_and_die_are_replaced_without_a_pause() -> None:
    bench = one_card(model("a", 10))
    for _ in range(6):
        bench.touch("a")
        bench.now += 1
        bench.die("a")
    assert bench.state.models["a"].retry_at <= bench.now


def test_a_lease_of_a_dead_engine_ends_quietly() -> None:
    bench = one_card(model("a", 10))
    (ticket,) = bench.load("a")
    bench.die("a")
    bench.done(ticket)


def test_a_wait_ends_in_time_and_says_what_it_waited_for() -> None:
    bench = one_card(model("a", 10))
    ticket = bench.ask("a", wait_s=3)
    bench.wait(5)
    assert bench.refused[ticket].code is RefusalCode.TIMED_OUT
    assert bench.refused[ticket].text == "waited 3.0 s for the model to be loaded"


def test_a_client_that_leaves_gives_up_its_place() -> None:
    bench = one_card(model("a", 10))
    ticket = bench.ask("a")
    bench.send(events.RequestLeft(bench.now, ticket))
    bench.ready("a")
    assert ticket not in bench.granted
    assert bench.state.leases == {}


def test_queues_are_bounded_per_model_and_in_all() -> None:
    bench = one_card(model("a", 10), model("b", 10), max_queue=2, max_queue_total=3)
    tickets = [bench.ask(name) for name in "aaabb"]
    assert [bench.refused[t].code for t in tickets if t in bench.refused] == [RefusalCode.QUEUE_FULL] * 2
    assert bench.refused[tickets[2]].retry_after_s


def test_a_higher_priority_goes_first_then_age() -> None:
    bench = one_card(model("a", 10))
    (running,) = bench.load("a")
    low, high, low_too = bench.ask("a"), bench.ask("a", priority=5), bench.ask("a")
    order = []
    for _ in range(3):
        bench.done(running)
        (running,) = bench.granted
        order.append(running)
    assert order == [high, low, low_too]


def test_an_idle_model_goes_after_its_keep_alive_and_a_pinned_one_stays() -> None:
    models = [model("a", 5, keep_alive_s=60.0), model("b", 5, keep_alive_s=60.0, pinned=True), model("c", 5)]
    bench = one_card(*models, model("d", 4, keep_alive_s=None))
    for name in "abcd":
        bench.touch(name)
    bench.wait(61)
    assert set(bench.stopping) == {"a"}
    bench.wait(10_000)
    assert set(bench.stopping) == {"a", "c"}


def test_a_request_may_set_the_keep_alive() -> None:
    bench = one_card(model("a", 5), model("b", 5))
    for name, keep in (("a", 0.0), ("b", math.inf)):
        bench.load(name)
        ticket = next(iter(bench.granted))
        bench.done(ticket)
        lease = bench.scheduler.try_grant(name, bench.now, keep)
        assert lease is not None
        bench.take(bench.scheduler.release(lease[0], bench.now))
    bench.wait(10_000)
    assert set(bench.stopping) == {"a"}


def test_a_rare_model_drains_a_hot_one_once_it_is_overdue() -> None:
    bench = one_card(model("hot", 20), model("rare", 20), overdue_s=30.0)
    (running,) = bench.load("hot")
    rare = bench.ask("rare")
    for _ in range(100):
        following = bench.ask("hot")
        bench.wait(1)
        bench.done(running)
        if following not in bench.granted:
            break
        running = following
    assert bench.now <= 33
    assert set(bench.stopping) == {"hot"}
    bench.gone("hot")
    bench.ready("rare")
    assert rare in bench.granted


def test_a_drain_that_takes_too_long_is_given_up() -> None:
    bench = one_card(model("hot", 20, slots=2), model("rare", 20), overdue_s=10.0, drain_limit_s=20.0)
    bench.load("hot")
    bench.ask("rare")
    bench.wait(11)
    hot = bench.state.residencies[bench.state.models["hot"].residency]
    assert hot.state is ResidencyState.DRAINING
    bench.wait(21)
    assert hot.state is ResidencyState.READY
    assert bench.ask("hot") in bench.granted


def test_no_more_than_max_loaded_are_loaded() -> None:
    bench = one_card(model("a", 2), model("b", 2), max_loaded=1)
    bench.touch("a")
    bench.ask("b")
    assert set(bench.stopping) == {"a"}
    bench.gone("a")
    assert "b" in bench.loading


def test_what_takes_no_memory_neither_needs_a_place_nor_gives_one_up() -> None:
    far = [model(name, 0, fit=fit_nowhere) for name in ("far", "farther")]
    bench = one_card(model("a", 2), model("b", 2), *far, max_loaded=1)
    bench.touch("far")
    bench.wait(5)
    bench.touch("a")
    bench.touch("farther")
    bench.ask("b")
    assert set(bench.stopping) == {"a"}, "though `far` was used longest ago"
    bench.gone("a")
    bench.ready("b")
    assert {r.model for r in bench.state.residencies.values()} == {"far", "farther", "b"}
    bench.read()
    bench.read(card(0))
    assert "far" not in bench.stopping, "a device that is lost is not its own"
    bench.send(events.UnloadAsked(bench.now, "far"))
    bench.gone("far")
    assert bench.state.models["far"].residency is None
    assert not bench.told(DecisionKind.FREED, "far"), "there are no bytes to be seen back"
    bench.ask("far")
    assert "far" in bench.loading


def test_foreign_growth_evicts_the_idle_of_that_card_and_is_told() -> None:
    bench = Bench.of([model("a", 10), model("b", 10)], [card(0), card(1)])
    bench.touch("a")
    bench.touch("b")
    bench.read(card(0), card(1), foreign={0: 18})
    assert set(bench.stopping) == {"a"}
    assert "other processes took memory" in bench.told(DecisionKind.OVERCOMMITTED)[0]
    bench.gone("a")
    bench.read(card(0), card(1), foreign={0: 18})
    assert "has room again" in bench.told(DecisionKind.OVERCOMMITTED)[1]


def test_models_of_a_lost_card_move_to_another() -> None:
    bench = Bench.of([model("a", 10)], [card(0), card(1)])
    bench.load("a")
    bench.read(card(1))
    assert set(bench.stopping) == {"a"}
    bench.gone("a")
    assert "a" in bench.loading
    assert [*bench.state.residencies[bench.loading["a"]].bytes_by_device] == ["GPU-1"]


def test_the_operator_loads_unloads_and_pins() -> None:
    bench = one_card(model("a", 10))
    bench.send(events.LoadAsked(0, "a"))
    bench.ready("a")
    bench.send(events.PinAsked(0, "a", True))
    bench.wait(10_000)
    assert not bench.stopping
    (ticket,) = bench.load("a")
    bench.send(events.UnloadAsked(bench.now, "a"))
    assert not bench.stopping
    bench.done(ticket)
    assert set(bench.stopping) == {"a"}
    with pytest.raises(UnknownModel):
        bench.send(events.LoadAsked(0, "z"))


def test_an_operators_unload_keeps_the_pin_and_loads_nothing_again() -> None:
    """Its next load stays. An engine that dies before its unload is not loaded for the pin."""
    bench = one_card(model("a", 10, pinned=True), model("b", 20))
    (ticket,) = bench.load("a")
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.done(ticket)
    bench.gone("a")
    assert "it is pinned, so its next load stays" in bench.told(DecisionKind.UNLOAD, "a")[-1]
    assert "a" not in bench.loading
    (ticket,) = bench.load("a")
    bench.wait(100)
    bench.ask("b")
    assert "a" not in bench.stopping
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.die("a")
    assert "a" not in bench.loading


def test_an_operators_unload_cuts_requests_that_outlast_its_grace() -> None:
    bench = one_card(model("a", 10, slots=2), unload_grace_s=30.0)
    quick, slow = bench.load("a", requests=2)
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.done(quick)
    bench.wait(29)
    bench.send(events.UnloadAsked(bench.now, "a"))
    assert not bench.stopping
    bench.wait(1)
    assert set(bench.stopping) == {"a"}
    assert not bench.state.leases
    bench.done(slow)
    bench.gone("a")
    assert "1 request had not ended in the grace" in bench.story[-2].text
    bench.ask("a")
    assert "a" in bench.loading


def test_a_model_that_drains_for_another_has_no_such_grace() -> None:
    bench = one_card(
        model("hot", 20), model("rare", 20), overdue_s=10.0, drain_limit_s=90.0, unload_grace_s=30.0
    )
    bench.load("hot")
    bench.ask("rare")
    bench.wait(60)
    assert bench.state.reservations["rare"].drains
    assert not bench.stopping


def test_a_changed_configuration_touches_only_what_changed() -> None:
    a, b, c = model("a", 5), model("b", 5), model("c", 5)
    bench = one_card(a, b, c)
    for name in "abc":
        bench.touch(name)
    changed = replace(a, slots=4)
    bench.send(events.ModelsChanged(bench.now, (changed, b), frozenset({"a"})))
    assert set(bench.stopping) == {"a", "c"}
    bench.gone("a")
    assert set(bench.loading) == {"a"}
    bench.gone("c")
    assert set(bench.state.models) == {"a", "b"}


def test_stopping_refuses_the_waiting_and_lets_the_running_end() -> None:
    bench = one_card(model("a", 5), model("b", 5))
    (running,) = bench.load("a")
    bench.touch("b")
    waiting = bench.ask("a")
    bench.send(events.StopAsked(bench.now))
    assert bench.refused[waiting].code is RefusalCode.STOPPING
    assert set(bench.stopping) == {"b"}
    bench.done(running)
    assert set(bench.stopping) == {"a", "b"}
    assert bench.refused[bench.ask("a")].code is RefusalCode.STOPPING


def test_likely_models_are_prefetched_only_where_asked_for_and_into_free_room() -> None:
    def habit(prefetch: bool) -> Bench:
        bench = one_card(model("a", 10, keep_alive_s=30.0), prefetch=prefetch)
        for _ in range(8):
            bench.touch("a")
            bench.wait(20)
        bench.wait(11)
        bench.gone("a")
        bench.wait(1)
        bench.send(events.TimerFired(bench.now))
        return bench

    assert "a" in habit(True).loading
    assert "a" not in habit(False).loading


def loaded_with(bench: Bench, qps: dict[str, float], idle: dict[str, float], until: float) -> None:
    """Give models the traffic of the document's examples."""
    for name in qps:
        bench.load(name)
    for name, lease in [*zip(qps, [*bench.granted], strict=True)]:
        bench.done(lease)
        model = bench.state.models[name]
        model.last_used = until - idle[name]
        model.demand = Demand()
        for number in reversed(range(max(1, round(60 * qps[name])))):
            model.demand.arrive(model.last_used - number / max(qps[name], 1), bench.state.all_gaps)
    bench.now = until


@pytest.mark.parametrize(
    ("qps", "idle", "pressure", "evicted"),
    [
        ({"gpt2": 1.87, "gpt2-small": 0.0}, {"gpt2": 10, "gpt2-small": 300}, False, {"gpt2-small"}),
        ({"gpt2": 0.5, "gpt2-small": 0.0}, {"gpt2": 200, "gpt2-small": 400}, True, {"gpt2-small"}),
        ({"gpt2": 2.0, "gpt2-small": 1.5}, {"gpt2": 5, "gpt2-small": 8}, False, set()),
    ],
)
def test_the_three_scenarios_of_two_models_on_one_card(qps, idle, pressure, evicted) -> None:
    models = [model("gpt2", 0.5), model("gpt2-small", 0.3)]
    bench = Bench.of(models, [card(1, 40)])
    loaded_with(bench, qps, idle, until=1000)
    if pressure:
        bench.state.models["gpt2"].spec = replace(models[0], keep_alive_s=None)
        bench.state.models["gpt2-small"].spec = replace(models[1], keep_alive_s=None)
        bench.read(card(1, 40), foreign={1: 39.3})
    else:
        bench.send(events.TimerFired(bench.now))
    assert set(bench.stopping) == evicted


@pytest.mark.parametrize("policy", ["lru", "gdsf", "cost"])
def test_under_pressure_the_longer_idle_goes_however_busy_it_was(policy: str) -> None:
    models = [model("gpt2", 0.5, keep_alive_s=None), model("gpt2-small", 0.3, keep_alive_s=None)]
    bench = Bench.of(models, [card(1, 40)], policy=policy)
    loaded_with(bench, {"gpt2": 0.5, "gpt2-small": 6.19}, {"gpt2": 200, "gpt2-small": 400}, until=1000)
    bench.read(card(1, 40), foreign={1: 39.3})
    assert set(bench.stopping) == {"gpt2-small"}


def test_a_busy_model_that_drains_and_the_one_that_replaces_it_take_one_place() -> None:
    bench = Bench.of([model("a", 10), model("b", 10)], [card(0, 24)], max_loaded=1)
    bench.load("a")
    bench.ask("b")
    bench.wait(130)
    assert bench.state.reservations["b"].drains
    assert bench.state.loaded_count() == 1


HOST = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=24 * GB)


def in_host_ram(name: str, gb: float, **rules: object) -> ModelSpec:
    """A model on a machine with GPUs that uses none of them."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        held = Parts(compute=round(gb * GB))
        return Placement(name, Recipe(), 1, 0, tuple(map(Share.unused, budgets)), host=held)

    return ModelSpec(name, fit, **rules)  # type: ignore[arg-type]


def test_host_ram_is_claimed_refused_and_freed_like_a_device() -> None:
    models = [in_host_ram("a", 16), in_host_ram("b", 16), in_host_ram("c", 25), model("d", 10)]
    bench = Bench.of(models, [card(0, 24), HOST])
    (ticket,) = bench.load("a")
    assert bench.state.ledger.claimed_bytes(HOST_ID) == 16 * GB
    assert "loading on host RAM: 14.9 GiB" in bench.told(DecisionKind.LOAD, "a")[0]
    bench.load("d")
    bench.ask("b")
    assert "b" not in bench.loading, "it waits for the room of a, which is busy"
    bench.done(ticket)
    bench.wait(1)
    assert set(bench.stopping) == {"a"}
    bench.gone("a")
    assert "b" in bench.loading
    bench.ask("c")
    assert "it holds 23.3 GiB of host RAM" in bench.told(DecisionKind.REFUSED, "c")[0]


def test_a_claim_that_was_a_guess_falls_to_what_the_model_was_measured_to_hold() -> None:
    guessed, other = model("ollama", 19), model("b", 10)
    bench = Bench.of([guessed, other], [card(0, 24)])
    bench.load("ollama")
    bench.state.models["ollama"].pinned = True
    bench.send(events.ModelsChanged(bench.now, (replace(guessed, seen_bytes=4 * GB), other)))
    assert bench.state.ledger.claimed_bytes(card(0).id) == 4 * GB
    bench.ask("b")
    assert "b" in bench.loading
    bench.send(events.ModelsChanged(bench.now, (replace(guessed, seen_bytes=9 * GB), other)))
    assert bench.state.ledger.claims[bench.state.models["ollama"].residency].bytes_by_device == {
        card(0).id: 4 * GB
    }, "no claim grows where others may have been placed"


def test_a_claim_that_was_a_guess_falls_also_if_the_model_was_measured_before_it_was_ready() -> None:
    guessed = model("ollama", 19)
    bench = Bench.of([guessed], [card(0, 24)])
    bench.send(events.LoadAsked(bench.now, "ollama"))
    bench.send(events.ModelsChanged(bench.now, (replace(guessed, seen_bytes=4 * GB),)))
    assert bench.state.ledger.claimed_bytes(card(0).id) == 19 * GB
    bench.ready("ollama")
    assert bench.state.ledger.claimed_bytes(card(0).id) == 4 * GB


def test_five_models_on_two_cards_keep_the_active_and_let_the_idle_go() -> None:
    sizes = {"gpt2": 0.5, "gpt2-small": 0.3, "bert-base": 0.4, "llama-7b": 14, "qwen-1.5b": 3}
    qps = {"gpt2": 2.0, "gpt2-small": 0.0, "bert-base": 1.5, "llama-7b": 0.8, "qwen-1.5b": 0.0}
    idle = {"gpt2": 1, "gpt2-small": 400, "bert-base": 1, "llama-7b": 2, "qwen-1.5b": 500}
    bench = Bench.of([model(name, gb) for name, gb in sizes.items()], [card(0, 2), card(1, 20)])
    loaded_with(bench, qps, idle, until=1000)
    bench.send(events.TimerFired(bench.now))
    assert set(bench.stopping) == {"gpt2-small", "qwen-1.5b"}
    frees = bench.told(DecisionKind.UNLOAD, "qwen-1.5b")[0]
    assert "idle 8 m 20 s" in frees
    assert "frees 2.8 GiB" in frees


def test_deaths_while_serving_lock_nobody_out_until_they_are_many() -> None:
    bench = one_card(model("a", 10))
    for _ in range(5):
        assert bench.state.models["a"].retry_at <= bench.now
        bench.load("a")
        bench.die("a")
    assert bench.state.models["a"].retry_at > bench.now


@pytest.mark.parametrize("facts", [{"preload": True}, {"pinned": True}])
def test_a_model_that_is_to_stay_loaded_is_loaded_again_when_its_engine_dies(facts: dict[str, bool]) -> None:
    bench = one_card(model("a", 10, **facts))
    bench.send(events.LoadAsked(0, "a", "loaded at start"))
    assert "loaded at start" in bench.told(DecisionKind.LOAD, "a")[-1]
    bench.ready("a")
    bench.wait(40)
    bench.die("a")
    assert "a" in bench.loading
    assert "its engine has died" in bench.told(DecisionKind.LOAD, "a")[-1]
    for _ in range(2):
        bench.die("a")
    assert "a" not in bench.loading
    bench.wait(bench.state.models["a"].retry_at - bench.now)
    assert "a" in bench.loading
    bench.ready("a")
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.gone("a")
    assert "a" not in bench.loading


def test_another_model_whose_engine_dies_stays_cold_until_it_is_asked_for() -> None:
    bench = one_card(model("a", 10))
    bench.load("a")
    bench.die("a")
    assert "a" not in bench.loading


def test_a_load_says_why_it_is_made() -> None:
    bench = Bench.of([model("a", 10)], [card(0), card(1)])
    bench.send(events.LoadAsked(0, "a"))
    bench.ready("a")
    assert "asked for by the operator" in bench.told(DecisionKind.LOAD, "a")[-1]
    bench.send(events.ModelsChanged(bench.now, (model("a", 10),), frozenset({"a"})))
    bench.gone("a")
    bench.ready("a")
    assert "its configuration changed" in bench.told(DecisionKind.LOAD, "a")[-1]
    (device,) = bench.state.residencies[bench.state.models["a"].residency].bytes_by_device
    bench.read(card(1) if device.endswith("0") else card(0))
    bench.gone("a")
    assert "its device is gone" in bench.told(DecisionKind.LOAD, "a")[-1]
