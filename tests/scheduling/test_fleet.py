"""Many machines with many devices: what is searched, and what is tried again."""

from collections.abc import Sequence

import pytest
from bench.workloads import fit_pieces

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import TicketId
from cotenant.planning.host_memory import placement_bytes
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command, PublishDecision, StartEngine, StopEngine
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.model_state import longest_wait_s
from cotenant.scheduling.room import MOST_NODES, Room
from cotenant.scheduling.scheduler import Scheduler
from cotenant.scheduling.victims import MOST_DEVICES, VictimSearch
from cotenant.simulation.machine import NO_FAULTS
from tests.simulation.seeded import ALL_FAULTS, seeded_world

_GB = 10**9


class Fleet:
    """A scheduler, with cards of these sizes in GB on each machine."""

    def __init__(self, machines: Sequence[Sequence[int]], models: dict[str, Sequence[float]]) -> None:
        self.scheduler, self.now = Scheduler(SchedulerSettings()), 0.0
        for node, sizes in enumerate(machines):
            cards = [
                Device(DeviceId(f"{node}:{n}"), DeviceKind.GPU, "card", n, size * _GB, node=f"n{node}")
                for n, size in enumerate(sizes)
            ]
            readings = [DeviceReading(c, 0.0, c.total_bytes or 0, c.total_bytes, live=False) for c in cards]
            self.send(events.DevicesRead(0.0, tuple(readings), f"n{node}"))
        specs = [
            ModelSpec(name, fit_pieces(name, [round(size * _GB) for size in sizes]), keep_alive_s=None)
            for name, sizes in models.items()
        ]
        self.send(events.ModelsChanged(0.0, tuple(specs)))

    def send(self, event: events.Event) -> list[Command]:
        return self.scheduler.handle(event)

    def ask(self, name: str, ticket: int) -> list[Command]:
        self.now += 1
        return self.send(events.RequestArrived(self.now, TicketId(ticket), name, self.now + 1000))

    def load(self, name: str) -> StartEngine:
        """Load a model, which nobody uses then."""
        (start,) = [c for c in self.send(events.LoadAsked(self.now, name)) if isinstance(c, StartEngine)]
        self.now += 1
        self.send(events.EngineReady(self.now, start.residency))
        return start


def decisions(commands: Sequence[Command]) -> str:
    return "\n".join(c.decision.text for c in commands if isinstance(c, PublishDecision))


def test_a_model_of_two_cards_gets_them_on_one_machine() -> None:
    fleet = Fleet([[12, 24], [24], [24, 24]], {"two": [20, 20]})
    start = fleet.load("two")
    assert [share.device.id for share in start.placement.used_shares] == ["2:0", "2:1"]


def test_a_model_of_two_cards_that_no_machine_has_is_refused() -> None:
    fleet = Fleet([[24], [24], [24]], {"two": [20, 20]})
    assert "does not fit" in decisions(fleet.ask("two", 1))


def test_for_a_model_of_two_cards_those_of_one_machine_are_emptied() -> None:
    fleet = Fleet([[24], [24, 24]], {"a": [20], "b": [20], "c": [20], "two": [20, 20]})
    for name in "abc":
        fleet.load(name)
    stopped = {c.residency for c in fleet.ask("two", 1) if isinstance(c, StopEngine)}
    names = {fleet.scheduler.state.residencies[each].model for each in stopped}
    assert names == {"b", "c"}


def test_of_very_many_machines_those_with_the_most_room_are_tried_for_a_model_of_two_cards() -> None:
    fleet = Fleet([[16, 16, 12]] * (2 * MOST_NODES) + [[24, 24]], {"two": [20, 20]})
    start = fleet.load("two")
    assert {share.device.node for share in start.placement.used_shares} == {f"n{2 * MOST_NODES}"}


