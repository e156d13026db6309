"""Wiring: a scheduler, its engines and its gateway, from start to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import uvloop

from cotenant.analysis.calibration import Comparison, compare
from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.watch import Change
from cotenant.daemon.effects import Effects
from cotenant.daemon.loop import Loop
from cotenant.daemon.recorder import Recorder, Warmer, learned
from cotenant.daemon.settings import DaemonOptions, check_address, read_api_keys
from cotenant.daemon.stand_in import on_this_machine
from cotenant.daemon.watchers import CardWatcher, Served
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import BadSetting, DoesNotFit
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.records import LoadTimes
from cotenant.engines.llama_cpp import LlamaHost
from cotenant.gateway.app import Gateway
from cotenant.gateway.server import bind, serve
from cotenant.hardware.host import HostProbe
from cotenant.hardware.warm import WarmTier
from cotenant.interfaces import Engine, GpuProbe, Journal
from cotenant.planning.advice import plan
from cotenant.planning.budgets import budgets
from cotenant.planning.planner import leave_to_engine
from cotenant.scheduling.events import LoadAsked, StopAsked
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from cotenant.store.journal import SqlJournal

_LOG = logging.getLogger(__name__)
_LAST_ENGINES_S: Final = 5.0


class Announcer(Protocol):
    """Told how serving goes, in the order of these methods."""

    def planned(self, entry: ModelEntry, result: Placement | Refusal) -> None:
        """Tell the plan of a model that is served by itself, fitting or not."""
        ...

    def loaded(self, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        """Tell planned bytes against those that the engine reports, of a model served by itself."""
        ...

    def serving(self, address: str, configuration: Configuration) -> None:
        """Tell the address: requests are answered from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What to serve and on what.

    `alone` is the one model of `serve MODEL`: it is planned aloud, must load, and is never unloaded. `reread`
    reads the configuration again; None where there is no file to read.
    """

    configuration: Configuration
    options: DaemonOptions
    probe: GpuProbe
    inventory: Inventory
    alone: ModelEntry | None = None
    reread: Callable[[Change], Configuration] | None = None


AfterReady = Callable[[str], Awaitable[None]]


def run(job: Job, announcer: Announcer, after_ready: AfterReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one hurries. SIGHUP reads the configuration again.

    `after_ready` is called with the address once requests are answered. Raises InsecureBind, PortTaken,
    DoesNotFit, EngineError.
    """
    server = job.configuration.server
    keys = read_api_keys(list(server.api_keys), server.api_key_file)
    check_address(server.host, server.port, keys, insecure=server.insecure)
    with bind(server.host, server.port) as sock:
        if job.alone is not None:
            _plan_aloud(job, job.alone, announcer)
        journal = _journal(job.options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(job, announcer, keys, sock, journal, after_ready))


async def _run(
    job: Job,
    announcer: Announcer,
    keys: tuple[str, ...],
    sock: socket.socket,
    journal: SqlJournal,
    after_ready: AfterReady | None,
) -> None:
    try:
        known = replace(job, configuration=await learned(journal, job.configuration))
        daemon = _Daemon(known, announcer, keys, sock, journal, await journal.load_times())
        await daemon.serve(after_ready)
    finally:
        await journal.close()


def _journal(options: DaemonOptions) -> SqlJournal:
    options.journal_path.parent.mkdir(parents=True, exist_ok=True)
    return SqlJournal(options.journal_path)


def _plan_aloud(job: Job, entry: ModelEntry, announcer: Announcer) -> None:
    rules = job.configuration.devices.rules
    decide = leave_to_engine if job.options.use_fit_params else plan
    result = decide(entry.request, budgets(job.inventory, rules), rules)
    announcer.planned(entry, result)
    if isinstance(result, Refusal):
        raise DoesNotFit(f"{result.model} does not fit: {result.reason}", hint=_first_remedy(result))
    running = on_this_machine(entry.request, result, rules)
    if isinstance(running, Refusal):
        raise DoesNotFit(f"{running.model} does not fit in host RAM: {running.reason}")


def _first_remedy(refusal: Refusal) -> str:
    if not refusal.remedies:
        return "See `cotenant gpus` for what holds memory."
    remedy = refusal.remedies[0]
    return f"It would fit with {remedy.text}" + (f": {remedy.flags}" if remedy.flags else ".")


