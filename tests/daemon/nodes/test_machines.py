"""The core over a real agent, without Ray: it loads there, the next daemon takes over, a lost one is left."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant.clock import SystemClock
from cotenant.config.configuration import ModelEntry
from cotenant.config.settings import read_configuration
from cotenant.config.values.nodes import NodePull
from cotenant.config.yaml_document import Document
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.nodes.card_sharing import NodeSharing
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.files import NodeFiles
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.daemon.nodes.machines import Machines
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.models import Recipe
from cotenant.domain.nodes import NodeUnreachable
from cotenant.domain.requests import LeaseTerms
from cotenant.interfaces import Engine, EngineOrder
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.fleet import FleetSettings, NodeFleet, Route
from cotenant.nodes.liveness import Liveness, LivenessRules
from cotenant.nodes.protocol import Json
from cotenant.nodes.transport import SocketTransport
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import ModelsChanged
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from tests.daemon.core.test_loop import Parts
from tests.support.agents import FLEET, AgentProcess, agent
from tests.support.engines.orders import fake_server
from tests.support.gpus.paper_machine import PaperMachine
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.shapes import dense
from tests.support.waiting import alive, until

pytestmark = pytest.mark.slow

_RULES = BudgetRules(reserve_bytes=0, min_budget_bytes=0)


class OneRoad:
    """A launcher with one agent at the end of its only road, which can be closed."""

    problem: str | None = None

    def __init__(self, running: AgentProcess) -> None:
        self._transport = SocketTransport(lambda _: running.socket)
        self.listeners: list[Callable[[], None]] = []
        self.routes: Sequence[Route] = (Route("r1", "b", "127.0.0.1"),)
        self.closed = False

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        if self.closed:
            raise NodeUnreachable("the road is closed")
        return await self._transport.call(node, method, params, timeout_s)

    async def close(self) -> None:
        await self._transport.close()

    async def run(self) -> None:
        for listener in self.listeners:
            listener()
        await asyncio.get_running_loop().create_future()


class Ahead(SystemClock):
    """A clock that a test can put ahead, so that a machine has been silent for long."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


class NoLocalEngines:
    async def start(self, order: EngineOrder) -> Engine:
        raise AssertionError("nothing runs on the daemon's machine")


@dataclass
class Running:
    parts: Parts
    fleet: NodeFleet
    road: OneRoad
    clock: "Ahead"

    def engine_pids(self) -> list[int]:
        engines = (run.engine for run in self.parts.loop.effects.running.values())
        return [each.node_pid for each in engines if each is not None]  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def daemon(
    running: AgentProcess,
    model: Path,
    epoch: int,
    *,
    stop: bool = True,
    **recipe: Any,
) -> AsyncIterator[Running]:
    """What the daemon has of one machine; without `stop` it ends as if it were killed."""
    clock, road, files = SystemClock(), OneRoad(running), NodeFiles(NodePull.NEVER)
    hosts = NodeHosts(NoLocalEngines(), lambda node: NodeEngineHost(node, fleet, epoch), files.ensure)
    effects = Effects(
        hosts,
        clock,
        lambda entry, placed: place_on_this_machine(
            entry.request, placed, _RULES, ram=cards.host_of(placed.node)
        ),
        60.0,
        _RULES,
    )
    effects.remote_log, effects.log_node = hosts.log_of, hosts.log_node
    loop = Loop(Scheduler(SchedulerSettings()), clock, effects)
    cards = NodeCards((), _RULES, loop)
    plain: Any = SimpleNamespace(configuration=read_configuration(Document("", {}), environment={}))
    own_clock = Ahead()
    machines = Machines(loop, hosts, cards, NodeSharing(hosts, cards, plain), lambda: None)
    timing = LivenessRules(suspect_after_s=30.0, lost_after_s=60.0, lease_s=600.0)
    fleet = NodeFleet(road, FleetSettings(FLEET, epoch, timing), own_clock, lambda: 0.0, machines)
    chosen = Recipe(**{"n_ctx": 256, "parallel": 1, **recipe})
    entry = ModelEntry("m", model, chosen, dense(2, 1 << 20), (), ())
    loop.serve((entry,), ModelsChanged(clock.now(), (spec_of(entry, _RULES, 1.0),)))
    following = asyncio.create_task(fleet.run())
    try:
        await fleet.wait_for(["b"], 60.0)
        yield Running(Parts.on(loop), fleet, road, own_clock)
        if stop:
            await loop.stop(5.0)
            await fleet.release()
    finally:
        following.cancel()
        await asyncio.wait({following})
        await road.close()
        for run in loop.effects.running.values():
            run.forgotten = True
            if run.task is not None:
                run.task.cancel()


