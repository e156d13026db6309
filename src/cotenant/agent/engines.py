"""The engines of an agent: started by orders that may come twice, and reported by events."""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.agent.events import EventLog
from cotenant.agent.forwarder import Forwarder
from cotenant.agent.gate import Gate
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.domain.engines import EngineEnd
from cotenant.domain.errors import CotenantError, EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.interfaces import Engine, EngineHost, EngineOrder
from cotenant.nodes.messages import (
    EngineBecameReady,
    EngineGone,
    EngineLeft,
    EngineState,
    EngineStatus,
    ErrorBody,
)
from cotenant.nodes.protocol import error_body

_REMEMBERED: Final = 1_000
"""How many engines that have ended are known, so that an old order is not carried out twice."""

_REPORTED: Final = 20
"""How many of them a daemon is told of that may not have heard of their ends."""

_LOG = logging.getLogger(__name__)

Environment = Callable[[str, EngineOrder, Callable[[str], None]], Awaitable[Mapping[str, str]]]
"""Returns variables of an engine that may share cards; calls the function if that breaks."""


async def _nothing_shared(*_: object) -> Mapping[str, str]:
    return {}


@dataclass(eq=False)
class _Run:
    """One engine: `timeout_s` is set once somebody waits for it, `ended_because` if nobody asked for that.

    `forwarders` are its ways to the parts of its model on other machines.
    """

    id: str
    order: EngineOrder
    token: str
    timeout_s: asyncio.Future[float]
    state: EngineState = EngineState.STARTING
    engine: Engine | None = None
    begun: asyncio.Task[None] | None = None
    life: asyncio.Task[None] | None = None
    is_given_up: bool = False
    forwarders: tuple[Forwarder, ...] = ()
    ended_because: str | None = None

    def status(self) -> EngineStatus:
        """Return what others see of it."""
        engine = self.engine
        found = EngineStatus(self.id, self.order, self.state, self.token)
        if engine is None:
            return found
        report = engine.report() if self.state is EngineState.READY else None
        return replace(
            found,
            pid=engine.pid,
            endpoint=engine.endpoint,
            build=engine.build,
            report=report,
            log=engine.log_path,
        )