class _Daemon:
    """One run of `serve`, from start to end."""

    def __init__(
        self,
        job: Job,
        announcer: Announcer,
        keys: tuple[str, ...],
        sock: socket.socket,
        journal: Journal,
        load_times: Mapping[str, LoadTimes],
    ) -> None:
        self._job = job
        self._announcer = announcer
        self._keys = keys
        self._sock = sock
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._again = asyncio.Event()
        self._loop = Loop(
            Scheduler(_scheduler_settings(job.configuration)),
            self._clock,
            reload=self._reload,
            on_broken_law=self._stop.set,
        )
        self._loop.attach(self._effects())
        self._served = Served(
            job.configuration, job.reread, self._loop, self._clock, job.options.use_fit_params, load_times
        )
        self._recorder = Recorder(journal, self._loop)
        self._loop.listeners.append(self._recorder.decided)
        if job.configuration.warm_ram_bytes is not None:
            memory = HostProbe(self._clock).memory
            tier = WarmTier(job.configuration.warm_ram_bytes, self._clock, memory)
            self._loop.listeners.append(Warmer(tier, self._loop).decided)

    async def serve(self, after_ready: AfterReady | None) -> None:
        """Load, serve, drain, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._again.set)
        configuration = self._job.configuration
        cards = CardWatcher(
            self._job.probe,
            configuration.devices.use,
            configuration.devices.rules,
            self._loop,
            self._clock,
            self._recorder.measured,
        )
        try:
            cards.read(self._job.inventory)
            self._served.announce()
            if await self._loaded_first():
                await self._serve_until_stopped(cards, after_ready)
        finally:
            await self._loop.stop(0 if self._hurry.is_set() else _LAST_ENGINES_S)

    def _effects(self) -> Effects:
        options, rules = self._job.options, self._job.configuration.devices.rules
        host = LlamaHost(
            # By port, since two daemons of one user must not write one file.
            log_dir=options.log_dir / str(self._sock.getsockname()[1]),
            configured=options.llama_server,
            cuda_version=self._job.inventory.cuda_version,
        )
        return Effects(
            host,
            self._clock,
            self._loop.post,
            stand_in=lambda entry, placement: on_this_machine(entry.request, placement, rules),
            in_flight=self._loop.in_flight,
            load_timeout_s=options.load_timeout_s,
            use_fit_params=options.use_fit_params,
        )

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _loaded_first(self) -> bool:
        """Load the one model of `serve MODEL` before anything is served; False if told to stop meanwhile.

        Other models load while requests are served. Raises EngineLoadFailed or DoesNotFit.
        """
        alone = self._job.alone
        if alone is None:
            for entry in self._job.configuration.models:
                if entry.preload:
                    self._loop.post(LoadAsked(self._clock.now(), entry.name))
            return True
        started = self._clock.now()
        if not await self._unless_stopped(self._loop.load(alone.name)):
            return False
        (running,) = self._loop.effects.running.values()
        if running.engine is not None:
            rows = compare(running.placement, running.report) if running.report else ()
            self._announcer.loaded(running.engine, self._clock.now() - started, rows)
        return True

    async def _serve_until_stopped(self, cards: CardWatcher, after_ready: AfterReady | None) -> None:
        gateway = Gateway(self._loop, operator=self._loop, api_keys=self._keys)
        address = _address(self._sock)
        told = asyncio.Event()

        def on_ready() -> None:
            self._announcer.serving(address, self._served.configuration)
            told.set()

        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(work) for work in (cards.run(), self._served.watch(), self._obey_hup())
            ]
            if after_ready is not None:
                others.append(tasks.create_task(_after(told, after_ready, address)))
            grace_s = self._job.options.grace_s
            serving = tasks.create_task(
                serve(gateway, self._sock, stop=self._stop, grace_s=grace_s, on_ready=on_ready)
            )
            hurried = tasks.create_task(self._hurry.wait())
            await asyncio.wait({serving, hurried}, return_when=asyncio.FIRST_COMPLETED)
            for task in (serving, hurried, *others):
                task.cancel()

    async def _obey_hup(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                changed = await self._served.reload()
                _LOG.info("configuration read again: %s", "; ".join(changed) or "nothing changed")
            except BadSetting as error:
                _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)

    async def _refuse_when_stopped(self) -> None:
        """Admit nothing more once told to stop; what is being answered has its grace."""
        await self._stop.wait()
        self._loop.post(StopAsked(self._clock.now()))

    async def _reload(self) -> tuple[str, ...]:
        return tuple(await self._served.reload())

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Do the work unless told to stop first; whether it was done."""
        working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            for task in (working, waiting):
                task.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)


def _scheduler_settings(configuration: Configuration) -> SchedulerSettings:
    told = configuration.scheduling
    return SchedulerSettings(
        policy=str(told.policy),
        reserve_bytes=configuration.devices.rules.reserve_bytes,
        overdue_s=told.overdue_s,
        min_residency_s=told.min_residency_s,
        drain_share=told.drain_share,
        drain_limit_s=told.drain_limit_s,
        reclaim_bound_s=told.reclaim_bound_s,
        max_queue=told.max_queue,
        max_queue_total=told.max_queue_total,
        max_loaded=told.max_loaded,
        prefetch=told.prefetch,
    )


async def _after(told: asyncio.Event, action: AfterReady, address: str) -> None:
    await told.wait()
    await action(address)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
