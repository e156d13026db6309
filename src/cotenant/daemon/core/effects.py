"""Starts and stops engines: each start ends in exactly one EngineExited."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cotenant.analysis.calibration import as_reported
from cotenant.clock import Clock
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.abandoned_slots import AbandonedSlotReaper
from cotenant.daemon.core.fleet import slot_cache
from cotenant.domain.devices import DeviceKind, MpsTerms
from cotenant.domain.engines import EngineEnd, EngineReport
from cotenant.domain.errors import CotenantError, EngineError
from cotenant.domain.exit_causes import Cause
from cotenant.domain.nodes import FileFetch
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.residencies import ResidencyId
from cotenant.hardware.model_cache.load_progress import LoadedBytes
from cotenant.interfaces import Engine, EngineHost, EngineOrder, RemoteLog
from cotenant.planning.advice import after_failed_load
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import EngineExited, EngineReady, Event

_LOG = logging.getLogger(__name__)
_GRACE_S: Final = 2.0
_WAYS: Final = 3
"""How many changes are proposed after a load that lacked memory."""

Post = Callable[[Event], None]
CpuFallback = Callable[[ModelEntry, Placement], Placement | Refusal]


@dataclass(slots=True)
class Running:
    """An engine that was started for a residency; `end` is set once it has ended.

    `post` takes the events about it, and `in_flight` counts its leases. `loaded_bytes` is how much of the
    model was read when last seen. One that is `forgotten` is left alone. `missed` is set while its node is
    silent.
    """

    model: str
    placement: Placement
    end: asyncio.Future[EngineEnd]
    post: Post
    in_flight: Callable[[], int]
    engine: Engine | None = None
    slot_reaper: AbandonedSlotReaper | None = None
    report: EngineReport | None = None
    task: asyncio.Task[None] | None = None
    broken: str | None = None
    cuts_requests: bool = False
    loaded_bytes: LoadedBytes | None = None
    forgotten: bool = False
    missed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ready_engine(self) -> Engine:
        """The engine of a residency that is ready."""
        if self.engine is None:
            raise RuntimeError(f"the engine of {self.model} is not ready")
        return self.engine

    def record_progress(self, seen: LoadedBytes) -> None:
        """Keep the largest count: an engine drops from its memory what it has copied to its devices."""
        before = self.loaded_bytes
        if before is not None and before.read_bytes is not None and seen.read_bytes is not None:
            seen = LoadedBytes(max(before.read_bytes, seen.read_bytes), seen.total_bytes)
        self.loaded_bytes = seen


SharedEnvironment = Callable[
    [ResidencyId, str, MpsTerms, Placement, Callable[[str], None]], Awaitable[Mapping[str, str]]
]
"""Returns the environment variables of an engine that may share its cards. Raises CotenantError.

