"""Wiring: a scheduler, its engines and its gateway, from start to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Final

import uvloop

from cotenant.analysis.calibration import compare
from cotenant.clock import SystemClock
from cotenant.config.configuration import ModelEntry
from cotenant.console.app import Console
from cotenant.daemon.advising.wiring import advisor_of
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.alerting.container_deaths import ContainerWatch
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.inputs import AfterReady, Announcer, DaemonInputs
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.settings import (
    check_address,
    default_database,
    read_api_keys,
    scheduler_settings,
)
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.engines import EngineWiring
from cotenant.daemon.monitors.load_progress import LoadWatcher
from cotenant.daemon.monitors.recorder import CacheWarmer, Recorder, learned
from cotenant.daemon.monitors.watchers import CardWatcher
from cotenant.daemon.plans import Plans
from cotenant.daemon.services import services_of
from cotenant.daemon.sharing.mps import Sharing
from cotenant.daemon.sharing.mps_rules import MpsRules
from cotenant.daemon.systemd_notify import ServiceManager
from cotenant.domain.errors import BadSetting, DoesNotFit
from cotenant.domain.placements import Refusal
from cotenant.domain.records import LoadTimes
from cotenant.domain.vendors import InventorySource
from cotenant.gateway.app import Gateway
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.server import bind, serve
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.xid_events import XidWatch
from cotenant.hardware.model_cache.warm import WarmTier
from cotenant.hub.puller import HubPuller
from cotenant.planning.advice import plan
from cotenant.planning.budgets import budgets
from cotenant.planning.planner import leave_to_engine
from cotenant.scheduling.events import LoadAsked, StopAsked
from cotenant.scheduling.scheduler import Scheduler
from cotenant.services.operator import Services
from cotenant.store.store import Store

_LOG = logging.getLogger(__name__)
_LAST_ENGINES_S: Final = 5.0


def run(job: DaemonInputs, announcer: Announcer, after_ready: AfterReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one hurries. SIGHUP reads the configuration again.

    `after_ready` is called with the address once requests are answered. Raises InsecureBind, PortTaken,
    DoesNotFit, MpsMissing, EngineError.
    """
    server = job.configuration.server
    keys = read_api_keys(list(server.api_keys), server.api_key_file)
    check_address(server.host, server.port, keys, insecure=server.insecure)
    mps = MpsRules.of(job.configuration, job.options.state_dir)
    with bind(server.host, server.port) as sock:
        if job.alone is not None:
            _plan_aloud(job, job.alone, announcer)
        store = Store(job.configuration.database or default_database())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(job, announcer, keys, sock, store, mps, after_ready))


async def _run(
    job: DaemonInputs,
    announcer: Announcer,
    keys: tuple[str, ...],
    sock: socket.socket,
    store: Store,
    mps: MpsRules,
    after_ready: AfterReady | None,
) -> None:
    try:
        known = replace(job, configuration=await learned(store.journal, job.configuration))
        daemon = _Daemon(
            known,
            announcer,
            keys,
            sock,
            store,
            await store.journal.load_times(),
            await store.journal.seen_bytes(),
            mps,
        )
        await daemon.serve(after_ready)
    finally:
        await store.close()


