"""What operators are told of machines, over a real fleet: each alert begins and ends with its cause."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant import __version__
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.nodes.book import FleetBook
from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import NodeState, NodeStatus
from cotenant.domain.nodes import NodeUnreachable, WrongProtocol
from cotenant.nodes import fleet
from cotenant.nodes.fleet import FleetSettings, NodeFleet, Route
from cotenant.nodes.liveness import LivenessRules
from tests.daemon.core.test_loop import fleet as core
from tests.nodes.test_fleet import Agent, Ahead, Roads, Seen
from tests.support.waiting import until

RULES = LivenessRules(suspect_after_s=30.0, lost_after_s=60.0, lease_s=90.0)


class Addresses(Roads):
    """Each road leads to an address of its own, but a second one to machine b."""

    @property
    def routes(self) -> tuple[Route, ...]:
        return tuple(
            Route(key, agent.name, f"10.0.0.{'b' if key.startswith('b') else key}")
            for key, agent in ({} if self.problem else self.agents).items()
        )


@dataclass
class Watched:
    """The book of a fleet; `tick` is what it does every second."""

    book: FleetBook
    alerts: Alerts
    roads: Addresses
    clock: Ahead
    fleet: NodeFleet
    known: set[str]

    def tick(self) -> dict[AlertKind, str]:
        self.book.alert()
        return {alert.kind: alert.text for alert in self.alerts.active()}

    def status(self, name: str = "b") -> NodeStatus:
        return next(each for each in self.book.nodes() if each.name == name)

    async def until(self, *kinds: AlertKind) -> str:
        """Wait for exactly these alerts; return the text of the last."""
        await until(lambda: self.tick().keys() == {*kinds})
        return self.tick()[kinds[-1]] if kinds else ""


@contextlib.asynccontextmanager
async def watched(**agents: Agent) -> AsyncIterator[Watched]:
    parts, _ = core(100)
    clock, roads = Ahead(), Addresses(**agents)
    parts.loop.clock = clock
    made = NodeFleet(roads, FleetSettings("f", 7, RULES), clock, lambda: 1000.0, Seen())
    known: set[str] = set()
    own: Any = SimpleNamespace(
        fleet=made, known=known, watchers=[], machines=SimpleNamespace(listeners=[]), hosts=None
    )
    alerts = Alerts(AlertSettings(), clock)
    book = FleetBook(own, parts.loop, None, alerts)  # type: ignore[arg-type]
    assert own.watchers == [book.alert], "it is asked every second"
    task = asyncio.create_task(made.run())
    try:
        yield Watched(book, alerts, roads, clock, made, known)
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BEAT_S", "_CHECK_S", "_RETRY_S", "_RETRY_REFUSED_S"):
        monkeypatch.setattr(fleet, name, 0.005)


def well(**facts: Any) -> Agent:
    return Agent(version=__version__, unix_time_s=1000.0, lease_left_s=90.0, **facts)


async def test_a_machine_that_is_well_raises_no_alert() -> None:
    async with watched(b=well()) as at:
        await at.fleet.wait_for(["b"], 60.0)
        assert at.tick() == {}
        assert at.status().warnings == ()


async def test_silence_and_loss_begin_and_end() -> None:
    agent = well()
    async with watched(b=agent) as at:
        await at.fleet.wait_for(["b"], 60.0)
        agent.fault = NodeUnreachable("cut off")
        at.clock.ahead_s += 31
        assert "b has not answered for 31" in await at.until(AlertKind.NODE_SILENT)
        at.clock.ahead_s += 31
        assert "b is lost: it has not answered for 1 m" in await at.until(AlertKind.NODE_LOST)
        agent.fault = None
        await at.until()
        assert [(each.kind, each.active) for each in at.alerts.recent()] == [
            (AlertKind.NODE_SILENT, True),
            (AlertKind.NODE_LOST, True),
            (AlertKind.NODE_SILENT, False),
            (AlertKind.NODE_LOST, False),
        ]


async def test_a_machine_of_an_earlier_run_is_missed_once_it_has_had_time_to_answer() -> None:
    async with watched(b=well()) as at:
        at.known.add("c")
        await at.fleet.wait_for(["b"], 60.0)
        assert at.tick() == {}
        at.clock.ahead_s += 21
        text = await at.until(AlertKind.NODE_LOST)
        assert text == "c is lost: it has not answered since the daemon began"
        assert at.status("c").state is NodeState.LOST


async def test_a_raylet_that_was_started_again_makes_its_machine_a_ghost_until_ray_forgets_it() -> None:
    agent = well()
    async with watched(b=agent) as at:
        await at.fleet.wait_for(["b"], 60.0)
        at.roads.agents["b2"] = agent
        at.roads.change()
        assert await at.until(AlertKind.NODE_TWICE) == "Ray lists b 2 times, and it is one machine"
        assert [each.name for each in at.book.nodes()] == ["b"], "it is one"
        assert "Ray lists it 2 times" in at.status().warnings[-1]
        # The way that is dead leads nowhere; it is the same machine by its address.
        at.roads.agents["b"] = Agent(fault=NodeUnreachable("its raylet is dead"))
        at.clock.ahead_s += 31
        await until(lambda: at.fleet.nodes["b"].route.id == "b2")
        await at.until(AlertKind.NODE_TWICE)
        del at.roads.agents["b"]
        at.roads.change()
        await at.until()


async def test_another_version_is_told_whether_it_is_listened_to_or_not() -> None:
    agent = well()
    agent.version = "0.0.1"
    async with watched(b=agent) as at:
        text = await at.until(AlertKind.NODE_VERSION)
        assert text == f"b runs version 0.0.1, and the daemon {__version__}"
        assert at.status().warnings == (f"it runs Cotenant 0.0.1, and the daemon {__version__}",)
    refusing = well(fault=WrongProtocol("the agent of b is Cotenant 9 (protocol 9), the daemon is 1"))
    async with watched(b=refusing) as at:
        text = await at.until(AlertKind.NODE_VERSION)
        assert text == "the agent of b is Cotenant 9 (protocol 9), the daemon is 1"
        refusing.fault = None
        await at.until()


async def test_a_clock_that_is_off_is_told_until_it_is_set_without_another_greeting() -> None:
    agent = well()
    async with watched(b=agent) as at:
        await at.fleet.wait_for(["b"], 60.0)
        agent.unix_time_s = 400.0
        assert "the clock of b is 10 m" in await at.until(AlertKind.NODE_CLOCK)
        assert at.status().warnings == ("its clock is 600 s behind ours",)
        agent.unix_time_s = 1000.0
        await at.until()
        assert [method for method, _ in agent.calls].count("hello") == 1


async def test_a_broker_that_is_down_is_told_and_a_lease_that_runs_out_meanwhile() -> None:
    async with watched(b=well()) as at:
        await at.fleet.wait_for(["b"], 60.0)
        at.roads.problem = "Ray's broker ended with status 3"
        at.roads.change()
        text = await at.until(AlertKind.LAUNCHER_DOWN)
        assert text == "machines cannot be reached through Ray: Ray's broker ended with status 3"
        assert at.book.problem == "Ray's broker ended with status 3"
        at.clock.ahead_s += 65
        text = await at.until(AlertKind.LAUNCHER_DOWN, AlertKind.NODE_LEASE)
        assert text.startswith("engines on b end in 2")
        assert "its engines end in 2" in at.status().warnings[-1]
        at.roads.problem = None
        at.roads.change()
        await at.until()


async def test_a_longer_lease_is_not_short_before_machines_have_it() -> None:
    agent = well()
    async with watched(b=agent) as at:
        await at.fleet.wait_for(["b"], 60.0)
        agent.fault = NodeUnreachable("for a moment")
        at.fleet.configure(replace(at.fleet.settings, rules=replace(RULES, lease_s=900.0)))
        assert at.tick() == {}
        agent.lease_left_s, agent.fault = 900.0, None
        await until(lambda: at.fleet.nodes["b"].lease_s == 900.0)
        assert at.tick() == {}


async def test_that_ray_is_being_joined_is_no_news_at_the_start_but_later() -> None:
    async with watched() as at:
        at.roads.problem = "Ray at nowhere cannot be joined"
        at.roads.change()
        assert at.tick() == {}
        at.clock.ahead_s += 21
        await at.until(AlertKind.LAUNCHER_DOWN)


def test_every_alert_about_machines_is_walked_here() -> None:
    walked = Path(__file__).read_text(encoding="utf-8")
    about = [kind for kind in AlertKind if kind.value.startswith(("node_", "launcher_"))]
    assert [kind for kind in about if f"until(AlertKind.{kind.name}" not in walked] == [AlertKind.NODE_LEASE]
