"""Starts each engine on the machine that it was planned on."""

from collections.abc import Awaitable, Callable, Mapping

from cotenant.domain.nodes import NodeUnreachable
from cotenant.engines.process.log_folder import log_stem
from cotenant.interfaces import Engine, EngineHost, EngineOrder, RemoteLog
from cotenant.nodes.engine_host import NodeEngineHost


class NodeHosts:
    """The EngineHost over machines: `make` returns the host of one, by its name.

    What needs no device of a machine, as a server that others run, is started by `local`. `ensure` returns
    once a machine has the files of a model.
    """

    def __init__(
        self,
        local: EngineHost,
        make: Callable[[str], NodeEngineHost],
        ensure: Callable[[NodeEngineHost, EngineOrder], Awaitable[None]],
    ) -> None:
        self._local = local
        self._ensure = ensure
        self._make = make
        self.by_node: dict[str, NodeEngineHost] = {}
        self._logs: dict[str, tuple[str, RemoteLog] | None] = {}
        self._written: dict[str, tuple[float, str]] = {}

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises CotenantError before anything runs, or NodeUnreachable."""
        node = order.placement.node
        if node is None:
            self._logs[order.name] = None
            return await self._local.start(order)
        if node not in self.by_node:
            raise NodeUnreachable(f"no machine {node!r} has answered yet")
        host = self.by_node[node]
        self.note(order.name, node)
        await self._ensure(host, order)
        return await host.start(order)

    def note_logs(self, node: str, written: Mapping[str, float]) -> None:
        """Note which logs a machine has: engines of earlier daemons may have ended there."""
        for stem, at in written.items():
            self._written[stem] = max((at, node), self._written.get(stem, (at, node)))

    def note(self, name: str, node: str) -> None:
        """Note that the last engine of a model is on this machine."""
        self._logs[name] = (node, self._reader(name, node))

    def _reader(self, name: str, node: str) -> RemoteLog:
        host = self.of(node)

        async def read(offset: int | None, limit_bytes: int) -> tuple[bytes, int, int]:
            part = await host.log(name, offset, limit_bytes)
            return part.data, part.offset, part.size

        return read

    def log_of(self, name: str) -> RemoteLog | None:
        """Return what reads the log of a model's last engine; None if that was on no machine of these."""
        found = self._log(name)
        return None if found is None else found[1]

    def log_node(self, name: str) -> str | None:
        """Return the machine on which that log is."""
        found = self._log(name)
        return None if found is None else found[0]

    def _log(self, name: str) -> tuple[str, RemoteLog] | None:
        if name not in self._logs and (written := self._written.get(log_stem(name))) is not None:
            self.note(name, written[1])
        return self._logs.get(name)

    def of(self, node: str) -> NodeEngineHost:
        """Return the host of a machine that has answered."""
        if node not in self.by_node:
            self.by_node[node] = self._make(node)
        return self.by_node[node]
