"""The machines of a fleet: found by a launcher, greeted, listened to, and missed when they are silent."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from cotenant import __version__
from cotenant.clock import Clock
from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import AgentGone, BadNodeMessage, NodeUnreachable, StaleEpoch, WrongProtocol
from cotenant.nodes.liveness import Liveness, LivenessRules, NodeLiveness
from cotenant.nodes.messages import AgentEvent, GateSettings, Hello, HelloAnswer, Poll, Release, Renew
from cotenant.nodes.protocol import HELLO, POLL, RELEASE, RENEW, Json
from cotenant.nodes.transport import Transport, ask

_LOG = logging.getLogger(__name__)
_BEAT_S: Final = 1.0
_CHECK_S: Final = 0.25
_POLL_S: Final = 20.0
_ANSWER_S: Final = 10.0
_RETRY_S: Final = 0.25
_RETRY_REFUSED_S: Final = 5.0
_RELEASE_S: Final = 15.0
_QUICK_S: Final = 1.0
_OTHERS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """A way to one machine's agent, as a launcher knows it; a machine may get another one.

    `problem` says why no call arrives, `warnings` what else is wrong with it.
    """

    id: str
    name: str
    address: str
    head: bool = False
    warnings: tuple[str, ...] = ()
    problem: str | None = None


class Launcher(Transport, Protocol):
    """Finds machines with an agent, and carries calls to them; routes are named by their ids.

    `problem` says why there are no routes: nothing can be heard of any machine then.
    `listeners` are called when the routes or the problem have changed.
    """

    routes: Sequence[Route]
    problem: str | None
    listeners: list[Callable[[], None]]

    async def run(self) -> None:
        """Look for machines until cancelled."""


@dataclass(slots=True)
class Node:
    """A machine that has answered since the daemon began. `hello` is its last answer.

    `route` is the way to it now, `stamp` its clock when it last answered, `last_event` the number of the last
    event that was taken (None: some were lost), `link_s` how long its last answer to a heartbeat took, and
    `lease_left_s` what was left of its lease of `lease_s` then. `behind_s` is how far its clock is behind
    ours, and `gate_problem` why its gate is not as the settings say.
    """

    name: str
    hello: HelloAnswer
    route: Route
    liveness: NodeLiveness
    stamp: float
    last_event: int | None = None
    link_s: float | None = None
    lease_left_s: float = 0.0
    lease_s: float = 0.0
    behind_s: float = 0.0
    gate_problem: str | None = None

    @property
    def state(self) -> Liveness:
        """What the daemon thinks of it."""
        return self.liveness.state


class NodeListener(Protocol):
    """Is called by the fleet, in the event loop's thread."""

    def greeted(self, node: Node) -> None:
        """It has answered hello: for the first time, after it was silent, or since its agent began anew."""

    def happened(self, node: Node, event: AgentEvent) -> None:
        """Its agent reports something."""

    def gate_changed(self, node: Node) -> None:
        """It lets requests in elsewhere, or otherwise."""

    def silent(self, node: Node, state: Liveness) -> None:
        """It has become suspect or lost."""

    def agent_ended(self, node: Node, why: str) -> None:
        """Its agent has ended, and all its engines; the machine is suspect until another one answers."""

    def superseded(self, error: StaleEpoch) -> None:
        """Another daemon, which began later, commands the machines: this one must end."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Which fleet it is, and what its agents are told. `epoch` is this daemon's number.

    `certificate` and `key` are files on each machine, for TLS at the agents' gates. `llama_server` is used by
    machines that have it and name none of their own.
    """

    fleet: str
    epoch: int
    rules: LivenessRules
    gate_port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    secrets: Callable[[], frozenset[str]] = frozenset
    llama_server: Path | None = None

    def gate_at(self, address: str) -> GateSettings:
        """Return how a machine of an address lets requests in."""
        return GateSettings(address, self.gate_port, self.certificate, self.key)


