"""Memory that is leased to commands of others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import RefusalCode, ResidencyId, TicketId
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from tests.scheduling.harness import GB, Bench, card, model


def lease(
    bench: Bench, name: str, gb: float, *, lasts_s: float | None = None, ready: bool = True
) -> TicketId:
    bench.tickets += 1
    ticket = TicketId(bench.tickets)
    spec = model(name, gb, guest=True)
    deadline = bench.now + 600
    bench.send(events.GuestAsked(bench.now, ticket, name, deadline, spec=spec, lasts_s=lasts_s))
    if ready and name in bench.loading:
        bench.ready(name)
    return ticket


def end(bench: Bench, name: str) -> None:
    bench.send(events.GuestEnded(bench.now, name, "its command has ended"))
    if name in bench.stopping:
        bench.gone(name)


def available(bench: Bench) -> float:
    return bench.state.ledger.available_bytes(DeviceId("GPU-0")) / GB


def test_room_is_made_for_a_lease_and_it_ends_without_a_trace() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    bench.touch("a")
    bench.now = 60
    ticket = lease(bench, "lease~1", 12)
    assert "for lease~1" in bench.told(DecisionKind.EVICT, "a")[0]
    bench.gone("a")
    bench.ready("lease~1")
    assert ticket in bench.granted
    assert available(bench) == 12
    end(bench, "lease~1")
    assert not bench.state.guests
    assert [*bench.state.models] == ["a"]
    assert available(bench) == 24


def test_a_lease_is_not_evicted_moved_or_preempted_and_the_refusal_names_it() -> None:
    bench = Bench.of([model("a", 20)], [card(0), card(1, 2)], overdue_s=1)
    lease(bench, "lease~1", 12)
    ticket = bench.ask("a")
    assert bench.refused[ticket].code is RefusalCode.DOES_NOT_FIT
    assert "next to lease~1 (leased)" in bench.refused[ticket].text
    bench.drain(0)
    bench.wait(100)
    bench.send(events.ModelsChanged(bench.now, (model("b", 2),)))
    assert bench.state.residency_of(bench.state.models["lease~1"]) is not None


def test_a_lease_ends_at_its_time() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    lease(bench, "lease~1", 12, lasts_s=100)
    bench.wait(99)
    assert "lease~1" not in bench.stopping
    bench.wait(2)
    assert "lease~1" in bench.stopping
    assert "its time is over" in bench.told(DecisionKind.UNLOAD, "lease~1")[0]


@pytest.mark.parametrize("gb", [12, 30])
def test_what_waits_or_can_never_be_is_forgotten_when_it_ends(gb: float) -> None:
    bench = Bench.of([model("a", 20, slots=1)], [card(0)])
    bench.load("a")
    ticket = lease(bench, "lease~1", gb)
    if gb == 12:
        assert ticket not in bench.granted
        bench.send(events.RequestLeft(bench.now, ticket))
    else:
        assert bench.refused[ticket].code is RefusalCode.DOES_NOT_FIT
    assert not bench.state.guests


def test_a_client_that_leaves_before_the_grant_leaves_nothing() -> None:
    bench = Bench.of([model("a", 20)], [card(0)])
    ticket = lease(bench, "lease~1", 12, ready=False)
    bench.send(events.RequestLeft(bench.now, ticket))
    bench.gone("lease~1")
    assert not bench.state.guests
    assert available(bench) == 24


def test_the_end_of_the_daemon_and_of_the_card_end_a_lease() -> None:
    for event in (events.StopAsked(0.0), events.DevicesRead(0.0, ())):
        bench = Bench.of([model("a", 20)], [card(0)])
        lease(bench, "lease~1", 12)
        bench.send(event)
        bench.gone("lease~1")
        assert not bench.state.guests
        assert "lease~1" not in bench.loading


def test_guests_do_not_count_towards_max_loaded() -> None:
    bench = Bench.of([model("a", 4), model("b", 4)], [card(0)], max_loaded=1)
    bench.load("a")
    assert lease(bench, "lease~1", 4) in bench.granted
    assert lease(bench, "lease~2", 4) in bench.granted


class Measured:
    """A lease of 12 GB on a card of 24 GB where others hold 2 GB, as drivers of both kinds show it."""

    def __init__(self, *, processes: bool) -> None:
        self.bench = Bench.of([model("a", 20)], [card(0)])
        self.processes = processes
        self.show()
        lease(self.bench, "lease~1", 12)

    def show(self, taken: float = 0, others: float = 2) -> float:
        """Show what the guest has taken; return what may be planned, in GB."""
        bench = self.bench
        bench.now += 1
        guests = [r.id for r in bench.state.residencies.values() if r.guest]
        device = card(0)
        reading = DeviceReading(device, bench.now, 24 * GB, round((24 - others - taken) * GB))
        if self.processes:
            held: dict[ResidencyId, int] = {each: round(taken * GB) for each in guests}
            reading = replace(reading, foreign_bytes=round(others * GB), engine_bytes=held)
        bench.send(events.DevicesRead(bench.now, (reading,)))
        return available(bench)


@pytest.mark.parametrize("processes", [True, False])
def test_what_a_guest_takes_of_its_lease_counts_once(processes: bool) -> None:
    card = Measured(processes=processes)
    assert [card.show(taken) for taken in (0, 5, 12)] == [10, 10, 10]


@pytest.mark.parametrize("processes", [True, False])
def test_what_a_guest_takes_beyond_its_lease_is_gone_for_others_too(processes: bool) -> None:
    card = Measured(processes=processes)
    assert card.show(15) == 7
    if processes:
        (text,) = card.bench.told(DecisionKind.OVERCOMMITTED, "lease~1")
        assert "holds 2.8 GiB more than it leases" in text
        card.show(16)
        assert len(card.bench.told(DecisionKind.OVERCOMMITTED, "lease~1")) == 1
    card.show(24, others=0)
    assert not card.bench.stopping, "a guest is not ended for it"
