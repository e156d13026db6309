"""Monitors Ollama daemons: serves their models, and counts the memory that they hold."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Final

from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.fleet import may_use
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.monitors.attribution import EngineUsage
from cotenant.daemon.monitors.ollama_models import OllamaDaemon, address_of, entries_of, tag_of
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engines import Endpoint
from cotenant.domain.records import ModelOnEngine
from cotenant.domain.residencies import ResidencyId, ResidencyState
from cotenant.engines.ollama.client import (
    LATEST,
    OllamaClient,
)
from cotenant.scheduling.residency import Residency

_LOG = logging.getLogger(__name__)
_POLL_EVERY_S: Final = 1.0
_MARGIN: Final = 1.02
_EMBEDDERS: Final = ("bert", "nomic")


class OllamaDaemons:
    """Asks every configured Ollama daemon each second.

    Ollama chooses a model's GPUs itself and does not report them: on a machine with several, what it holds is
    counted where it was planned, and models of other clients on the first GPU that it may use.
    """

    def __init__(
        self, view: FleetView, served: ActiveConfiguration, *, poll_every_s: float = _POLL_EVERY_S
    ) -> None:
        self._view = view
        self._served = served
        self._poll_every_s = poll_every_s
        self._daemons: dict[Endpoint, OllamaDaemon] = {}
        # Since the daemons were last asked: a model unloaded meanwhile is still in their answer.
        self._recently_ours: set[tuple[Endpoint, str]] = set()
        # Models that were never seen loaded are estimated again: GPUs or models may have changed meanwhile.
        self._estimates: set[str] = set()

    async def run(self) -> None:
        """Poll the daemons until cancelled."""
        while True:
            await self.poll()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_every_s):
                    await self._view.memory_changed()

    async def poll(self) -> None:
        """Ask every daemon once, serve its models, and count their memory."""
        configuration = self._served.configuration
        wanted = [address_of(entry) for entry in configuration.models]
        wanted.append(configuration.ollama.address if configuration.ollama else None)
        self._daemons = {
            a: self._daemons.get(a) or OllamaDaemon(OllamaClient(a)) for a in wanted if a is not None
        }
        before = {address: daemon.loaded for address, daemon in self._daemons.items()}
        self._recently_ours = set()
        self.usage()
        await asyncio.gather(*(daemon.ask() for daemon in self._daemons.values()))
        settings = configuration.ollama
        if settings is not None and (daemon := self._daemons.get(settings.address)) is not None:
            self._served.set_discovered(entries_of(configuration, daemon))
        self._learn()
        if before != {address: daemon.loaded for address, daemon in self._daemons.items()}:
            self._served.notify()

    def usage(self) -> EngineUsage:
        """Return the memory that the daemons hold, by residency."""
        held: dict[ResidencyId, Mapping[DeviceId, int]] = {}
        ours: set[tuple[Endpoint, str]] = set()
        for residency, running in self._view.loaded():
            entry = self._view.entry(residency.model)
            address = None if entry is None else address_of(entry)
            if entry is None or address is None:
                continue
            ours.add((address, tag_of(entry).removesuffix(LATEST)))
            held[residency.id] = _held(residency, running)
        self._recently_ours |= ours
        return EngineUsage(ollama=held, ollama_foreign_bytes=self._foreign())

    def _learn(self) -> None:
        """Plan each model by what it last held, else by an estimate."""
        known: dict[ModelOnEngine, int] = {}
        for entry in self._served.models:
            address = address_of(entry)
            daemon = None if address is None else self._daemons.get(address)
            if address is None or daemon is None:
                continue
            count, seen = daemon.bytes_of(tag_of(entry), self._gpus_of(address))
            is_new = entry.on_engine not in self._served.learned_bytes or entry.name in self._estimates
            if count is not None and (seen or is_new):
                (self._estimates.discard if seen else self._estimates.add)(entry.name)
                known[entry.on_engine] = count
        self._served.learn(known)

    def _foreign(self) -> Mapping[DeviceId, int]:
        foreign: dict[DeviceId, int] = {}
        for address, daemon in self._daemons.items():
            ours = [tag for where, tag in self._recently_ours if where == address]
            theirs = [e for e in daemon.loaded if not any(daemon.are_one(e.tag, tag) for tag in ours)]
            device = next(self._gpus_of(address), None)
            if theirs and device is not None:
                foreign[device.id] = foreign.get(device.id, 0) + sum(each.gpu_bytes for each in theirs)
        return foreign

    def _gpus_of(self, address: Endpoint) -> Iterator[Device]:
        """Yield the GPUs that models of a daemon may use."""
        entries = [entry for entry in self._served.models if address_of(entry) == address]
        for device in self._view.devices():
            if device.kind is DeviceKind.HOST:
                continue
            if not entries or any(may_use(entry.gpus, device) for entry in entries):
                yield device


def _held(residency: Residency, running: Running) -> Mapping[DeviceId, int]:
    """Return what a daemon holds for a residency; during a load it may be all of the claim."""
    report = running.engine.report() if running.engine is not None else None
    if residency.state is ResidencyState.LOADING or report is None:
        return dict(residency.bytes_by_device)
    on_gpus = sum(device.parts.total for device in report.devices if not device.on_host)
    return dict.fromkeys(list(residency.bytes_by_device)[:1], on_gpus)
