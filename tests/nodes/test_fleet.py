"""The fleet greets machines, keeps their leases up, and says when one is silent, back, or another's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cotenant.clock import SystemClock
from cotenant.domain.devices import Inventory
from cotenant.domain.nodes import AgentGone, NodeUnreachable, StaleEpoch, WrongProtocol
from cotenant.domain.vendors import InventorySource
from cotenant.nodes import fleet
from cotenant.nodes.fleet import FleetSettings, Node, NodeFleet, Route
from cotenant.nodes.liveness import Liveness, LivenessRules
from cotenant.nodes.messages import (
    AgentEvent,
    EngineGone,
    Events,
    GateAddress,
    HelloAnswer,
    Identity,
    Nothing,
    ReadingTaken,
    Stamp,
)
from cotenant.nodes.protocol import Json, to_json
from tests.support.waiting import until


@dataclass
class Agent:
    """What answers at the end of a route; `fault` is raised instead. Events before number `base` are lost."""

    machine: str = "m1"
    name: str = "b"
    fault: Exception | None = None
    events: list[EngineGone] = field(default_factory=list)
    calls: list[tuple[str, Json]] = field(default_factory=list)
    base: int = 0
    unix_time_s: float | None = None
    version: str = "1"
    lease_left_s: float = 60.0
    gate: GateAddress | None = None

    async def answer(self, method: str, params: Json) -> object:
        if self.fault is not None:
            raise self.fault
        self.calls.append((method, params))
        match method:
            case "hello":
                identity = Identity(self.machine, "boot", params["fleet"], self.name)
                reading = ReadingTaken(Inventory(InventorySource.HOST, (), {}))
                return HelloAnswer(identity, self.version, 1, reading, (), (), self.last, 100.0, 0.0)
            case "renew":
                return Stamp(params["stamp"] + 1, self.lease_left_s, self.unix_time_s, self.gate)
            case "poll":
                after = params["after"]
                while after == self.last and self.fault is None:
                    await asyncio.sleep(0.001)
                if self.fault is not None:
                    raise self.fault
                lost = not self.base <= after <= self.last
                return Events(() if lost else tuple(self.events[after - self.base :]), 100.0, lost)
        return Nothing()

    @property
    def last(self) -> int:
        return self.base + len(self.events)

    def happens(self, engine: str) -> None:
        self.events.append(EngineGone(engine, seq=self.last + 1))


class Roads:
    """A launcher whose machines are objects of the test."""

    def __init__(self, **agents: Agent) -> None:
        self.agents = dict(agents)
        self.problem: str | None = None
        self.warnings: tuple[str, ...] = ()
        self.listeners: list[Callable[[], None]] = []

    @property
    def routes(self) -> tuple[Route, ...]:
        ways = ((key, agent.name, "10.0.0.2") for key, agent in self.agents.items())
        return () if self.problem else tuple(Route(*way, warnings=self.warnings) for way in ways)

    def change(self) -> None:
        for listener in self.listeners:
            listener()

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        if self.problem or node not in self.agents:
            raise NodeUnreachable("no way")
        return to_json(await self.agents[node].answer(method, params))

    async def run(self) -> None:
        self.change()
        await asyncio.get_running_loop().create_future()


class Seen:
    """What the fleet reported, in order."""

    def __init__(self) -> None:
        self.story: list[str] = []

    def greeted(self, node: Node) -> None:
        self.story.append(f"{node.name} greeted")

    def happened(self, node: Node, event: AgentEvent) -> None:
        self.story.append(f"{node.name} {event.type} {event.seq}")

    def gate_changed(self, node: Node) -> None:
        assert node.hello.gate is not None
        self.story.append(f"{node.name} gate {node.hello.gate.port}")

    def silent(self, node: Node, state: Liveness) -> None:
        self.story.append(f"{node.name} {state}")

    def agent_ended(self, node: Node, why: str) -> None:
        self.story.append(f"{node.name} is {node.state}: {why}")

    def superseded(self, error: StaleEpoch) -> None:
        self.story.append(f"superseded: {error.message}")


class Ahead(SystemClock):
    """A clock that a test puts ahead, so that a machine has been silent for long."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@contextlib.asynccontextmanager