@contextlib.contextmanager
def machine_b(folder: Path) -> Any:
    card = PaperMachine(folder, 4096)
    flags = ("--gpus", str(card.path), "--llama-server", str(fake_server(folder)))
    with agent(folder, *flags) as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_llama(tmp_path / "tiny.gguf")


async def test_a_model_loads_on_a_machine_and_the_next_daemon_takes_its_engine_over(
    tmp_path: Path, model: Path
) -> None:
    with machine_b(tmp_path) as running:
        async with daemon(running, model, 1, stop=False) as first:
            await first.parts.operator.load("m")
            (pid,) = first.engine_pids()
            (status,) = first.parts.operator.statuses()
            assert status.state == "ready"
            assert {device.node for device in first.parts.view.devices()} == {"b"}
        assert alive(pid)
        async with daemon(running, model, 2) as second:
            assert second.engine_pids() == [pid]
            lease = second.parts.router.try_lease("m")
            assert lease is not None
            assert lease.endpoint.gate
            lease.release()
            assert "taken over" in second.parts.operator.why("m")[0].text
        assert not alive(pid)


async def test_an_engine_of_a_model_that_is_configured_otherwise_now_is_ended(
    tmp_path: Path, model: Path
) -> None:
    with machine_b(tmp_path) as running:
        async with daemon(running, model, 1, stop=False) as first:
            await first.parts.operator.load("m")
            (pid,) = first.engine_pids()
        async with daemon(running, model, 2, n_ctx=512) as second:
            await until(lambda: not alive(pid))
            assert second.engine_pids() == []


async def test_what_ran_on_a_lost_machine_is_forgotten_and_taken_over_when_it_is_back(
    tmp_path: Path, model: Path
) -> None:
    with machine_b(tmp_path) as running:
        async with daemon(running, model, 1) as only:
            await only.parts.operator.load("m")
            (pid,) = only.engine_pids()
            only.road.closed = True
            only.clock.ahead_s += 31
            await until(lambda: only.parts.operator.statuses()[0].state == "suspended")
            only.clock.ahead_s += 31
            await until(lambda: not only.parts.view.devices())
            assert only.engine_pids() == []
            only.road.closed = False
            await until(lambda: only.engine_pids() == [pid])
            await until(lambda: only.parts.operator.statuses()[0].state == "ready")


async def test_when_an_agent_is_killed_its_engines_are_gone_at_once_and_its_memory_with_the_next_one(
    tmp_path: Path, model: Path
) -> None:
    with contextlib.ExitStack() as agents:
        first = agents.enter_context(machine_b(tmp_path))
        async with daemon(first, model, 1) as only:
            await only.parts.operator.load("m")
            lease = only.parts.router.try_lease("m")
            assert lease is not None
            os.kill(first.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                death = await lease.death(600.0)
            assert "cannot be reached" in str(death)
            lease.release()
            assert only.fleet.nodes["b"].state is Liveness.SUSPECT
            waiting = asyncio.create_task(only.parts.router.lease("m", LeaseTerms(600.0)))
            flags = ("--gpus", str(tmp_path / "machine.yaml"), "--llama-server", str(fake_server(tmp_path)))
            agents.enter_context(agent(tmp_path, *flags))
            (await waiting).release()
            kinds = [each.kind for each in only.parts.operator.why("m")]
            assert kinds.count(DecisionKind.READY) == 2
            assert DecisionKind.FREED in kinds
            assert DecisionKind.NOT_FREED not in kinds


async def test_why_an_engine_died_there_has_its_last_lines_and_its_log_is_read_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SAYS", "error: the model is haunted")
    with machine_b(tmp_path) as running:
        async with daemon(running, model, 1) as only:
            await only.parts.operator.load("m")
            (pid,) = only.engine_pids()
            os.kill(pid, signal.SIGSEGV)
            await until(lambda: DecisionKind.FAILED in [d.kind for d in only.parts.operator.why("m")])
            (failed,) = [d for d in only.parts.operator.why("m") if d.kind is DecisionKind.FAILED]
            assert "(the model is haunted)" in failed.text
            assert failed.text.endswith("/m.log on b")
            (served,) = only.parts.router.models()
            assert (served.log_path, served.log_node) == (None, "b")
            read = only.parts.operator.remote_log("m")
            assert read is not None
            assert b"error: the model is haunted" in (await read(None, 65_536))[0]
