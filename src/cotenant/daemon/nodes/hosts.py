"""Starts each engine on the machine that it was planned on."""

from collections.abc import Callable

from cotenant.domain.nodes import NodeUnreachable
from cotenant.interfaces import Engine, EngineHost, EngineOrder
from cotenant.nodes.engine_host import NodeEngineHost


class NodeHosts:
    """The EngineHost over machines: `make` returns the host of one, by its name.

    What needs no device of a machine, as a server that others run, is started by `local`.
    """

    def __init__(self, local: EngineHost, make: Callable[[str], NodeEngineHost]) -> None:
        self._local = local
        self._make = make
        self.by_node: dict[str, NodeEngineHost] = {}

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises CotenantError before anything runs, or NodeUnreachable."""
        node = order.placement.node
        if node is None:
            return await self._local.start(order)
        if node not in self.by_node:
            raise NodeUnreachable(f"no machine {node!r} has answered yet")
        return await self.by_node[node].start(order)

    def of(self, node: str) -> NodeEngineHost:
        """Return the host of a machine that has answered."""
        if node not in self.by_node:
            self.by_node[node] = self._make(node)
        return self.by_node[node]
