"""Each way in which a model goes has a reason of its own, told once."""

from collections.abc import Callable

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.residencies import TicketId, UnloadReason
from cotenant.scheduling import events
from tests.scheduling.harness import Bench, card, model


def keep_alive_runs_out(bench: Bench) -> None:
    bench.wait(301)


def another_needs_its_room(bench: Bench) -> None:
    bench.now = 50
    bench.ask("b")


def others_grow(bench: Bench) -> None:
    bench.read(card(0), foreign={0: 10})


def its_card_goes(bench: Bench) -> None:
    bench.read(card(1))


def the_operator_unloads_it(bench: Bench) -> None:
    bench.send(events.UnloadAsked(bench.now, "a"))


def it_is_served_no_more(bench: Bench) -> None:
    bench.send(events.ModelsChanged(bench.now, (model("b", 20),)))


def its_configuration_changes(bench: Bench) -> None:
    bench.send(events.ModelsChanged(bench.now, (model("a", 20), model("b", 20)), frozenset({"a"})))


def its_engine_dies(bench: Bench) -> None:
    bench.die("a")


def it_moves(bench: Bench) -> None:
    bench.read(card(0), card(1))
    bench.move("a", 1)
    bench.ready("a")


def the_daemon_stops(bench: Bench) -> None:
    bench.send(events.StopAsked(bench.now))


def a_lease_ends(bench: Bench) -> None:
    spec = model("lease~1", 3, guest=True)
    bench.send(events.GuestAsked(bench.now, TicketId(9), "lease~1", 99.0, spec=spec))
    bench.ready("lease~1")
    bench.send(events.GuestEnded(bench.now, "lease~1", "its command has ended"))


WAYS: dict[UnloadReason, Callable[[Bench], None]] = {
    UnloadReason.KEEP_ALIVE: keep_alive_runs_out,
    UnloadReason.EVICTED: another_needs_its_room,
    UnloadReason.OVERCOMMITTED: others_grow,
    UnloadReason.DEVICE_LOST: its_card_goes,
    UnloadReason.OPERATOR: the_operator_unloads_it,
    UnloadReason.REMOVED: it_is_served_no_more,
    UnloadReason.CHANGED: its_configuration_changes,
    UnloadReason.ENGINE_DIED: its_engine_dies,
    UnloadReason.MOVED: it_moves,
    UnloadReason.SHUTDOWN: the_daemon_stops,
    UnloadReason.LEASE_ENDED: a_lease_ends,
}


def reasons(bench: Bench) -> list[object]:
    return [d.facts["reason"] for d in bench.story if "reason" in d.facts]


def test_every_reason_is_tried_here() -> None:
    assert WAYS.keys() == set(UnloadReason)


@pytest.mark.parametrize("reason", UnloadReason)
def test_a_model_goes_for_one_reason_which_is_told_once(reason: UnloadReason) -> None:
    bench = Bench.of([model("a", 20), model("b", 20)], [card(0)])
    bench.touch("a")
    WAYS[reason](bench)
    if "a" in bench.stopping:
        bench.gone("a")
    assert reasons(bench) == [reason]


def test_a_model_that_drains_first_goes_for_the_reason_that_it_drained_for() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    (ticket,) = bench.load("a")
    bench.send(events.UnloadAsked(bench.now, "a"))
    assert reasons(bench) == []
    bench.done(ticket)
    assert reasons(bench) == [UnloadReason.OPERATOR]


def test_a_load_that_fails_is_no_unload() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    bench.ask("a")
    bench.die("a")
    assert bench.told(DecisionKind.FAILED, "a")
    assert reasons(bench) == []
