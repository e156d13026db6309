"""A world of several machines: they are cut off, die, come back, appear twice, and the daemon restarts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from cotenant.domain.placements import Placement
from cotenant.domain.residencies import LeaseId, ResidencyId
from cotenant.planning.machines import place_on_a_machine
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import (
    AdoptEngine,
    Command,
    DiscardEngine,
    ForgetEngine,
    StartEngine,
)
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.engine import SimulatedEngine
from cotenant.simulation.machine import NO_FAULTS, Faults, Machine
from cotenant.simulation.models import Client, Outcome, SimulatedModel
from cotenant.simulation.world import ContractViolation, World

SUSPECT_S: Final = 3.0
LOST_S: Final = 10.0
LEASE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Stop:
    """An order to stop an engine, on its way to a machine that cannot be reached."""

    engine: SimulatedEngine
    do: Callable[[], None]

    def __call__(self) -> None:
        self.do()


@dataclass(slots=True)
class _Node:
    """A machine as the daemon reaches it. What it wants to tell, and is to do, is `held` while it is cut off.

    `number` counts its cuts. `stranded` are parts of engines over several machines that run on there.
    """

    number: int = 0
    cut: bool = False
    silent: bool = False
    lost: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    stranded: list[ResidencyId] = field(default_factory=list)

    def drop_orders(self) -> None:
        """Do not what a daemon wanted that is gone, or has forgotten the machine."""
        for each in [each for each in self.held if isinstance(each, _Stop)]:
            each.engine.asked_to_end = False
            self.held.remove(each)


class NodesWorld(World):
    """Machines by the `node` of their cards, and the daemon's way to each; what happens there is in World.

    `restarted` makes a scheduler for a daemon that begins anew.
    """

    def __init__(
        self,
        restarted: Callable[[], Scheduler],
        machine: Machine,
        models: Iterable[SimulatedModel],
        rng: Random,
        *,
        faults: Faults = NO_FAULTS,
        tick_s: float | None = None,
        read_every_s: float | None = None,
    ) -> None:
        super().__init__(
            restarted(), machine, models, rng, faults=faults, tick_s=tick_s, read_every_s=read_every_s
        )
        self.adopted = self.discarded = self.forgotten = self.over_machines = 0
        self._restarted = restarted
        self._nodes = {each.node or "": _Node() for each in machine.cards}
        self._specs: Sequence[ModelSpec] = ()
        self._placements: dict[SimulatedEngine, Placement] = {}
        self._strays: dict[SimulatedEngine, None] = {}
        self._offered: dict[str, SimulatedEngine] = {}
        self._offers = self._strandings = 0

    @property
    def names(self) -> list[str]:
        """The machines."""
        return [*self._nodes]

    def begin(self, specs: Sequence[ModelSpec]) -> None:
        """Read the cards and configure the models."""
        self._specs = specs
        super().begin(specs)

    def read(self) -> None:
        """Send readings of the machines that can be reached."""
        for node in self._nodes:
            self._read_node(node)
        invariants.check_kept(self.scheduler.state)

    # What befalls machines.

    def cut(self, name: str, for_s: float) -> None:
        """Cut a machine off for a while: it runs on, and its engines end when their lease is over."""
        node = self._nodes[name]
        if node.cut:
            return
        node.cut, node.number = True, node.number + 1
        number = node.number

        def unless_mended(action: Callable[[], None]) -> Callable[[], None]:
            return lambda: action() if node.cut and node.number == number else None

        self.queue.after(SUSPECT_S, unless_mended(lambda: self._is_silent(name)))
        self.queue.after(LOST_S, unless_mended(lambda: self._is_lost(name)))
        self.queue.after(LEASE_S, unless_mended(lambda: self._lease_is_over(name)))
        self.queue.after(for_s, unless_mended(lambda: self.mend(name)))

    def kill(self, name: str, for_s: float) -> None:
        """Have a machine die, and come back with nothing that ran there."""
        self.cut(name, for_s)
        for engine in self._engines_of_node(name):
            self._ends(engine, "its machine died")
            self.machine.give_back(engine.residency)
        self._end_stranded(name)

    def end_agent(self, name: str) -> None:
        """End a machine's agent, and its engines with it; the daemon knows at once, and a new one begins."""
        node, why = self._nodes[name], "its agent has ended"
        self._end_stranded(name)
        if node.cut or node.silent:
            self._end_all(name, why, 1.0)
            return
        node.silent = True
        self.send(events.NodeSilent(self.queue.now, name, 0.0, why))
        for engine in self._engines_of_node(name):
            self._ends(engine, why)
        number = node.number
        self.queue.after(self._rng.uniform(0.5, 5.0), lambda: self._agent_begins(name, number))

    def _agent_begins(self, name: str, number: int) -> None:
        node = self._nodes[name]
        if node.silent and node.number == number:
            self.greet(name)

    def mend(self, name: str) -> None:
        """Have the daemon reach a machine again."""
        node = self._nodes[name]
        was_lost, missed = node.lost, node.silent or node.lost
        node.cut = node.silent = node.lost = False
        if missed:
            self.send(events.NodeBack(self.queue.now, name))
        self._end_stranded(name)
        held, node.held = node.held, []
        for action in held:
            action()
        if was_lost:
            self.greet(name)

    def is_cut(self, name: str) -> bool:
        """Whether the daemon cannot reach a machine."""
        return self._nodes[name].cut

    def greet(self, name: str) -> None:
        """Have a machine say that it is there; it may say so at any time, and twice."""
        self._nodes[name].silent = False
        self.send(events.NodeBack(self.queue.now, name))
        self._read_node(name)
        self._offer_engines(name)

    def appear_twice(self, name: str) -> None:
        """Have a machine measured under a further name, as a restarted raylet is, and gone again."""
        now, known = self.queue.now, self.scheduler.state.ledger.readings
        readings = [each for each in dict(self.machine.readings(now))[name] if each.device.id in known]
        ghost = tuple(replace(each, device=replace(each.device, node=f"{name}-ghost")) for each in readings)
        self.send(events.DevicesRead(now, ghost, f"{name}-ghost"))
        self.send(events.NodeLost(now, f"{name}-ghost", "it was a ghost"))
        invariants.check_kept(self.scheduler.state)

    def restart_daemon(self) -> None:
        """Kill the daemon, and begin a new one: clients are cut off, engines are not."""
        for client in [client for client in self.clients.values() if client.outcome is None]:
            if client.request.at <= self.queue.now:
                self._end(client, Outcome.BROKEN)
        for engine in self._placements:
            engine.leases.clear()
        for engine in [*self._engines.values()]:
            self._becomes_stray(engine)
        ids = self.scheduler.state.ids
        self.scheduler = self._restarted()
        # As if each daemon had its own numbers: of what the one before began none is known.
        self.scheduler.state.ids = ids
        self._timer += 1
        for name, node in self._nodes.items():
            # It is asked when it can be reached, and what the old daemon wanted is not done.
            node.silent, node.lost = False, node.cut
            node.drop_orders()
            self._read_node(name)
        self.send(events.ModelsChanged(self.queue.now, tuple(self._specs)))
        for name in self._nodes:
            if not self._nodes[name].cut:
                self._offer_engines(name)
        for spec in self._specs:
            if spec.pinned:
                self.send(events.LoadAsked(self.queue.now, spec.name, "loaded at start"))

    def heal(self) -> None:
        """End all faults, and mend what is cut off."""
        super().heal()
        for name, node in self._nodes.items():
            if node.cut:
                self.mend(name)

    # What the daemon notices, and what reaches a machine.

    def _is_silent(self, name: str) -> None:
        self._nodes[name].silent = True
        self.send(events.NodeSilent(self.queue.now, name, SUSPECT_S))

    def _is_lost(self, name: str) -> None:
        node = self._nodes[name]
        node.lost = True
        node.drop_orders()
        over_more = [engine for engine in self._engines_of_node(name) if self._living(engine)]
        for engine in over_more:
            # The daemon counts that part of it as gone; there it runs on.
            self._strandings -= 1
            self.machine.strand(engine.residency, name, ResidencyId(self._strandings))
            node.stranded.append(ResidencyId(self._strandings))
        self.send(events.NodeLost(self.queue.now, name, f"it has not answered for {LOST_S:g} s"))
        # What is left of such engines is on machines that answer.
        held, node.held = node.held, []
        for action in held:
            action()

    def _lease_is_over(self, name: str) -> None:
        self._end_all(name, "its lease is over", 0.1)
        self._end_stranded(name)

    def _end_stranded(self, name: str) -> None:
        stranded, self._nodes[name].stranded = self._nodes[name].stranded, []
        for each in stranded:
            self.machine.give_back(each)

    def _living(self, engine: SimulatedEngine) -> bool:
        """Whether a part of an engine is on a machine that is not lost."""
        return any(not self._nodes[node or ""].lost for node in self._placements[engine].nodes)

    def _read_node(self, name: str) -> None:
        if self._nodes[name].cut or self._nodes[name].silent:
            return
        now = self.queue.now
        self.send(events.DevicesRead(now, dict(self.machine.readings(now))[name], name))

    def _end_all(self, name: str, why: str, within_s: float) -> None:
        for engine in self._engines_of_node(name):
            self.queue.after(self._rng.uniform(0, within_s), lambda e=engine: self._ends(e, why))  # type: ignore[misc]

    def _engines_of_node(self, name: str) -> list[SimulatedEngine]:
        return [e for e in self._placements if name in self._placements[e].nodes and not e.gone]

    def _offer_engines(self, name: str) -> None:
        """Have the daemon decide what becomes of the engines that run on a machine."""
        for engine in [e for e in self._engines_of_node(name) if e in self._strays and not e.asked_to_end]:
            if len(self._placements[engine].nodes) > 1:
                # Its parts are not taken over.
                self._stop(engine, cuts_requests=True)
                continue
            self._offers += 1
            key = f"{engine.model.name} {self._offers}"
            self._offered[key] = engine
            found = (key, engine.model.name, self._placements[engine], not engine.loading)
            self.send(events.EngineFound(self.queue.now, *found))
            if key in self._offered:
                raise ContractViolation(f"{key} was found, and nothing was decided about it")

    def _node_of(self, engine: SimulatedEngine) -> _Node:
        """Return the machine that an engine is reached by: one that is cut off, unless it counts as lost."""
        nodes = [self._nodes[node or ""] for node in self._placements[engine].nodes]
        waits = (node for node in nodes if node.cut and not (node.lost and self._living(engine)))
        return next(waits, next((node for node in nodes if not node.cut), nodes[0]))

    def _execute(self, commands: Sequence[Command]) -> None:
        others: list[Command] = []
        for command in commands:
            # What goes before has to be done first: grants follow the engine that they are on.
            if isinstance(command, AdoptEngine | DiscardEngine | ForgetEngine):
                super()._execute(others)
                others = []
                self._follow(command)
            else:
                others.append(command)
        super()._execute(others)

    def _follow(self, command: AdoptEngine | DiscardEngine | ForgetEngine) -> None:
        match command:
            case AdoptEngine(residency, _, _, key):
                engine = self._offered.pop(key)
                if engine not in self._strays or engine.asked_to_end:
                    raise ContractViolation(f"{key} is adopted, and cannot be")
                self.adopted += 1
                del self._strays[engine]
                self.machine.rename(engine.residency, residency)
                engine.residency = residency
                self._engines[residency] = engine
                for known in self._lists_with(engine):
                    known.append(engine)
            case DiscardEngine(key):
                engine = self._offered.pop(key)
                if engine in self._strays:
                    self.discarded += 1
                    self._stop(engine, cuts_requests=False)
            case ForgetEngine(residency):
                self.forgotten += 1
                engine = self._engines[residency]
                self._becomes_stray(engine)
                clients = [*engine.leases.values()]
                engine.leases.clear()
                for client in clients:
                    self._end(client, Outcome.BROKEN)

    def _becomes_stray(self, engine: SimulatedEngine) -> None:
        """Have an engine be nobody's: it runs on, and what it holds counts as that of others."""
        del self._engines[engine.residency]
        for known in self._lists_with(engine):
            known.remove(engine)
        self._strays[engine] = None
        self.machine.disown(engine.residency)

    # What World does, through the daemon's way to the machine.

    def _start(self, command: StartEngine) -> None:
        if len(command.placement.nodes) > 1 and self._fits_a_machine(command.model):
            raise ContractViolation(f"{command.model} is over several machines, and one could hold it")
        self.over_machines += len(command.placement.nodes) > 1
        super()._start(command)
        self._placements[self._engines[command.residency]] = command.placement

    def _fits_a_machine(self, name: str) -> bool:
        """Whether a machine that answers could hold a model with nothing else on it."""
        ledger = self.scheduler.state.ledger
        there = [each for each in ledger.whole() if each.device.node not in ledger.silent]
        usable = [budget for budget in there if budget.device.id not in ledger.drained]
        return isinstance(place_on_a_machine(usable, self.scheduler.state.models[name].spec.fit), Placement)

    def _serve(self, client: Client, lease: LeaseId, residency: ResidencyId) -> None:
        engine = self._engines.get(residency)
        silent = self.scheduler.state.ledger.silent.keys()
        if engine is not None and not silent.isdisjoint(self._placements[engine].nodes):
            raise ContractViolation(f"{client.request.model} is granted on a machine that does not answer")
        super()._serve(client, lease, residency)

    def _release(self, engine: SimulatedEngine, lease: LeaseId, outcome: Outcome) -> None:
        if self._node_of(engine).cut:
            self._node_of(engine).held.append(lambda: self._release(engine, lease, outcome))
        else:
            super()._release(engine, lease, outcome)

    def _becomes_ready(self, engine: SimulatedEngine) -> None:
        if self._node_of(engine).cut:
            self._node_of(engine).held.append(lambda: self._becomes_ready(engine))
        elif engine in self._strays:
            if not (engine.gone or engine.asked_to_end):
                engine.loading, engine.ready_at = False, self.queue.now
        else:
            super()._becomes_ready(engine)

    def _stop(self, engine: SimulatedEngine | None, *, cuts_requests: bool) -> None:
        nodes = () if engine is None else self._placements[engine].nodes
        cuts_requests = cuts_requests or any(self._nodes[node or ""].lost for node in nodes)
        if engine is not None and self._node_of(engine).cut:
            engine.asked_to_end = True
            stop = _Stop(engine, lambda: super(NodesWorld, self)._stop(engine, cuts_requests=cuts_requests))
            self._node_of(engine).held.append(stop)
        else:
            super()._stop(engine, cuts_requests=cuts_requests)

    def _exits(self, engine: SimulatedEngine, why: str) -> None:
        if engine in self._strays:
            del self._strays[engine]
        elif self._node_of(engine).cut:
            self._node_of(engine).held.append(lambda: self._exits(engine, why))
        else:
            super()._exits(engine, why)