async def running(roads: Roads, clock: Ahead | None = None) -> AsyncIterator[tuple[NodeFleet, list[str]]]:
    seen = Seen()
    timing = LivenessRules(suspect_after_s=30.0, lost_after_s=60.0, lease_s=600.0)
    made = NodeFleet(roads, FleetSettings("f", 7, timing), clock or Ahead(), lambda: 0.0, seen)
    task = asyncio.create_task(made.run())
    try:
        yield made, seen.story
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BEAT_S", "_CHECK_S", "_RETRY_S", "_RETRY_REFUSED_S"):
        monkeypatch.setattr(fleet, name, 0.005)


async def test_a_machine_is_greeted_kept_and_heard() -> None:
    agent = Agent()
    async with running(Roads(r1=agent)) as (made, story):
        await made.wait_for(["b"], 60.0)
        assert story == ["b greeted"]
        agent.happens("e1")
        agent.happens("e2")
        await until(lambda: len(story) == 3)
        assert story[1:] == ["b engine_gone 1", "b engine_gone 2"]
        stamps = [params["stamp"] for method, params in agent.calls if method == "renew"]
        await until(lambda: len([c for c in agent.calls if c[0] == "renew"]) > len(stamps) + 2)
        stamps = [params["stamp"] for method, params in agent.calls if method == "renew"]
        assert stamps[:4] == [100.0, 101.0, 102.0, 103.0], "each renewal has the stamp of the last answer"
        assert await made.call("b", "stop", {"epoch": 7}, 1.0) == {}
        await made.release()
        assert agent.calls[-1] == ("release", {"epoch": 7}) or ("release", {"epoch": 7}) in agent.calls


async def test_once_one_machine_has_answered_another_that_is_gone_is_not_waited_for_long() -> None:
    roads = Roads(r1=Agent(), r2=Agent(machine="m2", name="c", fault=NodeUnreachable("it is off")))
    async with running(roads) as (made, story), asyncio.timeout(600):
        await made.wait_for(["b", "c"], 3600.0)
        assert story == ["b greeted"]


async def test_what_is_wrong_with_a_way_is_known_also_if_that_is_found_while_its_agent_is_asked() -> None:
    agent = Agent(fault=NodeUnreachable("its actor is being started"))
    roads = Roads(r1=agent)
    async with running(roads) as (made, _):
        await until(lambda: made.problems)
        roads.warnings = ("Ray was started without patience",)
        roads.change()
        agent.fault = None
        await made.wait_for(["b"], 60.0)
        assert made.nodes["b"].route.warnings == roads.warnings


async def test_other_settings_are_in_the_next_heartbeat_and_a_gate_that_moved_is_news() -> None:
    agent = Agent()
    async with running(Roads(r1=agent)) as (made, story):
        await until(lambda: story == ["b greeted"])
        rules = LivenessRules(suspect_after_s=40.0, lost_after_s=50.0, lease_s=900.0)
        made.configure(
            replace(made.settings, rules=rules, gate_port=9, certificate=Path("/c"), key=Path("/k"))
        )
        assert made.nodes["b"].liveness.rules == rules
        await until(lambda: [p for m, p in agent.calls if m == "renew"][-1]["lease_s"] == 900.0)
        asked = [p for m, p in agent.calls if m == "renew"][-1]["gate"]
        assert asked == {"address": "10.0.0.2", "port": 9, "certificate": "/c", "key": "/k"}
        agent.gate = GateAddress("10.0.0.2", 9, tls=True, certificate=Path("/c"))
        await until(lambda: story[1:] == ["b gate 9"])
        assert len([m for m, _ in agent.calls if m == "hello"]) == 1, "it is not greeted again"


async def test_how_far_a_clock_is_off_is_seen_with_each_heartbeat() -> None:
    agent = Agent(unix_time_s=-5.0)
    async with running(Roads(r1=agent)) as (made, _):
        await until(lambda: bool(made.nodes) and made.nodes["b"].behind_s > 4.0)
        agent.unix_time_s = 0.0
        await until(lambda: abs(made.nodes["b"].behind_s) < 1.0)


async def test_a_clock_is_not_judged_by_an_answer_that_took_long() -> None:
    clock = Ahead()

    class Slow(Agent):
        async def answer(self, method: str, params: Json) -> object:
            clock.ahead_s += 3.0 if method == "renew" else 0.0
            return await super().answer(method, params)

    agent = Slow(unix_time_s=-2.0)
    async with running(Roads(r1=agent), clock) as (made, _):
        await until(lambda: [method for method, _ in agent.calls].count("renew") > 3)
        assert made.nodes["b"].behind_s == 0.0