@dataclass(eq=False)
class AgentEngines:
    """Starts engines by `host`, lets requests in to them by `gate`, and reports them in `events`.

    `why_over` says why no engine may run any more, None if they may. `changed` is called when one has started
    or ended, `ended` with its id once nothing of it is left.
    """

    host: EngineHost
    gate: Gate
    events: EventLog
    environment: Environment = _nothing_shared
    why_over: Callable[[], str | None] = lambda: None
    changed: Callable[[], None] = lambda: None
    ended: Callable[[str], None] = lambda _: None
    _runs: dict[str, _Run] = field(default_factory=dict)
    _past: OrderedDict[str, EngineStatus] = field(default_factory=OrderedDict)
    _tasks: BackgroundTasks = field(default_factory=BackgroundTasks)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[EngineStatus]:
        return iter([run.status() for run in self._runs.values()])

    def ended_of_late(self) -> tuple[EngineStatus, ...]:
        """Return the last engines that have ended by themselves."""
        return tuple(status for status in self._past.values() if status.end or status.error)[-_REPORTED:]

    def engine(self, id_: str) -> Engine | None:
        """Return an engine that runs."""
        run = self._runs.get(id_)
        return None if run is None else run.engine

    def pids(self) -> dict[int, str]:
        """Return the id of each engine that is a process of ours, by its process id."""
        runs = [run for run in self._runs.values() if run.engine is not None]
        return {
            run.engine.pid: run.id for run in runs if run.engine is not None and run.engine.pid is not None
        }

    def order(self, id_: str) -> EngineOrder | None:
        """Return what an engine was started for."""
        run = self._runs.get(id_)
        return None if run is None else run.order

    async def start(self, id_: str, order: EngineOrder) -> EngineStatus:
        """Start an engine, unless one of this id was started. Raises what its host raises."""
        past = self._past.get(id_)
        if past is not None:
            return past
        run = self._runs.get(id_)
        if run is None:
            loop = asyncio.get_running_loop()
            run = self._runs[id_] = _Run(id_, order, secrets.token_urlsafe(24), loop.create_future())
            run.begun = loop.create_task(self._begin(run))
        if run.begun is not None:
            # Whoever asked may be gone by the time it has started.
            try:
                await asyncio.shield(run.begun)
            except asyncio.CancelledError:
                if run.begun.cancelled():
                    raise EngineLoadFailed(f"{order.name} was stopped while it was starting") from None
                raise
        return run.status()

    def await_ready(self, id_: str, timeout_s: float) -> None:
        """Give an engine so long to be ready, counted from the first such call."""
        run = self._runs.get(id_)
        if run is not None and not run.timeout_s.done():
            run.timeout_s.set_result(timeout_s)

    def stop(self, id_: str, grace_s: float, because: str | None = None) -> None:
        """End an engine, one that still loads at once; nothing happens if there is none of this id."""
        run = self._runs.get(id_)
        if run is None:
            return
        run.ended_because = run.ended_because or because
        if run.life is None:
            if run.begun is not None:
                run.begun.cancel()
        elif run.engine is not None and run.state is not EngineState.LOADING:
            self._tasks.start(run.engine.stop(grace_s))
        elif not run.is_given_up:
            # Once: a second time would end the removal of what is left. And not before its first step, or it
            # would never run.
            run.is_given_up = True
            asyncio.get_running_loop().call_soon(run.life.cancel)

    async def end_all(self, because: str) -> None:
        """End all engines now, and return once nothing of them is left."""
        for id_ in [*self._runs]:
            self.stop(id_, 0.0, because)
        lives = [run.life for run in self._runs.values() if run.life is not None]
        await asyncio.gather(*lives, return_exceptions=True)

    async def _begin(self, run: _Run) -> None:
        """Start the engine; if that fails, it is as if nobody had asked for it."""
        try:
            shared = await self.environment(run.id, run.order, lambda why: self.stop(run.id, 2.0, why))
            order = replace(run.order, env={**shared, **run.order.env}) if shared else run.order
            run.engine = await self.host.start(await self._with_ways(run, order))
        except BaseException:
            _close(run)
            del self._runs[run.id]
            self.ended(run.id)
            raise
        run.state = EngineState.LOADING
        run.life = asyncio.get_running_loop().create_task(self._live(run, run.engine))
        self.changed()

    async def _with_ways(self, run: _Run, order: EngineOrder) -> EngineOrder:
        """Return an order whose parts on other machines are reached at ports of this one."""
        run.forwarders = tuple(map(Forwarder, order.parts))
        here = [replace(each.part, endpoint=await each.open()) for each in run.forwarders]
        return replace(order, parts=tuple(here))

    async def _live(self, run: _Run, engine: Engine) -> None:
        """Load, serve, report the end, and remove what is left."""
        end: EngineEnd | None = None
        error: ErrorBody | None = None
        name = run.order.name
        try:
            await engine.wait_ready(await run.timeout_s)
            run.state = EngineState.READY
            self.gate.admit(run.token, engine.endpoint)
            self.events.add(EngineBecameReady(run.id, engine.endpoint, engine.report()))
            self.changed()
            end = await engine.wait_exit()
        except asyncio.CancelledError:
            end = EngineEnd(f"{name} was stopped while it was loading")
        except CotenantError as failed:
            error = error_body(failed)
        except Exception as unforeseen:
            _LOG.exception("engine failed unexpectedly: model=%s", name)
            end = EngineEnd(f"{name} failed unexpectedly: {unforeseen}", Cause.UNKNOWN)
        self.gate.expel(run.token)
        run.ended_because = run.ended_because or self.why_over()
        if run.ended_because is not None:
            end, error = EngineEnd(f"{name} was ended: {run.ended_because}", Cause.UNKNOWN), None
        run.state = EngineState.ENDED
        self.events.add(EngineLeft(run.id, end, error))
        try:
            await engine.stop(0)
        finally:
            _close(run)
            past = EngineStatus(run.id, run.order, EngineState.ENDED)
            # The end of one that was stopped on purpose is no news.
            told = None if end is not None and end.cause is None else end
            self._past[run.id] = replace(past, end=told, error=error)
            if len(self._past) > _REMEMBERED:
                self._past.popitem(last=False)
            del self._runs[run.id]
            self.events.add(EngineGone(run.id))
            self.ended(run.id)
            self.changed()


def _close(run: _Run) -> None:
    for forwarder in run.forwarders:
        forwarder.close()