def _plan_aloud(job: DaemonInputs, entry: ModelEntry, announcer: Announcer) -> None:
    rules = job.configuration.devices.rules
    decide = leave_to_engine if job.options.use_fit_params else plan
    result = decide(entry.request, budgets(job.inventory, rules), rules)
    announcer.planned(entry, result)
    if isinstance(result, Refusal):
        raise DoesNotFit(f"{result.model} does not fit: {result.reason}", hint=_first_remedy(result))
    running = place_on_this_machine(entry.request, result, rules)
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
        job: DaemonInputs,
        announcer: Announcer,
        keys: tuple[str, ...],
        sock: socket.socket,
        store: Store,
        load_times: Mapping[str, LoadTimes],
        known_bytes: Mapping[str, int],
        mps: MpsRules,
    ) -> None:
        self._job = job
        self._announcer = announcer
        self._keys = keys
        self._sock = sock
        self._clock = SystemClock()
        self._manager = ServiceManager()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._again = asyncio.Event()
        self._loop = Loop(
            Scheduler(scheduler_settings(job.configuration)),
            self._clock,
            reload=self._reload,
            on_violation=self._stop.set,
        )
        self._sharing = Sharing(
            mps,
            lambda: self._served.configuration.models,
            changed=lambda: self._cards.republish(),
            fail=lambda residency, why: self._loop.effects.fail(residency, why),
            ceilings=not job.options.use_fit_params,
        )
        self._engines = EngineWiring(
            # By port, since two daemons of one user must not write one file.
            job.options.log_dir / str(sock.getsockname()[1]),
            job.options.llama_server,
            job.probe,
            job.inventory,
            self._clock,
        )
        self._loop.attach(self._effects())
        self._served = ActiveConfiguration(
            job.configuration,
            job.reread,
            self._loop,
            self._clock,
            job.options.use_fit_params,
            load_times,
            changed=self._served_changed,
        )
        self._engines.attach(self._loop, self._served, known_bytes)
        self._recorder = Recorder(store.journal, self._loop)
        self._alerts = Alerts(job.configuration.alerts, self._clock)
        self._advisor = advisor_of(job.configuration.advisor, self._loop, self._clock)
        self._services: Services | None = None
        if job.configuration.services is not None:
            self._services = services_of(
                job.configuration.services, store.services, job.probe, self._loop, job.options.state_dir
            )
        self._loop.listeners += [
            self._recorder.decided,
            LoadWatcher(self._loop, self._clock).decided,
            self._alerts.decided,
        ]
        self._cards = CardWatcher(
            job.probe,
            job.configuration.devices.use,
            job.configuration.devices.rules,
            self._loop,
            self._clock,
            self._measured,
            self._sharing.admissions,
            self._alerts.measured,
            self._engines.usage,
        )
        if job.configuration.warm_ram_bytes is not None:
            memory = HostProbe(self._clock).memory
            tier = WarmTier(job.configuration.warm_ram_bytes, self._clock, memory)
            self._loop.listeners.append(CacheWarmer(tier, self._loop).decided)

    async def serve(self, after_ready: AfterReady | None) -> None:
        """Load, serve, drain, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._again.set)
        try:
            self._cards.read(self._job.inventory)
            self._served.announce()
            if self._services is not None:
                await self._services.start()
            if await self._loaded_first():
                await self._serve_until_stopped(self._cards, after_ready)
        finally:
            self._engines.hosts.forbid_sleep()
            await self._loop.stop(0 if self._hurry.is_set() else _LAST_ENGINES_S)
            await self._engines.close()
            await self._sharing.close()
            if self._services is not None:
                await self._services.close()

    def _effects(self) -> Effects:
        options, rules = self._job.options, self._job.configuration.devices.rules
        return Effects(
            self._engines.hosts,
            self._clock,
            self._loop.post,
            cpu_fallback=lambda entry, placement: place_on_this_machine(entry.request, placement, rules),
            in_flight=self._loop.in_flight,
            load_timeout_s=options.load_timeout_s,
            use_fit_params=options.use_fit_params,
            sharing=self._sharing,
        )

    def _served_changed(self) -> None:
        self._cards.republish()
        self._engines.served_changed()

    def _measured(self) -> None:
        self._recorder.measured()
        self._engines.measured()

    def _on_signal(self) -> None:
        self._manager.stopping()
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
        # There is none if it has died since: it is loaded again when it is asked for.
        for running in self._loop.effects.running.values():
            if running.engine is not None:
                rows = compare(running.placement, running.report) if running.report else ()
                self._announcer.loaded(running.engine, self._clock.now() - started, rows)
        return True

    async def _serve_until_stopped(self, cards: CardWatcher, after_ready: AfterReady | None) -> None:
        log_path, examine = self._job.configuration.server.request_log, self._job.examine
        gateway = Gateway(
            self._loop,
            request_log=None if log_path is None else RequestLog(log_path),
            operator=self._loop,
            services=self._services,
            alerts=self._alerts,
            advisor=self._advisor,
            api_keys=self._keys,
            hosts=(*self._job.configuration.server.allowed_hosts, self._job.configuration.server.host),
            console=Console,
            examine=None if examine is None else lambda: examine(self._served.configuration),
            puller=HubPuller(lambda: self._served.configuration.models_dir, arrived=self._reload),
            planner=Plans(
                lambda: self._served.configuration,
                lambda: self._cards.last,
                self._loop,
                self._loop.effects.pids,
                self._clock,
            ),
        )
        _freeze_garbage()
        address = _address(self._sock)
        told = asyncio.Event()

        def on_ready() -> None:
            self._announcer.serving(address, self._served.configuration)
            self._tell_ready(address)
            told.set()

        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(work)
                for work in (
                    cards.run(),
                    self._served.watch(),
                    self._reload_on_hangup(address),
                    self._refuse_when_stopped(),
                    self._manager.keep_alive(),
                    *self._looking_out(),
                )
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

    def _looking_out(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield what watches for trouble."""
        yield self._alerts.run()
        if self._advisor is not None:
            yield self._advisor.run()
        yield self._engines.run()
        if self._job.inventory.source is InventorySource.NVML:
            yield XidWatch(self._alerts.fault).run()
        services = self._job.configuration.services
        if services is not None:
            yield ContainerWatch(self._alerts, services.command).run()

    def _tell_ready(self, address: str) -> None:
        count = len(self._served.configuration.models)
        self._manager.ready(f"Serving {count} model{'' if count == 1 else 's'} at {address}/v1")

    async def _reload_on_hangup(self, address: str) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            self._manager.reloading()
            try:
                changed = await self._served.reload()
                _LOG.info("configuration read again: %s", "; ".join(changed) or "nothing changed")
            except BadSetting as error:
                _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)
            self._tell_ready(address)

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


async def _after(told: asyncio.Event, action: AfterReady, address: str) -> None:
    await told.wait()
    await action(address)


def _freeze_garbage() -> None:
    """Spare the collector what was imported, which lives as long as the daemon.

    To look through it takes tens of milliseconds, in which no request goes on.
    """
    gc.collect()
    gc.freeze()


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
