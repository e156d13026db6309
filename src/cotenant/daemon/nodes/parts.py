"""The parts of a daemon that uses other machines, connected with each other."""

import asyncio
import importlib.util
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.config.configuration import ModelEntry
from cotenant.config.values.nodes import NodesSettings
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.settings import DaemonOptions
from cotenant.daemon.nodes.card_sharing import NodeSharing
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.files import NodeFiles
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.daemon.nodes.load_costs import NodeLoadCosts
from cotenant.daemon.nodes.load_times import LoadTimes
from cotenant.daemon.nodes.machines import Machines
from cotenant.daemon.nodes.warm_keepers import NodeWarmKeepers
from cotenant.domain.errors import BadSetting, StoreError
from cotenant.gateway.http.limits import Timing
from cotenant.interfaces import EngineHost
from cotenant.nodes.broker_process import BrokerTransport
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.fleet import FleetSettings, NodeFleet
from cotenant.nodes.liveness import LivenessRules
from cotenant.planning.budgets import BudgetRules
from cotenant.store.store import Store

_LOG = logging.getLogger(__name__)
_NOTICED_S: Final = 1.0
_WATCH_S: Final = 1.0
_KEY: Final = "nodes"
_TIMES_KEY: Final = "node_load_times"
_FIRST_S: Final = 15.0
"""How long machines have to answer before requests are: an agent that is started takes seconds."""


def check_ray_is_there() -> None:
    """Raise BadSetting if the extra is not installed. Ray itself is not imported."""
    if importlib.util.find_spec("ray") is None:
        raise BadSetting(
            "`nodes:` is set, and Ray, which starts the agents on other machines, is not installed",
            hint="Install it on all machines: pip install 'cotenant[ray]'.",
        )