def test_a_model_that_waits_for_a_load_makes_room_elsewhere_when_another_one_takes_its_place() -> None:
    fleet = Fleet([[24], [24]], {"idle": [20], "small": [4], "a": [18], "b": [18]})
    fleet.load("idle")
    (loading,) = [c for c in fleet.ask("small", 1) if isinstance(c, StartEngine)]
    assert "waits for the load under way" in decisions(fleet.ask("a", 2))
    assert "waits for the load under way" in decisions(fleet.ask("b", 3))
    commands = fleet.send(events.EngineReady(fleet.now, loading.residency))
    assert [c.placement.model for c in commands if isinstance(c, StartEngine)] == ["a"]
    stopped = {c.residency for c in commands if isinstance(c, StopEngine)}
    assert {fleet.scheduler.state.residencies[each].model for each in stopped} == {"idle"}


def test_among_very_many_devices_those_idle_longest_are_searched_and_that_is_said() -> None:
    machines = MOST_DEVICES // 5 + 1
    models: dict[str, Sequence[float]] = {f"m{n}": [20] for n in range(5 * machines)}
    fleet = Fleet([[24] * 5] * machines, {**models, "new": [20]})
    for name in models:
        fleet.load(name)
    commands = fleet.ask("new", 1)
    assert any(isinstance(c, StopEngine) for c in commands)
    assert f"searched: the {MOST_DEVICES} devices idle longest" in decisions(commands)


def test_devices_that_are_too_small_do_not_hide_the_one_that_is_not() -> None:
    small = MOST_DEVICES + 8
    models: dict[str, Sequence[float]] = {f"m{n}": [10] for n in range(small)}
    fleet = Fleet([[12] * 5] * (small // 5) + [[24]], {**models, "last": [15], "new": [20]})
    for name in (*models, "last"):
        fleet.load(name)
    (stop,) = [c for c in fleet.ask("new", 1) if isinstance(c, StopEngine)]
    assert fleet.scheduler.state.residencies[stop.residency].model == "last"


def test_victims_are_found_although_many_devices_idle_longer_have_none() -> None:
    many = MOST_DEVICES + 8
    models: dict[str, Sequence[float]] = {f"m{n}": [20] for n in range(many)}
    fleet = Fleet([[24] * 5] * (many // 5) + [[24]], {**models, "last": [20], "new": [20]})
    for name in models:
        fleet.load(name)
        fleet.send(events.PinAsked(fleet.now, name, pinned=True))
    fleet.load("last")
    (stop,) = [c for c in fleet.ask("new", 1) if isinstance(c, StopEngine)]
    assert fleet.scheduler.state.residencies[stop.residency].model == "last"


@pytest.mark.parametrize("first", [7_000, 7_012])
def test_trying_again_only_where_something_has_changed_misses_nothing(first: int) -> None:
    assert sum(_tried_models_seen(seed) for seed in range(first, first + 12)) > 100


def _tried_models_seen(seed: int) -> int:
    """Run a world, and check after each event that no model that was tried before can be placed now."""
    seeded = seeded_world(seed, NO_FAULTS if seed % 2 else ALL_FAULTS)
    scheduler, seen = seeded.world.scheduler, 0
    handle, state = scheduler.handle, scheduler.state

    def handling(event: events.Event) -> list[Command]:
        nonlocal seen
        commands = handle(event)
        crowded, room = state.max_loaded_reached(), Room(state, state.loading_devices())
        for model in state.cold_and_wanted():
            if model.tried is not None and model.spec.name not in state.reservations and not state.stopping:
                seen += 1
                placed = room.choose(model)
                assert not isinstance(placed, Placement) or (crowded and placement_bytes(placed))
                if model.tried.behind:
                    continue
                overdue = longest_wait_s(model, event.at) > state.overdue_after_s()
                assert VictimSearch(state, model, event.at, room, overdue, crowded).find() is None
        return commands

    scheduler.handle = handling  # type: ignore[method-assign]
    seeded.run()
    return seen
