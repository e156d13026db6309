"""The machines as operators see and order them."""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant import __version__
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.alerting.node_conditions import Expected
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.mover import FleetMover
from cotenant.daemon.nodes.files import model_files
from cotenant.daemon.nodes.parts import NodeParts
from cotenant.domain.decisions import NodeState, NodeStatus
from cotenant.domain.devices import DeviceId, DeviceKind
from cotenant.domain.engines import FoundBuilds, InstallOrder, InstallStep
from cotenant.domain.errors import BadRequest, UnknownNode
from cotenant.domain.hub import PullStep, hub_name
from cotenant.domain.moves import MovePlan
from cotenant.domain.nodes import NodeUnreachable
from cotenant.domain.units import format_duration
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.fleet import Node
from cotenant.nodes.liveness import Liveness
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.events import NodeLost

_FIRST_S: Final = 20.0
"""How long machines have to answer at the start before that is news: their agents may have to be started."""
_CLOCK_S: Final = 1.0
"""A clock that is off by more makes times in logs and caches hard to compare."""


class FleetBook:
    """The gateway's `Machines` over those of a fleet: the ones that answered, and those of earlier runs.

    It tells `alerts` of them every second: what is left of a lease changes though nobody says anything.
    """

    def __init__(self, parts: NodeParts, loop: Loop, mover: FleetMover, alerts: Alerts) -> None:
        self._parts = parts
        self._loop = loop
        self._mover = mover
        self._alerts = alerts
        self._began = loop.clock.now()
        parts.watchers.append(self.alert)
        parts.machines.listeners.append(self.alert)

    @property
    def problem(self) -> str | None:
        """Why no machine can be reached, if so."""
        return self._parts.fleet.launcher.problem

    def nodes(self) -> Sequence[NodeStatus]:
        """Every machine that is known, and the ways that lead to none yet."""
        fleet, readings = self._parts.fleet, self._loop.scheduler.state.ledger.readings.values()
        cards: dict[str | None, list[DeviceReading]] = {}
        for reading in readings:
            cards.setdefault(reading.device.node, []).append(reading)
        running = self._loop.effects.running.values()
        engines = Counter(node for run in running for node in run.placement.nodes)
        found = {
            name: self._status(node, cards.get(name, ()), engines[name]) for name, node in fleet.nodes.items()
        }
        for name in self._parts.known - found.keys():
            found[name] = NodeStatus(name, NodeState.LOST)
        ways = {node.route.id: node.name for node in fleet.nodes.values()}
        # Ray lists a machine twice for a while after its raylet was started again.
        twins = {node.route.address: node.name for node in fleet.nodes.values()}
        for route in fleet.launcher.routes:
            name = ways.get(route.id) or fleet.twins.get(route.id) or twins.get(route.address) or route.name
            status = found.get(name) or NodeStatus(name, NodeState.LOST)
            problem, node = fleet.problems.get(route.id), fleet.nodes.get(name)
            if node is not None and node.route.id != route.id:
                found[name] = replace(status, ways=status.ways + 1)
            elif problem is not None:
                refused = problem if route.id in fleet.refused else None
                told = (problem, *status.warnings)
                found[name] = replace(status, address=route.address, refused=refused, warnings=told)
        return sorted(map(_with_ways, found.values()), key=lambda status: status.name)

    def plan_drain(self, name: str) -> Sequence[MovePlan]:
        """What would become of each model on a machine that is drained. Raises UnknownNode."""
        plans = [plan for device in self._devices(name) for plan in self._mover.plan_drain(device)]
        return tuple({plan.model: plan for plan in plans}.values())

    async def drain(self, name: str, drained: bool) -> None:
        """Drain all devices of a machine, or use it again. Raises UnknownNode, BadRequest or StoreError."""
        for device in self._devices(name):
            await self._mover.drain(device, drained)

    def forget(self, name: str) -> None:
        """Miss a machine no more that is lost. Raises UnknownNode, or BadRequest for one that is not."""
        status = next((each for each in self.nodes() if each.name == name), None)
        if status is None:
            raise UnknownNode(f"there is no machine {name[:80]!r}", hint=self._known())
        if status.state is not NodeState.LOST:
            raise BadRequest(f"{name} answers", hint=f"End Ray there first, or: cotenant nodes drain {name}.")
        self._loop.post(NodeLost(self._loop.clock.now(), name, "an operator forgot it", for_good=True))
        self._parts.forget(name)

    async def doctor(self, name: str) -> Mapping[str, object]:
        """What `cotenant doctor --json` finds on a machine. Raises UnknownNode or NodeUnreachable."""
        return await self._host(name).doctor()

    async def engines(self, name: str) -> FoundBuilds:
        """Return its programs that can run models. Raises UnknownNode, NodeUnreachable or EngineMissing."""
        return await self._host(name).builds()

    def install(self, name: str, order: InstallOrder) -> AsyncGenerator[InstallStep, None]:
        """Install a build on it. Raises UnknownNode, and what `NodeEngineHost.install` raises."""
        return self._host(name).install(order)

    def pull(self, name: str, model: str) -> AsyncGenerator[PullStep, None]:
        """Have it fetch the files of a served model, which may be named as on the hub.

        Raises UnknownNode, UnknownModel, BadRequest, and as `NodeFiles.order`.
        """
        host, entry = self._host(name), self._entry(model)
        paths = [*model_files(entry)]
        if not paths:
            raise BadRequest(f"{entry.name} has no files", hint="What others serve needs none.")
        return self._parts.files.order(host, entry.name, paths)

    def _entry(self, model: str) -> ModelEntry:
        entries = self._loop.fleet.entries
        for entry in entries.values() if "/" in model else ():
            on_hub = None if entry.path is None else hub_name(entry.path.parent.name, entry.path.name)
            if on_hub is not None and str(on_hub).lower() == model.lower():
                return entry
        return entries[self._loop.fleet.resolve(model)]

    def _host(self, name: str) -> NodeEngineHost:
        if name in self._parts.fleet.nodes:
            return self._parts.hosts.of(name)
        if any(status.name == name for status in self.nodes()):
            raise NodeUnreachable(f"{name} has not answered yet", hint="Whether it does: cotenant nodes list")
        raise UnknownNode(f"there is no machine {name[:80]!r}", hint=self._known())

    def alert(self) -> None:
        """Tell the alerts what is wrong now; at the start, machines and Ray have a while to answer."""
        fleet, nodes, problem = self._parts.fleet, self.nodes(), self.problem
        if self._loop.clock.now() < self._began + _FIRST_S:
            nodes = [node for node in nodes if node.name in fleet.nodes or node.refused is not None]
            problem = problem if fleet.nodes else None
        # A longer one that was just configured is not theirs yet.
        lease_s = min((each.lease_s for each in fleet.nodes.values()), default=0.0)
        self._alerts.nodes(nodes, Expected(__version__, lease_s), problem)

    def _status(self, node: Node, cards: Sequence[DeviceReading], engines: int) -> NodeStatus:
        now, hello = self._loop.clock.now(), node.hello
        drained = self._loop.scheduler.state.ledger.drained
        gpus = [reading for reading in cards if reading.device.kind is not DeviceKind.HOST]
        state = NodeState(node.state.value)
        if state is NodeState.READY and cards and all(r.device.id in drained for r in cards):
            state = NodeState.DRAINED
        free = [reading.free_bytes for reading in gpus if reading.free_bytes is not None]
        clock = abs(node.behind_s)
        warnings = [*node.route.warnings, *hello.problems]
        if clock > _CLOCK_S:
            side = "behind" if node.behind_s > 0 else "ahead of"
            warnings.append(f"its clock is {clock:.0f} s {side} ours")
        if node.gate_problem is not None:
            warnings.append(f"its gate stays as it was: {node.gate_problem}")
        if hello.version != __version__:
            warnings.append(f"it runs Cotenant {hello.version}, and the daemon {__version__}")
        silent_s = node.liveness.silent_s(now)
        left_s = max(0.0, node.lease_left_s - silent_s)
        if node.state is Liveness.READY and left_s < node.lease_s / 3:
            warnings.append(f"its engines end in {format_duration(left_s)}, unless it hears of the daemon")
        return NodeStatus(
            node.name,
            state,
            since_s=now - node.liveness.since,
            silent_s=None if node.state is Liveness.READY else silent_s,
            address=node.route.address,
            cards=len(gpus),
            free_bytes=sum(free) if free else None,
            engines=engines,
            lease_left_s=left_s,
            link_s=node.link_s,
            clock_off_s=-node.behind_s,
            version=hello.version,
            machine_id=hello.identity.machine_id,
            warnings=tuple(warnings),
        )

    def _devices(self, name: str) -> list[DeviceId]:
        readings = self._loop.scheduler.state.ledger.readings.values()
        found = [reading.device.id for reading in readings if reading.device.node == name]
        if not found:
            raise UnknownNode(f"there is no machine {name[:80]!r} with devices", hint=self._known())
        return found

    def _known(self) -> str:
        return f"There are: {', '.join(status.name for status in self.nodes()) or 'none'}."


def _with_ways(status: NodeStatus) -> NodeStatus:
    if status.ways == 1:
        return status
    told = f"Ray lists it {status.ways} times, as for ten minutes after a raylet was started again"
    return replace(status, warnings=(*status.warnings, told))
