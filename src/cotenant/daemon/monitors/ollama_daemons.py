"""Monitors Ollama daemons: serves their models, and counts the memory that they hold."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cotenant.config.configuration import Configuration, ModelEntry, Problem
from cotenant.config.engine_options import unread_shape
from cotenant.config.names import NAME
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.fleet import may_use
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.monitors.attribution import EngineUsage
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.models import ModelKind
from cotenant.domain.records import ModelOnEngine
from cotenant.domain.residencies import ResidencyId, ResidencyState
from cotenant.engines.ollama.client import (
    ASK_TIMEOUT_S,
    LATEST,
    LoadedModel,
    ModelFacts,
    OllamaClient,
    OllamaModel,
    default_context,
    same_tag,
)
from cotenant.scheduling.residency import Residency

_LOG = logging.getLogger(__name__)
_POLL_EVERY_S: Final = 1.0
_MARGIN: Final = 1.02
_EMBEDDERS: Final = ("bert", "nomic")


@dataclass(slots=True)
class _Daemon:
    """One daemon as last seen; `answers` is None before it was first asked."""

    client: OllamaClient
    answers: bool | None = None
    version: str = ""
    models: tuple[OllamaModel, ...] = ()
    loaded: tuple[LoadedModel, ...] = ()
    facts: dict[OllamaModel, ModelFacts] = field(default_factory=dict)
    by_name: dict[str, tuple[OllamaModel, ModelFacts]] = field(default_factory=dict)

    def of(self, tag: str) -> tuple[OllamaModel, ModelFacts] | None:
        """Return the model of a tag, and its facts."""
        return self.by_name.get(tag.removesuffix(LATEST))

    def bytes_of(self, tag: str, gpus: Iterable[Device]) -> tuple[int | None, bool]:
        """Return what to plan for a model on these GPUs, and whether it is loaded; else it is estimated."""
        seen = next((each for each in self.loaded if self.are_one(each.tag, tag)), None)
        if seen is not None:
            return int(_MARGIN * (seen.gpu_bytes or seen.total_bytes)), True
        if (shown := self.of(tag)) is None:
            return None, False
        n_ctx = default_context(self.version, sum(device.total_bytes or 0 for device in gpus))
        return shown[1].estimate_bytes(shown[0].file_bytes, n_ctx), False

    def are_one(self, first: str, second: str) -> bool:
        """Whether two loaded tags are one: models with the same weights are loaded once, under one tag."""
        if same_tag(first, second):
            return True
        known, other = self.of(first), self.of(second)
        return known is not None and other is not None and known[1].weights == other[1].weights != ""


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
        self._daemons: dict[Endpoint, _Daemon] = {}
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
        wanted = [_address(entry) for entry in configuration.models]
        wanted.append(configuration.ollama.address if configuration.ollama else None)
        self._daemons = {a: self._daemons.get(a) or _Daemon(OllamaClient(a)) for a in wanted if a is not None}
        before = {address: daemon.loaded for address, daemon in self._daemons.items()}
        self._recently_ours = set()
        self.usage()
        await asyncio.gather(*map(_ask, self._daemons.values()))
        settings = configuration.ollama
        if settings is not None and (daemon := self._daemons.get(settings.address)) is not None:
            self._served.set_discovered(_entries(configuration, daemon))
        self._learn()
        if before != {address: daemon.loaded for address, daemon in self._daemons.items()}:
            self._served.notify()

    def usage(self) -> EngineUsage:
        """Return the memory that the daemons hold, by residency."""
        held: dict[ResidencyId, Mapping[DeviceId, int]] = {}
        ours: set[tuple[Endpoint, str]] = set()
        for residency, running in self._view.loaded():
            entry = self._view.entry(residency.model)
            address = None if entry is None else _address(entry)
            if entry is None or address is None:
                continue
            ours.add((address, _tag(entry).removesuffix(LATEST)))
            held[residency.id] = _held(residency, running)
        self._recently_ours |= ours
        return EngineUsage(ollama=held, ollama_foreign_bytes=self._foreign())

    def _learn(self) -> None:
        """Plan each model by what it last held, else by an estimate."""
        known: dict[ModelOnEngine, int] = {}
        for entry in self._served.models:
            address = _address(entry)
            daemon = None if address is None else self._daemons.get(address)
            if address is None or daemon is None:
                continue
            count, seen = daemon.bytes_of(_tag(entry), self._gpus_of(address))
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
        entries = [entry for entry in self._served.models if _address(entry) == address]
        for device in self._view.devices():
            if device.kind is DeviceKind.HOST:
                continue
            if not entries or any(may_use(entry.gpus, device) for entry in entries):
                yield device


async def _ask(daemon: _Daemon) -> None:
    loaded = await daemon.client.loaded()
    models = None if loaded is None else await daemon.client.models()
    if loaded is None or models is None:
        if daemon.answers is not False:
            _LOG.warning("no Ollama answers at %s: it will be asked again", daemon.client.address.url)
        daemon.answers, daemon.loaded = False, ()
        return
    if not daemon.answers:
        daemon.version = await daemon.client.version() or ""
        _LOG.info("Ollama answers at %s: it has %d models", daemon.client.address.url, len(models))
    daemon.answers, daemon.loaded, daemon.models = True, loaded, models
    for model in models:
        if model not in daemon.facts and (facts := await daemon.client.facts(model.tag)) is not None:
            daemon.facts[model] = facts
    daemon.facts = {model: daemon.facts[model] for model in models if model in daemon.facts}
    daemon.by_name = {m.tag.removesuffix(LATEST): (m, facts) for m, facts in daemon.facts.items()}


async def with_ollama_models(configuration: Configuration, devices: Iterable[Device]) -> Configuration:
    """Return the configuration with the models of `ollama:`, or a problem after 5 s without an answer."""
    settings = configuration.ollama
    if settings is None:
        return configuration
    # Nothing is logged of one that is known not to answer.
    daemon = _Daemon(OllamaClient(settings.address), answers=False)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await _ask(daemon)
    if not daemon.answers:
        why = f"no Ollama answers at {settings.address.url}: its models are not listed"
        problem = Problem(configuration.path or Path("the environment"), why)
        return replace(configuration, problems=(*configuration.problems, problem))
    gpus = [d for d in devices if d.kind is not DeviceKind.HOST and may_use(settings.gpus, d)]
    found = (
        replace(entry, stated_bytes=daemon.bytes_of(_tag(entry), gpus)[0], stated_is_guess=True)
        for entry in _entries(configuration, daemon)
    )
    return replace(configuration, models=(*configuration.models, *found))


def _held(residency: Residency, running: Running) -> Mapping[DeviceId, int]:
    """Return what a daemon holds for a residency; during a load it may be all of the claim."""
    report = running.engine.report() if running.engine is not None else None
    if residency.state is ResidencyState.LOADING or report is None:
        return dict(residency.bytes_by_device)
    on_gpus = sum(device.parts.total for device in report.devices if not device.on_host)
    return dict.fromkeys(list(residency.bytes_by_device)[:1], on_gpus)


def _address(entry: ModelEntry) -> Endpoint | None:
    """Return the address of the daemon that has a model; None for models of other kinds of engines."""
    return entry.options.address if entry.recipe.engine is EngineKind.OLLAMA else None


def _tag(entry: ModelEntry) -> str:
    return entry.options.model or entry.name


def _entries(configuration: Configuration, daemon: _Daemon) -> tuple[ModelEntry, ...]:
    """Return an entry for each model of the daemon that no name of the configuration means."""
    settings = configuration.ollama
    if settings is None:
        return ()
    taken = {name for entry in configuration.models for name in entry.names}
    entries = []
    for model in daemon.models:
        name = model.tag.removesuffix(LATEST)
        if name in taken or not NAME.fullmatch(name):
            continue
        taken.add(name)
        defaults = configuration.defaults
        facts = daemon.facts.get(model)
        embeds = facts.embeds if facts else None
        if embeds is None:
            embeds = any(word in model.family.lower() for word in _EMBEDDERS)
        kind = ModelKind.EMBEDDING if embeds else ModelKind.TEXT
        entries.append(
            ModelEntry(
                name=name,
                path=None,
                recipe=replace(defaults.recipe, engine=EngineKind.OLLAMA),
                shape=unread_shape(name, kind, model.file_bytes, model.quantisation),
                signature=(),
                parts=(),
                aliases=(model.tag,) if model.tag != name and model.tag not in taken else (),
                gpus=settings.gpus,
                keep_alive_s=defaults.keep_alive_s,
                timeout_s=defaults.timeout_s,
                options=EngineOptions(address=settings.address, model=model.tag),
            )
        )
    return tuple(entries)
