"""Starts each engine on the machine that it was planned on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from cotenant.domain.engines import RemotePart
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.nodes import NodeUnreachable
from cotenant.engines.process.log_folder import log_stem
from cotenant.interfaces import Engine, EngineHost, EngineOrder, RemoteLog
from cotenant.nodes.engine import NodeEngine
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.spanning import SpanningEngine

_LENT_WITHIN_S: Final = 60.0


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
        return await (self._start_over(host, order) if len(order.placement.nodes) > 1 else host.start(order))

    async def _start_over(self, host: NodeEngineHost, order: EngineOrder) -> SpanningEngine:
        """Start a model over several machines: first those that lend it GPUs, then the one that runs it."""
        lent: list[NodeEngine] = []
        try:
            parts = []
            for node in order.placement.nodes[1:]:
                if node is None or node not in self.by_node:
                    raise NodeUnreachable(f"no machine {node!r} has answered yet")
                lends = await self.by_node[node].start(_lending(order, node))
                lent.append(lends)
                await lends.wait_ready(_LENT_WITHIN_S)
                authorities = await asyncio.to_thread(_authorities, lends.endpoint.ca)
                parts.append(RemotePart(node, lends.build.version, lends.endpoint, authorities))
            main = await host.start(replace(order, parts=tuple(parts), slot_cache=None))
        except BaseException:
            await asyncio.gather(*(each.stop(0) for each in lent), return_exceptions=True)
            raise
        return SpanningEngine(main, lent)

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


def _lending(order: EngineOrder, node: str) -> EngineOrder:
    """Return the order to lend the GPUs of a machine to the engine of another one; its log is its own."""
    return EngineOrder(
        f"{order.name}-part",
        None,
        order.kind,
        order.placement.on(node),
        env=order.env,
        options=order.options,
        planned_gpus=tuple(gpu for gpu in order.planned_gpus if gpu.node == node),
        mps=order.mps,
        lends_gpus=True,
    )


def _authorities(file: str | None) -> str:
    """Return the certificates in a file. Raises EngineLoadFailed."""
    try:
        return "" if file is None else Path(file).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineLoadFailed(f"the certificates {file} cannot be read: {error}") from error
