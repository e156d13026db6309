"""One run of `serve`: its parts, how they are connected, and its life from start to end."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Collection, Coroutine, Iterator
from dataclasses import replace
from typing import Final

from cotenant.analysis.calibration import compare
from cotenant.clock import SystemClock
from cotenant.concurrency.unless_set import unless_set
from cotenant.console.app import Console
from cotenant.daemon.advice_process import AdviceProcess
from cotenant.daemon.advising.advisor import advisor_of
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.alerting.container_deaths import ContainerWatch
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.effects import Effects
from cotenant.daemon.core.fleet import wanting
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.inputs import AfterReady, DaemonInputs, StartReporter
from cotenant.daemon.core.lessor import FleetLessor
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.mover import FleetMover
from cotenant.daemon.core.operator import FleetOperator
from cotenant.daemon.core.router import FleetRouter
from cotenant.daemon.core.settings import ApiKeys, address_of, scheduler_settings
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.engines import EngineMonitors
from cotenant.daemon.key_book import StoredKeyBook
from cotenant.daemon.monitors.defragmenter import Defragmenter
from cotenant.daemon.monitors.load_progress import LoadWatcher
from cotenant.daemon.monitors.recorder import Recorder
from cotenant.daemon.monitors.slot_keeper import SlotKeeper, open_slot_store
from cotenant.daemon.monitors.warm_keeper import OwnModelCache, WarmKeeper
from cotenant.daemon.monitors.watchers import CardWatcher
from cotenant.daemon.nodes.book import FleetBook
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.parts import NodeParts
from cotenant.daemon.past_runs import with_margin
from cotenant.daemon.plans import Plans
from cotenant.daemon.service_ports import ServicePorts
from cotenant.daemon.systemd_notify import ServiceManager
from cotenant.domain.devices import ComputeMode, DeviceId, Inventory, MpsMode
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UsageError
from cotenant.domain.records import PastRuns
from cotenant.domain.vendors import InventorySource
from cotenant.engines.hosts import EngineHosts, HostInputs
from cotenant.engines.process.log_folder import LogFolder
from cotenant.gateway.app import Gateway
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.server import serve
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.xid_events import XidWatch
from cotenant.hardware.model_cache.warm import WarmTier
from cotenant.hardware.process_memory import ProbeMeter
from cotenant.hub.puller import HubPuller
from cotenant.planning.compute_modes import Admission
from cotenant.scheduling.events import LoadAsked, StopAsked
from cotenant.scheduling.scheduler import Scheduler
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.operator import Services
from cotenant.sharing.mps import MpsRules, Sharing
from cotenant.store.key_file import NAME, KeyFile
from cotenant.store.store import Store

_LOG = logging.getLogger(__name__)
_LAST_ENGINES_S: Final = 5.0


class Daemon:
    """The parts of a running daemon, built from `inputs`.

    `past` is what loads of earlier runs teach.
    """

    def __init__(
        self,
        inputs: DaemonInputs,
        reporter: StartReporter,
        keys: ApiKeys,
        sock: socket.socket,
        store: Store,
        mps: MpsRules,
        past: PastRuns,
    ) -> None:
        configuration, options, clock = inputs.configuration, inputs.options, SystemClock()
        self._inputs = inputs
        self._reporter = reporter
        self._sock = sock
        self._clock = clock
        self._systemd = ServiceManager()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hangup = asyncio.Event()

        # Each part gets those above it. If one reports to a part below it, that part adds a listener.
        readings, exclusive = inputs.inventory.readings.values(), ComputeMode.EXCLUSIVE_PROCESS
        # By port, since two daemons of one user must not write one file.
        logs = LogFolder(options.log_dir / str(sock.getsockname()[1]))
        kept, ram = (configuration.warm_kv_bytes, configuration.warm_kv_dir), HostProbe(clock).memory()
        self._slots = open_slot_store(*kept, ram.total_bytes)
        self._hosts = EngineHosts(
            HostInputs(
                logs,
                ProbeMeter(inputs.probe, clock),
                exclusive=frozenset(r.device_id for r in readings if r.compute_mode is exclusive),
                llama_server=options.llama_server,
                cuda_version=inputs.inventory.cuda_version,
                secrets=self._secrets,
                slots=self._slots,
            )
        )
        self._warned: tuple[str, ...] = ()
        self._nodes: NodeParts | None = None
        if configuration.nodes is not None:
            # What shares a card of another machine is its agent's business.
            mps = replace(mps, mode=MpsMode.OFF, found=())
            self._nodes = NodeParts(configuration.nodes, store, clock, self._hosts, self._secrets, options)
        self._sharing = Sharing(mps)
        rules = configuration.devices.rules
        effects = Effects(
            self._hosts if self._nodes is None else self._nodes.hosts,
            clock,
            lambda entry, placement: place_on_this_machine(
                entry.request, placement, rules, ram=self._cards.host_of(placement.node)
            ),
            options.load_timeout_s,
            rules,
            self._sharing.environment,
            [self._sharing.ended],
            log_path=logs.latest,
        )
        scheduler = Scheduler(scheduler_settings(configuration))
        self._loop = loop = Loop(scheduler, clock, effects, on_violation=self._stop.set)
        self._active = active = ActiveConfiguration(
            configuration,
            inputs.reread,
            loop,
            clock,
            options.use_fit_params,
            past,
            {model: with_margin(count) for model, count in past.seen_bytes.items()},
            keys=keys,
        )
        self._key_book = StoredKeyBook(active, KeyFile(options.state_dir / NAME), store.journal)
        self._router = FleetRouter(loop, active.remedies)
        self._operator = FleetOperator(loop, active.reload)
        self._lessor = FleetLessor(loop)
        self._mover = FleetMover(loop, store, lambda: active.configuration.devices.drain)

        view = FleetView(loop)
        self._engines = EngineMonitors(self._hosts, loop, view, active, past.seen_bytes)
        self._advisor = advisor_of(configuration.advisor, self._router, self._operator, loop)
        self._alerts = Alerts(configuration.alerts, clock)
        recorder = Recorder(store.journal, view)
        loop.feed.listeners += [recorder.decided, LoadWatcher(view, clock).decided, self._alerts.decided]
        self._defragmenter = Defragmenter(loop, view, self._operator)
        loop.feed.listeners.append(self._defragmenter.decided)
        self._warm: WarmKeeper | None = None
        if configuration.warm_ram_bytes != 0 and self._nodes is None:
            tier = WarmTier(configuration.warm_ram_bytes, clock, HostProbe(clock).memory)
            self._warm = WarmKeeper(OwnModelCache(tier), loop, view)
            loop.feed.listeners.append(self._warm.decided)

        self._cards: CardWatcher | NodeCards
        use = configuration.devices.use
        if self._nodes is not None:
            self._cards = self._nodes.connect(loop, use, rules, active, self._stop.set)
        else:
            self._cards = CardWatcher(
                inputs.probe,
                use,
                rules,
                loop,
                view,
                clock,
                admissions=self._admissions,
                usage=self._engines.usage,
            )
        self._cards.listeners += [self._alerts.measured, recorder.measured, self._engines.footprints.measured]
        self._cards.listeners.append(lambda _: self._mover.republish())
        if self._slots is not None:
            keeper = SlotKeeper(self._slots, view, loop, in_ram=configuration.warm_kv_dir is None)
            self._cards.listeners.append(keeper.measured)
        own = self._nodes
        self._book = FleetBook(own, loop, self._mover, self._alerts) if own is not None else None
        self._sharing.listeners.append(self._cards.republish)
        active.listeners += [self._mover.republish, self._cards.republish]
        self._adviser = AdviceProcess(active.planned, lambda: self._cards.last, past, options.use_fit_params)
        self._services: Services | None = None
        if configuration.services is not None:
            self._services = Services(
                configuration.services,
                store.services,
                ComposeOrchestrator(configuration.services, options.state_dir / "services"),
                inputs.probe.inventory,
                lambda: {DeviceId(d.uuid): d.claimed_bytes for d in self._operator.devices()},
            )

    async def serve(self, after_ready: AfterReady | None) -> None:
        """Load, serve, drain, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        machines: asyncio.Task[None] | None = None
        try:
            await self._mover.restore()
            self._cards.read(self._inputs.inventory)
            self._active.publish()
            if self._nodes is not None:
                await self._nodes.begin()
                machines = loop.create_task(self._nodes.run())
                await unless_set(self._stop, self._nodes.first())
            await self._engines.ask_once()
            if self._services is not None:
                await self._services.start()
            if await self._load_first():
                await self._serve_until_stopped(after_ready)
        finally:
            self._hosts.forbid_sleep()
            if self._slots is not None:
                self._slots.close()
            if self._nodes is not None:
                loop.call_later(2 * _LAST_ENGINES_S, self._nodes.give_up)
            await self._loop.stop(0 if self._hurry.is_set() else _LAST_ENGINES_S)
            await self._hosts.end_sleeping()
            if self._nodes is not None and machines is not None:
                await self._nodes.release()
                machines.cancel()
                await asyncio.wait({machines})
            await self._adviser.close()
            await self._sharing.close()
            if self._services is not None:
                await self._services.close()

    def _admissions(self, inventory: Inventory, ours: Collection[int]) -> dict[DeviceId, Admission]:
        of_models = wanting(self._active.configuration.models)
        found = self._sharing.admissions(inventory, ours, of_models)
        warnings = self._sharing.warnings(inventory, ours, of_models)
        for text in warnings:
            if text not in self._warned:
                _LOG.warning("%s", text)
        self._warned = warnings
        return found

    def _secrets(self) -> frozenset[str]:
        """Return what no engine's environment may hold."""
        addresses = (entry.options.address for entry in self._active.models)
        return frozenset(each.key for each in addresses if each is not None and each.key is not None)

    def _on_signal(self) -> None:
        self._systemd.stopping()
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _load_first(self) -> bool:
        """Load the one model of `serve MODEL` before anything is served; False if asked to stop meanwhile.

        Other models load while requests are served. Raises EngineLoadFailed or DoesNotFit.
        """
        alone = self._inputs.alone
        if alone is None:
            for entry in self._inputs.configuration.models:
                if entry.preload:
                    self._loop.post(LoadAsked(self._clock.now(), entry.name, "loaded at start"))
            return True
        started = self._clock.now()
        # A load that fails is tried again once the cards show its memory free: they are read meanwhile.
        reading = asyncio.create_task(self._cards.run())
        try:
            if not await unless_set(self._stop, self._operator.load(alone.name)):
                return False
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        # If the engine has died since, the model is loaded again at its next request.
        for running in self._loop.effects.running.values():
            if running.engine is not None:
                rows = compare(running.placement, running.report) if running.report else ()
                self._reporter.loaded(running.engine, self._clock.now() - started, rows)
        return True

    async def _serve_until_stopped(self, after_ready: AfterReady | None) -> None:
        gateway = self._gateway()
        ports = ServicePorts(self._router, lambda: self._active.models)
        await ports.open()
        self._active.listeners += [
            lambda: gateway.set_api_keys(self._active.keys.current),
            ports.follow,
        ]
        # Imported modules live as long as the daemon: scanning them takes tens of milliseconds, during which
        # no request proceeds.
        gc.collect()
        gc.freeze()
        address = address_of(self._sock)

        def on_ready() -> None:
            self._reporter.serving(address, self._active.configuration)
            self._report_ready(address)
            if after_ready is not None:
                others.append(tasks.create_task(after_ready(address)))

        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(work)
                for work in (
                    self._cards.run(),
                    self._active.watch(),
                    self._reload_on_hangup(address),
                    self._refuse_when_stopped(),
                    self._systemd.keep_alive(),
                    *self._watchers(),
                )
            ]
            grace_s = self._inputs.options.grace_s
            server = serve(gateway, self._sock, stop=self._stop, grace_s=grace_s, on_ready=on_ready)
            serving = tasks.create_task(ports.beside(server, self._stop, grace_s))
            hurried = tasks.create_task(self._hurry.wait())
            await asyncio.wait({serving, hurried}, return_when=asyncio.FIRST_COMPLETED)
            for task in (serving, hurried, *others):
                task.cancel()

    def _gateway(self) -> Gateway:
        server, active, examine = self._inputs.configuration.server, self._active, self._inputs.examine
        return Gateway(
            self._router,
            self._operator,
            mover=self._mover,
            lessor=self._lessor,
            timing=None if self._nodes is None else self._nodes.timing,
            nodes=self._book,
            request_log=None if server.request_log is None else RequestLog(server.request_log),
            services=self._services,
            alerts=self._alerts,
            advisor=self._advisor,
            adviser=self._adviser,
            api_keys=active.keys.current,
            keys=self._key_book,
            hosts=(*server.allowed_hosts, Endpoint(server.host, server.port).authority),
            media_hosts=server.media_hosts,
            cors_origins=server.cors_origins,
            wait_progress=server.wait_progress,
            upload_folder=self._inputs.options.state_dir,
            console=Console,
            examine=None if examine is None else lambda: examine(active.configuration),
            puller=HubPuller(
                lambda: active.configuration.models_dir,
                allowed=lambda: active.configuration.server.pulls,
                arrived=active.reload,
            ),
            planner=Plans(
                active.planned,
                lambda: self._cards.last,
                self._operator,
                self._loop.effects.pids,
                self._clock,
                self._inputs.options.use_fit_params,
            ),
        )

    def _watchers(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield the optional monitors."""
        yield self._alerts.run()
        if self._advisor is not None:
            yield self._advisor.run()
        yield self._engines.run()
        yield self._defragmenter.run()
        if self._warm is not None:
            yield self._warm.run()
        if self._inputs.inventory.source is InventorySource.NVML:
            yield XidWatch(self._alerts.fault).run()
        services = self._inputs.configuration.services
        if services is not None:
            yield ContainerWatch(self._alerts, services.command).run()

    def _report_ready(self, address: str) -> None:
        count = len(self._active.configuration.models)
        self._systemd.ready(f"Serving {count} model{'' if count == 1 else 's'} at {address}/v1")

    async def _reload_on_hangup(self, address: str) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._systemd.reloading()
            try:
                changed = await self._active.reload()
                _LOG.info("configuration read again: %s", "; ".join(changed) or "nothing changed")
            except UsageError as error:
                _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)
            self._report_ready(address)

    async def _refuse_when_stopped(self) -> None:
        """Admit nothing more once asked to stop; requests in flight have the grace period."""
        await self._stop.wait()
        self._loop.post(StopAsked(self._clock.now()))