async def test_a_silent_machine_is_suspect_then_lost_and_greeted_when_it_is_back() -> None:
    agent, clock = Agent(), Ahead()
    async with running(Roads(r1=agent), clock) as (_, story):
        await until(lambda: story == ["b greeted"])
        agent.fault = NodeUnreachable("cut off")
        clock.ahead_s += 31
        await until(lambda: story == ["b greeted", "b suspect"])
        clock.ahead_s += 31
        await until(lambda: story == ["b greeted", "b suspect", "b lost"])
        agent.fault = None
        await until(lambda: story[3:] == ["b greeted"])


async def test_without_a_broker_no_machine_is_silent_and_each_is_greeted_again() -> None:
    agent, clock = Agent(), Ahead()
    roads = Roads(r1=agent)
    async with running(roads, clock) as (made, story):
        await until(lambda: story == ["b greeted"])
        roads.problem = "the broker ended"
        roads.change()
        clock.ahead_s += 100
        began = made.clock.now()
        await until(lambda: made.clock.now() > began + 0.1)
        assert story == ["b greeted"]
        roads.problem = None
        roads.change()
        await until(lambda: story == ["b greeted", "b greeted"])


async def test_a_machine_that_ray_knows_twice_is_one_and_follows_the_way_that_leads_to_it() -> None:
    agent, clock = Agent(), Ahead()
    roads = Roads(r1=agent)
    async with running(roads, clock) as (made, story):
        await until(lambda: story == ["b greeted"])
        roads.agents["r2"] = agent
        roads.change()
        await until(lambda: "knows twice" in made.problems.get("r2", ""))
        assert list(made.nodes) == ["b"]
        roads.agents["r1"] = Agent(fault=NodeUnreachable("its raylet is dead"))
        clock.ahead_s += 31
        await until(lambda: made.nodes["b"].route.id == "r2")
        await until(lambda: story[-1] == "b greeted")
        agent.happens("e1")
        await until(lambda: story[-1] == "b engine_gone 1")


async def test_two_machines_of_one_name_are_told_apart() -> None:
    async with running(Roads(r1=Agent(machine="abcdefgh"), r2=Agent(machine="12345678"))) as (made, _):
        await until(lambda: len(made.nodes) == 2)
        assert {"b"} < made.nodes.keys()
        assert made.nodes.keys() - {"b"} <= {"b-abcdef", "b-123456"}


async def test_a_daemon_that_another_has_replaced_is_told() -> None:
    agent = Agent()
    async with running(Roads(r1=agent)) as (_, story):
        await until(lambda: story == ["b greeted"])
        agent.fault = StaleEpoch("another daemon commands b")
        await until(lambda: story[1:] == ["superseded: another daemon commands b"])


async def test_an_agent_of_another_version_is_a_problem_in_words_until_it_is_replaced() -> None:
    agent = Agent(fault=WrongProtocol("b speaks version 2 of the protocol, and this daemon 1"))
    async with running(Roads(r1=agent)) as (made, story):
        await until(lambda: made.problems == {"r1": "b speaks version 2 of the protocol, and this daemon 1"})
        agent.fault = None
        await until(lambda: story == ["b greeted"])
        assert made.problems == {}


async def test_after_lost_events_and_after_its_agent_began_anew_it_is_greeted_again() -> None:
    agent = Agent()
    roads = Roads(r1=agent)
    async with running(roads) as (made, story):
        await until(lambda: story == ["b greeted"])
        agent.happens("e1")
        await until(lambda: "b engine_gone 1" in story)
        agent.base = 10
        await until(lambda: made.nodes["b"].last_event == 11)
        roads.agents["r1"] = Agent(base=1000)
        agent.fault = NodeUnreachable("it was killed")
        await until(lambda: made.nodes["b"].last_event == 1000)
        roads.agents["r1"].happens("e9")
        await until(lambda: story[-1] == "b engine_gone 1001")
        assert story.count("b greeted") >= 3


async def test_the_end_of_an_agent_is_news_at_once_and_the_next_one_is_greeted() -> None:
    agent = Agent()
    roads = Roads(r1=agent)
    async with running(roads) as (made, story):
        await until(lambda: story == ["b greeted"])
        agent.fault = AgentGone("it was killed")
        await until(lambda: story[1:] == ["b is suspect: it was killed"])
        await until(lambda: made.problems == {"r1": "it was killed"})
        roads.agents["r1"] = Agent(base=1000)
        await until(lambda: story[2:] == ["b greeted"])
        roads.agents["r1"].happens("e9")
        await until(lambda: story[3:] == ["b engine_gone 1001"])
        assert made.problems == {}