class NodeParts:
    """The machines of a fleet, their cards and engines. `local` starts what needs no device of any."""

    def __init__(
        self,
        settings: NodesSettings,
        store: Store,
        clock: Clock,
        local: EngineHost,
        secrets: Callable[[], frozenset[str]],
        options: DaemonOptions,
    ) -> None:
        self._settings = settings
        self._store = store.services
        self._clock = clock
        self._secrets = secrets
        program = None if options.llama_server is None else shutil.which(options.llama_server)
        self._llama_server = None if program is None else Path(program).absolute()
        self.watchers: list[Callable[[], None]] = []
        self._known: set[str] = set()
        self._tasks = BackgroundTasks()
        self._superseded = False
        self._epoch = 0
        self._warm: NodeWarmKeepers | None = None
        self._fleet: NodeFleet | None = None
        self._times = LoadTimes()
        self.files = NodeFiles(settings.pull)
        self.timing = Timing(node_notice_s=settings.suspect_after_s + _NOTICED_S)
        self._cas: dict[Path | None, str] = {}
        self.hosts = NodeHosts(local, self._make_host, self.files.ensure)

    def connect(
        self,
        loop: Loop,
        use: Sequence[str],
        rules: BudgetRules,
        active: ActiveConfiguration,
        stop: Callable[[], None],
    ) -> NodeCards:
        """Have the machines report to the core; `stop` is called if another daemon commands them.

        They share their cards as the `active` configuration says.
        """

        def superseded() -> None:
            self._superseded = True
            stop()

        self.cards = NodeCards(use, rules, loop)
        loop.effects.remote_log, loop.effects.log_node = self.hosts.log_of, self.hosts.log_node
        active.listeners.append(lambda: self._follow(active.configuration.nodes))
        loop.silent_s = self._silent_s
        sharing = NodeSharing(self.hosts, self.cards, active)
        active.listeners.append(sharing.tell_all)
        active.rpc_version = self._rpc_version
        costs = NodeLoadCosts(loop, self.hosts, active, self.files, self._times)
        costs.learned = lambda: self._tasks.start(self._remember_times())
        self.files.fetched = costs.fetched
        loop.effects.fetches = self.files.fetches
        active.listeners.append(costs.configured)
        loop.feed.listeners.append(costs.decided)
        limit_bytes = active.configuration.warm_ram_bytes
        if limit_bytes != 0:
            self._warm = NodeWarmKeepers(loop, FleetView(loop), limit_bytes)
            loop.feed.listeners.append(self._warm.decided)
        parts = loop, self.hosts, self.cards, sharing, costs, self._warm
        self.machines = Machines(*parts, superseded)
        return self.cards

    def _silent_s(self, name: str) -> float | None:
        node = None if self._fleet is None else self._fleet.nodes.get(name)
        return None if node is None else node.liveness.silent_s(self._clock.now())

    async def begin(self) -> None:
        """Take the next number of a daemon, and get ready to find the machines.

        It is higher than each before it in this database, and than those of other databases that began
        earlier by their clocks.
        """
        epoch = int(time.time())
        try:
            stored = await self._store.settings()
            kept = stored.get(_KEY, {})
            self._times.remember(stored.get(_TIMES_KEY, {}))
            last, known = kept.get("epoch"), kept.get("known")
            epoch = max(epoch, last + 1 if isinstance(last, int) else 0)
            self._known = set(map(str, known)) if isinstance(known, list) else set()
        except StoreError as error:
            _LOG.warning("this daemon's number is that of its clock: %s", error.message)
        self._epoch = epoch
        await self._remember()
        settings = self._settings
        self._fleet = NodeFleet(
            BrokerTransport(settings.fleet, settings.address, self._clock),
            self._fleet_settings(),
            self._clock,
            time.time,
            self.machines,
        )

    def _follow(self, settings: NodesSettings | None) -> None:
        """Follow the section of a configuration that was read again, but for what needs a start."""
        now = self._settings
        if settings is None or settings == now or self._fleet is None:
            return
        # Where machines are found stays, and whether any are.
        self._settings = replace(settings, launcher=now.launcher, address=now.address, fleet=now.fleet)
        self.files.pull = settings.pull
        self.timing.node_notice_s = settings.suspect_after_s + _NOTICED_S
        self._fleet.configure(self._fleet_settings())
        for host in self.hosts.by_node.values():
            # Its certificates may be vouched for by others now; the gate follows with the next heartbeat.
            host.use_gate(host.gate)

    def _fleet_settings(self) -> FleetSettings:
        settings, tls = self._settings, self._settings.tls
        if tls is not None:
            self._cas[tls.cert] = str(tls.ca)
        return FleetSettings(
            settings.fleet,
            self._epoch,
            LivenessRules(settings.suspect_after_s, settings.lost_after_s, settings.lease_s),
            settings.gate_port,
            None if tls is None else tls.cert,
            None if tls is None else tls.key,
            self._secrets,
            self._llama_server,
        )

    @property
    def fleet(self) -> NodeFleet:
        """The machines."""
        if self._fleet is None:
            raise RuntimeError("the machines are not looked for yet")
        return self._fleet

    async def run(self) -> None:
        """Keep in touch with the machines until cancelled, and call the watchers every second."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(_WATCH_S)
                try:
                    for watcher in self.watchers:
                        watcher()
                except Exception:
                    # What only watches must not end what serves.
                    _LOG.exception("watching the machines failed unexpectedly")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.fleet.run())
            tasks.create_task(watch())

    async def first(self) -> None:
        """Return once the machines of the last run that are there, or any if it had none, have answered."""
        await self.fleet.wait_for(self._known, _FIRST_S)
        if missing := sorted(self._known - self.fleet.nodes.keys()):
            _LOG.warning("not yet heard of: %s", ", ".join(missing))
        self.machines.listeners.append(self._note_known)
        self._note_known()

    async def release(self) -> None:
        """Have what is left on the machines end, unless another daemon commands them."""
        self.files.close()
        if self._warm is not None:
            await self._warm.close()
        if not self._superseded:
            await self.fleet.release()

    @property
    def known(self) -> frozenset[str]:
        """The machines of this run and of earlier ones that are not forgotten."""
        return frozenset(self._known)

    def forget(self, name: str) -> None:
        """Forget a machine that is lost."""
        self.fleet.forget(name)
        self._known.discard(name)
        self._tasks.start(self._remember())

    def give_up(self) -> None:
        """Wait for no machine's engines any more: the daemon ends."""
        for host in self.hosts.by_node.values():
            host.lose_all("the daemon was stopped")

    def _note_known(self) -> None:
        new = self._known | self.fleet.nodes.keys()
        if new != self._known:
            self._known = new
            self._tasks.start(self._remember())

    async def _remember_times(self) -> None:
        try:
            await self._store.set_setting(_TIMES_KEY, self._times.as_json())
        except StoreError as error:
            _LOG.warning("how long loads take on machines cannot be remembered: %s", error.message)

    async def _remember(self) -> None:
        try:
            await self._store.set_setting(_KEY, {"epoch": self._epoch, "known": sorted(self._known)})
        except StoreError as error:
            _LOG.warning("the machines cannot be remembered: %s", error.message)

    def _rpc_version(self, entry: ModelEntry, node: str | None) -> str | None:
        """Return which llama.cpp of a machine would share a model; that of its own program is not known."""
        if entry.options.command:
            return ""
        known = None if self._fleet is None or node is None else self._fleet.nodes.get(node)
        builds = () if known is None else known.hello.builds
        return next((build.version for build in builds if build.rpc_server is not None), None)

    def _make_host(self, node: str) -> NodeEngineHost:
        return NodeEngineHost(node, self.fleet, self._epoch, ca_of=self._cas.get)