The function that it gets is called with the reason if the engine later loses what it shares.
"""


async def _nothing_shared(*_: object) -> Mapping[str, str]:
    return {}


@dataclass(slots=True)
class Effects:
    """Starts and stops engines, and posts their events.

    `cpu_fallback` turns a placement on described GPUs into one that this machine can run; `rules` are those
    of budgets. `log_path` returns the log of a model's last engine, `remote_log` what reads it if it is on
    another machine, and `fetches` what machines fetch for a model. `end_listeners` are called once an
    engine has ended, or was never started: once after each call of `environment`.
    """

    host: EngineHost
    clock: Clock
    cpu_fallback: CpuFallback
    load_timeout_s: float
    rules: BudgetRules = field(default_factory=BudgetRules)
    environment: SharedEnvironment = _nothing_shared
    end_listeners: list[Callable[[ResidencyId], None]] = field(default_factory=list)
    running: dict[ResidencyId, Running] = field(default_factory=dict)
    log_path: Callable[[str], Path | None] = lambda _: None
    remote_log: Callable[[str], RemoteLog | None] = lambda _: None
    fetches: Callable[[str], tuple[FileFetch, ...]] = lambda _: ()
    log_node: Callable[[str], str | None] = lambda _: None
    _stopping: BackgroundTasks = field(default_factory=BackgroundTasks)

    def start(
        self,
        residency: ResidencyId,
        entry: ModelEntry,
        placement: Placement,
        post: Post,
        in_flight: Callable[[], int],
        host: EngineHost | None = None,
    ) -> None:
        """Start an engine, by its own `host` if it has one; EngineReady or EngineExited is posted."""
        loop = asyncio.get_running_loop()
        running = Running(entry.name, placement, loop.create_future(), post, in_flight)
        self.running[residency] = running
        running.task = loop.create_task(self._run(residency, entry, running, host or self.host))

    def adopt(
        self,
        residency: ResidencyId,
        entry: ModelEntry,
        placement: Placement,
        post: Post,
        in_flight: Callable[[], int],
        engine: Engine,
        *,
        ready: bool,
    ) -> None:
        """Take over an engine that runs already.

        EngineReady is posted unless it was `ready`, and EngineExited in any case.
        """
        loop = asyncio.get_running_loop()
        running = Running(entry.name, placement, loop.create_future(), post, in_flight, engine)
        if ready:
            running.report = engine.report()
            running.slot_reaper = AbandonedSlotReaper(engine, in_flight)
        self.running[residency] = running
        running.task = loop.create_task(self._run(residency, entry, running, self.host))

    def discard(self, engine: Engine) -> None:
        """End an engine that runs for nobody."""
        self._stopping.start(engine.stop(0))

    def forget(self, residency: ResidencyId, why: str) -> None:
        """Leave an engine alone whose node is lost: no event follows.

        Requests that it answers go on; those whose connection breaks are told `why`.
        """
        running = self.running.pop(residency, None)
        if running is None or running.task is None:
            return
        running.forgotten = True
        for listener in self.end_listeners:
            listener(residency)
        if running.slot_reaper is not None:
            running.slot_reaper.close()
        running.end.set_result(EngineEnd(f"{running.model} has ended: {why}", Cause.NODE_LOST))
        asyncio.get_running_loop().call_soon(running.task.cancel)

    def miss(self, node: str, missed: bool) -> None:
        """Note that a node is silent, or answers: requests that failed there wait for no news of it."""
        for running in self.running.values():
            if node in running.placement.nodes:
                (running.missed.set if missed else running.missed.clear)()

    def stop(self, residency: ResidencyId, *, cuts_requests: bool = False, moved: bool = False) -> None:
        """End an engine; EngineExited is posted.

        One that has `moved` gets no grace, in which another would be put to sleep: it serves nobody.
        """
        running = self.running.get(residency)
        if running is None or running.task is None:
            return
        running.cuts_requests = cuts_requests
        if running.engine is None:
            # Not at once: a task cancelled before its first step never runs, so it would post nothing.
            asyncio.get_running_loop().call_soon(running.task.cancel)
        else:
            self._stopping.start(running.engine.stop(0 if moved else _GRACE_S))

    def _fail(self, residency: ResidencyId, why: str) -> None:
        """End an engine that has lost what it needs; EngineExited is posted with `why`."""
        running = self.running.get(residency)
        if running is not None:
            running.broken = why
            self.stop(residency)

    def log_of(self, residency: ResidencyId | None, name: str) -> Path | None:
        """Return the log of a residency's engine, else that of the last engine of the model."""
        running = None if residency is None else self.running.get(residency)
        own = running.engine.log_path if running is not None and running.engine is not None else None
        return own or self.log_path(name)

    def order(
        self,
        entry: ModelEntry,
        planned: Placement,
        carried_out: Placement,
        shared: Mapping[str, str] = MappingProxyType({}),
    ) -> EngineOrder:
        """Return the order for a model that was `planned` so, and is carried out on this or that."""
        devices = [share.device for share in planned.used_shares]
        return EngineOrder(
            entry.name,
            entry.path,
            entry.shape.kind,
            carried_out,
            projector_path=entry.projector_path,
            companions=entry.companions,
            env={**shared, **entry.env},
            args=entry.args,
            launch=entry.launch,
            options=entry.options,
            planned_gpus=tuple(device for device in devices if device.kind is not DeviceKind.HOST),
            planned=None if carried_out is planned else planned,
            recipe=entry.recipe,
            mps=entry.mps_terms,
            slot_cache=slot_cache(entry, carried_out.recipe),
        )

    def pids(self, node: str | None = None) -> dict[int, ResidencyId]:
        """Return the processes of all engines on a node that are processes of ours.

        Two machines may have processes of one number.
        """
        return {
            running.engine.pid: residency
            for residency, running in self.running.items()
            if running.engine is not None
            and running.engine.pid is not None
            and running.placement.node == node
        }

    async def close(self) -> None:
        """End every engine now."""
        tasks = [running.task for running in self.running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, residency: ResidencyId, entry: ModelEntry, running: Running, host: EngineHost
    ) -> None:
        end: EngineEnd | None = None
        try:
            end = await self._live(residency, entry, running, host)
        except CotenantError as error:
            why = f"{error.message.rstrip('.')}. {error.hint}" if error.hint else error.message
            if isinstance(error, EngineError) and error.lacking is not None:
                numbers = (entry.request, running.placement, error.lacking, self.rules)
                found = await asyncio.to_thread(after_failed_load, *numbers)
                ways = [f"{each.text} ({each.flags})" for each in found if each.flags][:_WAYS]
                why += f" With what it got, one of these would fit: {'; '.join(ways)}." if ways else ""
            end = EngineEnd(why, error.cause if isinstance(error, EngineError) else None)
        except Exception as error:
            _LOG.exception("engine failed unexpectedly: model=%s", entry.name)
            end = EngineEnd(f"{entry.name} failed unexpectedly: {error}")
        finally:
            try:
                if running.engine is not None and not running.forgotten:
                    await asyncio.shield(running.engine.stop(0))
            finally:
                stopped = "was stopped" if running.slot_reaper else "was stopped while it was loading"
                if not running.forgotten:
                    self._report_end(residency, running, end or EngineEnd(f"{entry.name} {stopped}"))

    def _report_end(self, residency: ResidencyId, running: Running, end: EngineEnd) -> None:
        for listener in self.end_listeners:
            listener(residency)
        if running.slot_reaper is not None:
            running.slot_reaper.close()
        del self.running[residency]
        if running.broken:
            end = EngineEnd(f"{running.model} was ended: {running.broken}", Cause.MPS_UNREACHABLE)
        elif running.cuts_requests:
            end = EngineEnd(f"{running.model} was unloaded", cuts_requests=True)
        running.end.set_result(end)
        cause = Cause.UNKNOWN if end.cause is None else end.cause
        running.post(EngineExited(self.clock.now(), residency, end.why, cause))

    async def _live(
        self, residency: ResidencyId, entry: ModelEntry, running: Running, host: EngineHost
    ) -> EngineEnd:
        """Load, serve, and return why it ended."""
        if running.engine is not None:
            return await self._serve(residency, running, running.placement, running.engine)
        carried_out = self.cpu_fallback(entry, running.placement)
        if isinstance(carried_out, Refusal):
            return EngineEnd(f"{entry.name} does not fit in host RAM: {carried_out.reason}")
        fail = partial(self._fail, residency)
        shared = await self.environment(residency, entry.name, entry.mps_terms, running.placement, fail)
        order = self.order(entry, running.placement, carried_out, shared)
        running.engine = await host.start(order)
        return await self._serve(residency, running, carried_out, running.engine)

    async def _serve(
        self, residency: ResidencyId, running: Running, carried_out: Placement, engine: Engine
    ) -> EngineEnd:
        if running.slot_reaper is not None:
            return await engine.wait_exit()
        await engine.wait_ready(self.load_timeout_s)
        running.placement = carried_out
        running.report = engine.report()
        laid_out = None
        if carried_out.by_engine and running.report is not None:
            laid_out = running.placement = as_reported(carried_out, running.report)
        running.slot_reaper = AbandonedSlotReaper(engine, running.in_flight)
        running.post(EngineReady(self.clock.now(), residency, laid_out))
        return await engine.wait_exit()
