"""An engine on another machine, as `interfaces.Engine`."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport
from cotenant.domain.errors import CotenantError, EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import NodeError, NodeUnreachable
from cotenant.interfaces import EngineOrder
from cotenant.nodes.messages import (
    AwaitReady,
    EngineBecameReady,
    EngineGone,
    EngineLeft,
    EngineState,
    EngineStatus,
    LoadProgress,
    OfEngine,
    Stop,
)
from cotenant.nodes.protocol import AWAIT_READY, BUSY_SLOTS, LOAD_PROGRESS, STOP, Method, error_from

_AGAIN_S: Final = 0.5

P = TypeVar("P")
R = TypeVar("R")


class Call(Protocol):
    """Calls a method of the node's agent."""

    async def __call__(self, method: Method[P, R], params: P) -> R:
        """Return its result. Raises what the agent answers, or NodeUnreachable."""
        ...


Way = Callable[[Endpoint, str], Endpoint]
"""Returns how to reach an engine that listens at an endpoint of its own machine, by its token."""


class NodeEngine:
    """One engine that the agent of `node` runs, known there by `id`.

    It has no process id and no log here: those of two machines would be taken for each other's. `node_pid` is
    its process there.
    """

    pid = None
    log_path = None

    def __init__(self, node: str, id_: str, epoch: int, order: EngineOrder, call: Call, way: Way) -> None:
        self.node = node
        self.id = id_
        self.order = order
        self.node_pid: int | None = None
        self.problem: str | None = None
        self.state = EngineState.STARTING
        self._epoch = epoch
        self._call = call
        self._way = way
        self._token = ""
        self._build: EngineBuild | None = None
        self._report: EngineReport | None = None
        self._endpoint: Endpoint | None = None
        self._listens: Endpoint | None = None
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._end: asyncio.Future[EngineEnd] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def endpoint(self) -> Endpoint:
        """The gate of its machine, with its token."""
        if self._endpoint is None:
            raise RuntimeError(f"the engine of {self.order.name} has not started")
        return self._endpoint

    @property
    def build(self) -> EngineBuild:
        """The program that is running."""
        if self._build is None:
            raise RuntimeError(f"the engine of {self.order.name} has not started")
        return self._build

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left, as far as its machine says."""
        return self._gone.done()

    @property
    def begun(self) -> bool:
        """Whether the agent has answered that it started."""
        return self._build is not None

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers. Raises EngineLoadFailed or EngineLoadTimeout once its process is gone."""
        while not (self._ready.done() or self._end.done()):
            try:
                await self._call(AWAIT_READY, AwaitReady(self._epoch, self.id, timeout_s))
            except NodeUnreachable:
                await _first(self._ready, self._end, within_s=_AGAIN_S)
                continue
            break
        await _first(self._ready, self._end)
        if self._ready.done():
            self._ready.result()
            return
        end = self._end.result()
        raise EngineLoadFailed(end.why, cause=end.cause)

    async def wait_exit(self) -> EngineEnd:
        """Wait until the process is gone, and return how it ended and why."""
        return await asyncio.shield(self._end)

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown, as while its machine does not answer."""
        try:
            return (await self._call(BUSY_SLOTS, OfEngine(self.id))).busy
        except NodeError:
            return None

    async def load_progress(self) -> LoadProgress:
        """Return how much of its files it has read."""
        found = await self._call(LOAD_PROGRESS, OfEngine(self.id))
        self.problem = found.problem
        return found

    def report(self) -> EngineReport | None:
        """Return the bytes that the engine says it took; None if it did not say."""
        return self._report

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop, kill it after `grace_s` seconds, and return when its machine says it is gone.

        An order that does not arrive is given again, until the machine counts as lost.
        """
        while not self.gone:
            try:
                await self._call(STOP, Stop(self._epoch, self.id, grace_s))
                await asyncio.shield(self._gone)
            except NodeUnreachable:
                await _first(self._gone, within_s=_AGAIN_S)
            except NodeError as error:
                # Another daemon commands the machine.
                self.lose(error.message)

    # Called by the host.

    def started(self, status: EngineStatus) -> None:
        """Take what the agent says of it."""
        if status.endpoint is not None and status.build is not None:
            self._build, self.node_pid, self._token = status.build, status.pid, status.token
            self._reach(status.endpoint)
        if status.state is EngineState.READY and status.endpoint is not None:
            self.take(EngineBecameReady(self.id, status.endpoint, status.report))
        elif status.state is EngineState.ENDED:
            # Its events may have been lost, and with them the reason.
            if status.end is not None or status.error is not None:
                self._leave(status.end, None if status.error is None else error_from(status.error))
            self.lose(f"{self.order.name} has ended")
        elif self.state is EngineState.STARTING:
            self.state = status.state

    def take(self, event: EngineBecameReady | EngineLeft | EngineGone) -> None:
        """Take an event about it."""
        if isinstance(event, EngineBecameReady):
            self._reach(event.endpoint)
            self._report = event.report
            self.state = EngineState.READY
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(event, EngineLeft):
            self._leave(event.end, None if event.error is None else error_from(event.error))
        else:
            self.lose(f"{self.order.name} is gone")

    def rewire(self) -> None:
        """Have new requests come by another way: the gate of its machine has changed."""
        if self._listens is not None:
            self._reach(self._listens)

    def _reach(self, listens: Endpoint) -> None:
        self._listens, self._endpoint = listens, self._way(listens, self._token)

    def lose(self, why: str) -> None:
        """Count it as gone: its machine is lost, or knows nothing of it."""
        self._leave(EngineEnd(why, Cause.UNKNOWN), None)
        if not self.gone:
            self._gone.set_result(None)

    def _leave(self, end: EngineEnd | None, error: CotenantError | None) -> None:
        self.state = EngineState.ENDED
        if error is not None and not self._ready.done():
            self._ready.set_exception(error)
            # Whoever stops waiting for it has had its reason.
            self._ready.exception()
        if not self._end.done():
            self._end.set_result(end or EngineEnd(str(error), Cause.UNKNOWN))


async def _first(*futures: "asyncio.Future[Any]", within_s: float | None = None) -> None:
    await asyncio.wait({*futures}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
