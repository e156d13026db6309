"""The machines as operators see and order them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

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
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.fleet import Node
from cotenant.nodes.liveness import Liveness
from cotenant.scheduling.events import NodeLost

_CLOCK_S = 1.0
"""A clock that is off by more makes times in logs and caches hard to compare."""


class FleetBook:
    """The gateway's `Machines` over those of a fleet: the ones that answered, and those of earlier runs.

    It tells `alerts` of them whenever one is measured, appears or is silent.
    """

    def __init__(self, parts: NodeParts, loop: Loop, mover: FleetMover, alerts: Alerts) -> None:
        self._parts = parts
        self._loop = loop
        self._mover = mover
        self._alerts = alerts
        parts.machines.listeners.append(self._alert)
        parts.cards.listeners.append(lambda _: self._alert())

    @property
    def problem(self) -> str | None:
        """Why no machine can be reached, if so."""
        return self._parts.fleet.launcher.problem

    def nodes(self) -> Sequence[NodeStatus]:
        """Every machine that is known, and the ways that lead to none yet."""
        fleet = self._parts.fleet
        found = [self._status(node) for node in fleet.nodes.values()]
        routes = {route.id: route for route in fleet.launcher.routes}
        missing = {name: NodeStatus(name, NodeState.LOST) for name in self._parts.known - fleet.nodes.keys()}
        for id_, problem in fleet.problems.items():
            route = routes.get(id_)
            if route is None or route.name in fleet.nodes:
                continue
            before = missing.get(route.name) or NodeStatus(route.name, NodeState.LOST)
            missing[route.name] = replace(before, address=route.address, warnings=(problem,))
        return sorted([*found, *missing.values()], key=lambda status: status.name)

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

    def _alert(self) -> None:
        expected = Expected(__version__, self._parts.fleet.settings.rules.lease_s)
        self._alerts.nodes(self.nodes(), expected, self._parts.fleet.launcher.problem)

    def _status(self, node: Node) -> NodeStatus:
        now, hello = self._loop.clock.now(), node.hello
        ledger = self._loop.scheduler.state.ledger
        cards = [r for r in ledger.readings.values() if r.device.node == node.name]
        gpus = [reading for reading in cards if reading.device.kind is not DeviceKind.HOST]
        state = NodeState(node.state.value)
        if state is NodeState.READY and cards and all(r.device.id in ledger.drained for r in cards):
            state = NodeState.DRAINED
        free = [reading.free_bytes for reading in gpus if reading.free_bytes is not None]
        running = self._loop.effects.running.values()
        clock = abs(node.behind_s)
        warnings = [*node.route.warnings, *hello.problems]
        if clock > _CLOCK_S:
            side = "behind" if node.behind_s > 0 else "ahead of"
            warnings.append(f"its clock is {clock:.0f} s {side} ours")
        if node.gate_problem is not None:
            warnings.append(f"its gate stays as it was: {node.gate_problem}")
        if hello.version != __version__:
            warnings.append(f"it runs Cotenant {hello.version}, and the daemon {__version__}")
        return NodeStatus(
            node.name,
            state,
            since_s=now - node.liveness.since,
            silent_s=None if node.state is Liveness.READY else node.liveness.silent_s(now),
            address=node.route.address,
            cards=len(gpus),
            free_bytes=sum(free) if free else None,
            engines=sum(run.placement.node == node.name for run in running),
            lease_left_s=max(0.0, node.lease_left_s - node.liveness.silent_s(now)),
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
