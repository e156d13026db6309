"""The core of a daemon over real agents, without Ray."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cotenant.clock import SystemClock
from cotenant.config.configuration import ModelEntry
from cotenant.config.model_file_cache import signature
from cotenant.config.settings import read_configuration
from cotenant.config.values.nodes import NodePull
from cotenant.config.yaml_document import Document
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.nodes.card_sharing import NodeSharing
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.files import NodeFiles
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.daemon.nodes.load_costs import NodeLoadCosts
from cotenant.daemon.nodes.load_times import LoadTimes
from cotenant.daemon.nodes.machines import Machines
from cotenant.daemon.nodes.warm_keepers import NodeWarmKeepers
from cotenant.domain.models import ModelShape, Recipe
from cotenant.domain.nodes import NodeUnreachable
from cotenant.interfaces import Engine, EngineOrder
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.fleet import FleetSettings, NodeFleet, Route
from cotenant.nodes.liveness import LivenessRules
from cotenant.nodes.protocol import Json
from cotenant.nodes.spanning import engines_of
from cotenant.nodes.transport import SocketTransport
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import ModelsChanged
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from tests.daemon.core.test_loop import Parts
from tests.support.agents import FLEET, AgentProcess, agent
from tests.support.engines.orders import fake_server
from tests.support.gpus.paper_machine import PaperMachine
from tests.support.models.shapes import dense

_RULES = BudgetRules(reserve_bytes=0, min_budget_bytes=0)


class Roads:
    """A launcher with an agent at the end of each road: all can be closed, or those to some.

    They may be slow, `way_s` seconds each way, and lose one of `loses_one_in` calls, or its answer, in turns.
    """

    problem: str | None = None

    def __init__(self, agents: Mapping[str, AgentProcess]) -> None:
        self._transport = SocketTransport(lambda route: agents[route].socket)
        self.listeners: list[Callable[[], None]] = []
        self.routes: Sequence[Route] = [Route(name, name, "127.0.0.1") for name in agents]
        self.closed = False
        self.way_s, self.loses_one_in, self.calls = 0.0, 0, 0
        self.closed_to: set[str] = set()

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        if self.closed or node in self.closed_to:
            raise NodeUnreachable("the road is closed")
        self.calls += 1
        number = self.calls
        is_lost = self.loses_one_in > 0 and number % self.loses_one_in == 0
        await asyncio.sleep(self.way_s)
        if is_lost and number % 2:
            raise NodeUnreachable("the call was lost")
        answer = await self._transport.call(node, method, params, timeout_s)
        await asyncio.sleep(self.way_s)
        if is_lost:
            raise NodeUnreachable("its answer was lost")
        return answer

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
    road: Roads
    clock: "Ahead"
    load_costs: NodeLoadCosts
    files: NodeFiles
    host: Callable[[str], NodeEngineHost]

    def engine_pids(self) -> list[int]:
        running = self.parts.loop.effects.running.values()
        engines = [engine for run in running for engine in engines_of(run.engine)]
        return [engine.node_pid for engine in engines if engine.node_pid is not None]


@contextlib.asynccontextmanager
async def daemon(
    running: AgentProcess | Mapping[str, AgentProcess],
    model: Path,
    epoch: int = 1,
    *,
    stop: bool = True,
    pull: NodePull = NodePull.NEVER,
    warm_every_s: float | None = None,
    warm_bytes: int | None = None,
    across_nodes: ModelShape | None = None,
    **recipe: Any,
) -> AsyncIterator[Running]:
    """What the daemon has of one machine `b`, or of several; without `stop` it ends as if it were killed.

    A model of the shape `across_nodes` may be over several.
    """
    agents = {"b": running} if isinstance(running, AgentProcess) else running
    clock, road, files = SystemClock(), Roads(agents), NodeFiles(pull)
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
    chosen = Recipe(**{"n_ctx": 256, "parallel": 1, **recipe})
    entry = ModelEntry(
        "m",
        model,
        chosen,
        across_nodes or dense(2, 1 << 20),
        (signature(model),),
        (model,),
        across_nodes=across_nodes is not None,
    )
    configuration = read_configuration(Document("", {}), environment={})
    active: Any = SimpleNamespace(configuration=configuration, models=(entry,))
    own_clock = Ahead()
    load_costs = NodeLoadCosts(loop, hosts, active, files, LoadTimes())
    loop.feed.listeners.append(load_costs.decided)
    warm = None
    if warm_every_s is not None:
        warm = NodeWarmKeepers(loop, FleetView(loop), warm_bytes, every_s=warm_every_s)
        loop.feed.listeners.append(warm.decided)
    machines = Machines(loop, hosts, cards, NodeSharing(hosts, cards, active), load_costs, warm, lambda: None)
    timing = LivenessRules(suspect_after_s=30.0, lost_after_s=60.0, lease_s=600.0)
    fleet = NodeFleet(road, FleetSettings(FLEET, epoch, timing), own_clock, lambda: 0.0, machines)
    loop.serve((entry,), ModelsChanged(clock.now(), (spec_of(entry, _RULES, 1.0),)))
    following = asyncio.create_task(fleet.run())
    try:
        await fleet.wait_for(agents, 60.0)
        yield Running(Parts.on(loop), fleet, road, own_clock, load_costs, files, hosts.of)
        if stop:
            await loop.stop(5.0)
            await fleet.release()
    finally:
        files.close()
        if warm is not None:
            await warm.close()
        following.cancel()
        await asyncio.wait({following})
        await road.close()
        for run in loop.effects.running.values():
            run.forgotten = True
            if run.task is not None:
                run.task.cancel()


@contextlib.contextmanager
def machine(folder: Path, name: str = "b", **options: Any) -> Iterator[AgentProcess]:
    """A machine with one GPU on paper, whose engines are fake."""
    folder.mkdir(exist_ok=True)
    card = PaperMachine(folder, 4096, f"GPU-{name}")
    flags = ("--gpus", str(card.path), "--llama-server", str(fake_server(folder)), "--name", name)
    env = {"COTENANT_MACHINE_ID": name, **options.pop("env", {})}
    with agent(folder, *flags, env=env, **options) as running:
        yield running
