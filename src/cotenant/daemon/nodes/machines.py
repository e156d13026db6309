"""What machines report, posted to the core; the engines that they run already, offered to it."""

import logging
from collections.abc import Callable

from cotenant.daemon.core.loop import Loop
from cotenant.daemon.nodes.card_sharing import NodeSharing
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.daemon.nodes.load_costs import NodeLoadCosts
from cotenant.daemon.nodes.warm_keepers import NodeWarmKeepers
from cotenant.domain.nodes import StaleEpoch
from cotenant.nodes.fleet import Node
from cotenant.nodes.liveness import Liveness
from cotenant.nodes.messages import AgentEvent, EngineState, EngineStatus, FilesSeen, ReadingTaken
from cotenant.scheduling.events import NodeBack, NodeLost, NodeSilent

_LOG = logging.getLogger(__name__)


class Machines:
    """Takes the reports of a NodeFleet. `stop` is called if another daemon commands the machines.

    `warm` is None if no files are to be kept in RAM.

    `listeners` are called when a machine has appeared, become silent or come back.
    """

    def __init__(
        self,
        loop: Loop,
        hosts: NodeHosts,
        cards: NodeCards,
        sharing: NodeSharing,
        load_costs: NodeLoadCosts,
        warm: NodeWarmKeepers | None,
        stop: Callable[[], None],
    ) -> None:
        self._warm = warm
        self._sharing = sharing
        self._load_costs = load_costs
        self._loop = loop
        self._hosts = hosts
        self._cards = cards
        self._stop = stop
        self.listeners: list[Callable[[], None]] = []

    def greeted(self, node: Node) -> None:
        """A machine answers: take what it has, and offer the engines that this daemon did not start."""
        host = self._hosts.of(node.name)
        host.use_gate(node.hello.gate)
        self._hosts.note_logs(node.name, node.hello.logs)
        found = host.reconcile((*node.hello.engines, *node.hello.ended))
        self._loop.effects.miss(node.name, False)
        self._loop.post(NodeBack(self._loop.clock.now(), node.name))
        self._cards.take(node.name, node.hello.reading)
        self._sharing.tell(node.name)
        self._load_costs.greeted(node.name)
        if self._warm is not None:
            self._warm.greeted(host)
        for status in found:
            if status.state is not EngineState.ENDED:
                self._offer(node, status)
        self._changed()

    def happened(self, node: Node, event: AgentEvent) -> None:
        """Take what an agent reports."""
        if isinstance(event, ReadingTaken):
            if node.state is not Liveness.LOST:
                self._cards.take(node.name, event)
        elif isinstance(event, FilesSeen):
            self._load_costs.seen(node.name, event)
        else:
            self._hosts.of(node.name).take(event)

    def gate_changed(self, node: Node) -> None:
        """Have requests enter a machine where it now lets them in."""
        self._hosts.of(node.name).use_gate(node.hello.gate)

    def silent(self, node: Node, state: Liveness) -> None:
        """Place nothing on a machine that does not answer, and forget what ran there once it is lost."""
        now = self._loop.clock.now()
        silent_s = node.liveness.silent_s(now)
        if state is Liveness.SUSPECT:
            self._loop.post(NodeSilent(now, node.name, silent_s))
            self._loop.effects.miss(node.name, True)
        else:
            why = f"{node.name} has not answered for {silent_s:.0f} s"
            # First the core, which leaves its engines alone: they may still answer clients.
            self._loop.post(NodeLost(now, node.name, why))
            self._hosts.of(node.name).lose_all(why)
            self._cards.lost(node.name)
            self._load_costs.lost(node.name)
            if self._warm is not None:
                self._warm.lost(node.name)
        self._changed()

    def agent_ended(self, node: Node, why: str) -> None:
        """Place nothing on the machine until its next agent answers, and count its engines as gone."""
        if node.state is Liveness.LOST:
            return
        now = self._loop.clock.now()
        # First the core: a model whose engine has ended there need not wait for that memory.
        self._loop.post(NodeSilent(now, node.name, node.liveness.silent_s(now), why))
        self._hosts.of(node.name).lose_all(why)
        self._changed()

    def superseded(self, error: StaleEpoch) -> None:
        """End this daemon: two must not command one machine."""
        _LOG.critical("%s; this one ends, and leaves the engines to it", error.message)
        self._stop()

    def _offer(self, node: Node, status: EngineStatus) -> None:
        """Offer an engine for adoption if it runs what its model is configured to be, else end it."""
        host, order = self._hosts.of(node.name), status.order
        entry = self._loop.fleet.entries.get(order.name)
        planned = order.planned or order.placement
        if order.parts or order.lends_gpus:
            _LOG.info("an engine on %s is ended: %s was over several machines", node.name, order.name)
            host.discard(status)
            return
        if entry is None or self._loop.effects.order(entry, planned, order.placement) != order:
            what = "is not served any more" if entry is None else "is configured otherwise now"
            _LOG.info("an engine on %s is ended: %s %s", node.name, order.name, what)
            host.discard(status)
            return
        engine = host.adopt(status)
        self._hosts.note(order.name, node.name)
        ready = status.state is EngineState.READY
        self._loop.offer_engine(status.id, engine, order.name, planned, ready=ready)

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()