@dataclass(slots=True)
class NodeFleet:
    """Keeps in touch with every machine. As a Transport it calls a machine by its name, over its last route.

    `problems` are those of routes that lead to no machine, by the route's id; `twins` are the names of
    machines to which a second one leads, and `refused` those that lead to an agent of another version.
    """

    launcher: Launcher
    settings: FleetSettings
    clock: Clock
    unix_time: Callable[[], float]
    listener: NodeListener
    nodes: dict[str, Node] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    _links: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)
    _greeted: asyncio.Event = field(default_factory=asyncio.Event)

    def configure(self, settings: FleetSettings) -> None:
        """Have other settings from now on; machines are told by their next heartbeat."""
        self.settings = settings
        for node in self.nodes.values():
            node.liveness.rules = settings.rules

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        """Call a machine's agent. Raises what it answered, or NodeUnreachable."""
        found = self.nodes.get(node)
        if found is None:
            raise NodeUnreachable(f"no machine {node!r} has answered yet")
        return await self.launcher.call(found.route.id, method, params, timeout_s)

    async def run(self) -> None:
        """Keep in touch until cancelled."""
        self.launcher.listeners.append(self._routes_changed)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.launcher.run())
                tasks.create_task(self._watch())
        finally:
            self.launcher.listeners.remove(self._routes_changed)
            for link in self._links.values():
                link.cancel()
            await asyncio.gather(*self._links.values(), return_exceptions=True)

    async def wait_for(self, names: Iterable[str], within_s: float) -> None:
        """Return when these machines have answered, or any if there are no names, or the time has passed.

        Those that are there answer within a second of each other: others may be gone, and are not waited for.
        """
        wanted, now = set(names), asyncio.get_running_loop().time
        end = now() + within_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end) as time_left:
                while not (wanted <= self._answered if wanted else self._answered):
                    await self._greeted.wait()
                    self._greeted.clear()
                    time_left.reschedule(min(end, now() + _OTHERS_S))

    async def release(self) -> None:
        """Have all engines end, since the daemon stops properly; return when they have, or time is up."""

        async def end(node: Node) -> None:
            try:
                await ask(self, node.name, RELEASE, Release(self.settings.epoch), _RELEASE_S)
            except CotenantError as error:
                lease_s = self.settings.rules.lease_s
                _LOG.warning(
                    "the engines on %s could not be ended, and end within %g s: %s",
                    node.name,
                    lease_s,
                    error.message,
                )

        await asyncio.gather(*(end(node) for node in self.nodes.values()))

    def forget(self, name: str) -> None:
        """Forget a machine; one that still answers comes back by itself."""
        self.nodes.pop(name, None)

    def _routes_changed(self) -> None:
        blind, at = self.launcher.problem is not None, self.clock.now()
        for node in self.nodes.values():
            node.liveness.set_blind(blind, at)
        routes = {route.id: route for route in self.launcher.routes}
        for node in self.nodes.values():
            node.route = routes.get(node.route.id, node.route)
        for gone in self._links.keys() - routes.keys():
            self._links.pop(gone).cancel()
            self._well(gone)
        for new in routes.keys() - self._links.keys():
            self._links[new] = asyncio.get_running_loop().create_task(self._follow(routes[new]))

    async def _watch(self) -> None:
        """Notice which machines are silent."""
        while True:
            await asyncio.sleep(_CHECK_S)
            for node in list(self.nodes.values()):
                found = node.liveness.check(self.clock.now())
                if found is not None:
                    silent_s = node.liveness.silent_s(self.clock.now())
                    _LOG.warning("%s has not answered for %.1f s: it is %s", node.name, silent_s, found)
                    self.listener.silent(node, found)

    async def _follow(self, route: Route) -> None:
        """Greet the agent at the end of a route, listen to it, and greet it again when that fails."""
        while True:
            pause_s = _RETRY_S
            node = None
            try:
                node = await self._greet(route)
                if node is not None:
                    self._well(route.id)
                    await self._listen(node, route)
            except AgentGone as error:
                self._note(route, error.message)
                if node is not None and node.route.id == route.id:
                    node.last_event = None
                    node.liveness.ended(self.clock.now())
                    self.listener.agent_ended(node, error.message)
            except StaleEpoch as error:
                self.listener.superseded(error)
                return
            except (WrongProtocol, BadNodeMessage) as error:
                self.refused.add(route.id)
                self._note(route, error.message)
                pause_s = _RETRY_REFUSED_S
            except CotenantError as error:
                self._note(route, error.message)
            except Exception:
                _LOG.exception("following %s failed unexpectedly", route.name)
                pause_s = _RETRY_REFUSED_S
            await asyncio.sleep(pause_s)

    def _well(self, route: str) -> None:
        self.problems.pop(route, None)
        self.twins.pop(route, None)
        self.refused.discard(route)

    def _note(self, route: Route, problem: str) -> None:
        if self.problems.get(route.id) != problem:
            self.problems[route.id] = problem
            _LOG.warning("%s: %s", route.name, problem)

    async def _greet(self, route: Route) -> Node | None:
        """Say hello; None if the machine that answers is in touch over another route."""
        settings = self.settings
        hello = await ask(
            self.launcher,
            route.id,
            HELLO,
            Hello(
                settings.fleet,
                settings.epoch,
                settings.rules.lease_s,
                __version__,
                gate=settings.gate_at(route.address),
                secrets=settings.secrets(),
                llama_server=settings.llama_server,
            ),
            _ANSWER_S,
        )
        now = self.clock.now()
        node = self._node_of(hello)
        if node is None:
            liveness = NodeLiveness(settings.rules, now)
            node = Node(self._name_of(hello), hello, route, liveness, hello.stamp)
            self.nodes[node.name] = node
        elif node.route.id != route.id and node.route.id in self._links and not self._may_replace(node, now):
            self.twins[route.id] = node.name
            self._note(
                route,
                f"it is the machine {node.name}, which Ray knows twice: a raylet was started again there",
            )
            return None
        # What is wrong with a way may have become known while its agent was asked.
        node.hello, node.route = hello, {each.id: each for each in self.launcher.routes}.get(route.id, route)
        node.last_event = hello.seq if node.last_event is None else node.last_event
        await self._renew(node, hello.stamp)
        self.listener.greeted(node)
        self._answered.add(node.name)
        self._greeted.set()
        return node

    def _node_of(self, hello: HelloAnswer) -> Node | None:
        machine = hello.identity.machine_id
        return next((n for n in self.nodes.values() if n.hello.identity.machine_id == machine), None)

    def _name_of(self, hello: HelloAnswer) -> str:
        """Return a machine's own name, with a part of its id if another has that name."""
        name = hello.identity.name
        return f"{name}-{hello.identity.machine_id[:6]}" if name in self.nodes else name

    def _may_replace(self, node: Node, now: float) -> bool:
        """Whether the route over which a machine is in touch seems dead."""
        return node.liveness.silent_s(now) >= self.settings.rules.suspect_after_s

    async def _listen(self, node: Node, route: Route) -> None:
        """Keep a machine's lease up and take its events, until it has to be greeted again."""
        tasks = [
            asyncio.get_running_loop().create_task(work)
            for work in (self._beat(node, route), self._take_events(node, route))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _beat(self, node: Node, route: Route) -> None:
        """Renew a machine's lease every second; return once it answers after having been silent."""
        while node.route.id == route.id:
            began = self.clock.now()
            try:
                if await self._renew(node, node.stamp):
                    return
            except AgentGone:
                raise
            except NodeUnreachable as error:
                self._note(route, error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            self.problems.pop(route.id, None)
            await asyncio.sleep(max(0.0, began + _BEAT_S - self.clock.now()))

    async def _renew(self, node: Node, stamp: float) -> bool:
        """Renew a machine's lease; return whether it was silent before."""
        began, settings = self.clock.now(), self.settings
        asked = Renew(settings.epoch, stamp, settings.rules.lease_s, settings.gate_at(node.route.address))
        answer = await ask(self.launcher, node.route.id, RENEW, asked, _ANSWER_S)
        now = self.clock.now()
        node.stamp, node.lease_left_s, node.link_s = answer.stamp, answer.lease_left_s, now - began
        node.lease_s = settings.rules.lease_s
        # How far it is off is known to half of what the answer took.
        if answer.unix_time_s is not None and node.link_s < _QUICK_S:
            node.behind_s = self.unix_time() - node.link_s / 2 - answer.unix_time_s
        if answer.gate_problem != node.gate_problem:
            node.gate_problem = answer.gate_problem
            _LOG.warning("the gate of %s: %s", node.name, answer.gate_problem or "is as it should be again")
        if answer.gate is not None and answer.gate != node.hello.gate:
            node.hello = replace(node.hello, gate=answer.gate)
            self.listener.gate_changed(node)
        return node.liveness.heard(now)

    async def _take_events(self, node: Node, route: Route) -> None:
        """Pass a machine's events on; return once some were lost."""
        while node.route.id == route.id and node.last_event is not None:
            poll = Poll(node.last_event, _POLL_S)
            try:
                found = await ask(self.launcher, route.id, POLL, poll, _POLL_S + _ANSWER_S)
            except AgentGone:
                raise
            except NodeUnreachable:
                await asyncio.sleep(_RETRY_S)
                continue
            for event in found.events:
                self.listener.happened(node, event)
                node.last_event = event.seq
            if found.lost:
                # Its agent began anew, or could not keep them all.
                node.last_event = None
