"""Readings of one node change what is known of its devices, and of no others."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device
from cotenant.planning.compute_modes import Admission
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events, invariants
from tests.scheduling.harness import GB, Bench, card, model


def of_node(bench: Bench, node: str, *cards: Device, foreign_gb: float = 0) -> None:
    readings = tuple(
        DeviceReading(
            replace(device, node=node),
            bench.now,
            device.total_bytes or 0,
            (device.total_bytes or 0) - round(foreign_gb * GB),
            live=False,
        )
        for device in cards
    )
    bench.send(events.DevicesRead(bench.now, readings, node))


def two_nodes() -> Bench:
    bench = Bench.of([model("a", 20), model("b", 20)], [])
    of_node(bench, "west", card(0))
    of_node(bench, "east", card(1))
    bench.touch("a")
    bench.touch("b")
    return bench


def test_a_card_that_one_node_lacks_is_lost_and_those_of_others_are_not() -> None:
    bench = two_nodes()
    on_east = next(r.model for r in bench.state.residencies.values() if "GPU-1" in r.bytes_by_device)
    of_node(bench, "east")
    assert bench.stopping.keys() == {on_east}
    assert [*bench.state.ledger.readings] == ["GPU-0"]
    of_node(bench, "east", card(1))
    bench.gone(on_east)
    bench.ready(on_east)
    assert len(bench.state.residencies) == 2, "the card is back, and so is its model"


def test_others_that_grow_on_one_node_evict_there_only() -> None:
    bench = two_nodes()
    of_node(bench, "west", card(0), foreign_gb=10)
    assert bench.state.overcommitted == {"GPU-0"}
    assert len(bench.stopping) == 1
    of_node(bench, "east", card(1))
    assert bench.state.overcommitted == {"GPU-0"}


def test_a_reading_that_changes_nothing_says_and_changes_nothing() -> None:
    bench = two_nodes()
    decisions = len(bench.story)
    bench.state.ledger.changed.clear()
    bench.now += 1
    of_node(bench, "west", card(0))
    assert len(bench.story) == decisions
    assert not bench.state.ledger.changed


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_of_nodes_is_what_is_computed_anew(seed: int) -> None:
    """Nodes come, go, are read with fewer cards, admit fewer engines, and are used by others."""
    rng = Random(seed)
    bench = Bench.of([model(f"m{n}", rng.choice((4, 9, 20))) for n in range(6)], [])
    cards = {f"n{n}": [card(3 * n + i) for i in range(3)] for n in range(3)}
    for _ in range(40):
        bench.now += rng.random()
        node = rng.choice([*cards])
        readings = tuple(
            DeviceReading(
                replace(device, node=node),
                bench.now,
                24 * GB,
                24 * GB - rng.choice((0, 0, 5, 18)) * GB,
                live=False,
                admission=Admission(rng.choice((None, 1, 2)), "its mode"),
            )
            for device in cards[node]
            if rng.random() < 0.8
        )
        bench.send(events.DevicesRead(bench.now, readings, node))
        bench.ask(f"m{rng.randrange(6)}", wait_s=3)
        for name in [*bench.loading]:
            bench.ready(name)
        for name in [*bench.stopping]:
            bench.gone(name)
        for ticket in [*bench.granted]:
            bench.done(ticket)
    assert bench.told(DecisionKind.DEVICE_LOST)


def test_a_sum_that_went_wrong_is_found() -> None:
    bench = two_nodes()
    bench.state.ledger._accounts[card(0).id].claimed_bytes += 1
    with pytest.raises(invariants.InvariantViolation, match="claims by device"):
        invariants.check_kept(bench.state)
