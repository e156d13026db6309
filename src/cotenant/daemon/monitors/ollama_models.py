"""The models that an Ollama daemon has, as entries beside those of the configuration."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cotenant.config.configuration import Configuration, ModelEntry, Problem
from cotenant.config.engine_options import unread_shape
from cotenant.config.names import NAME
from cotenant.daemon.core.fleet import may_use
from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.models import ModelKind
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

_LOG = logging.getLogger(__name__)
_MARGIN: Final = 1.02
_EMBEDDERS: Final = ("bert", "nomic")


@dataclass(slots=True)
class OllamaDaemon:
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

    async def ask(self) -> None:
        """Ask it what it has and what is loaded; log when it begins or ceases to answer."""
        loaded = await self.client.loaded()
        models = None if loaded is None else await self.client.models()
        if loaded is None or models is None:
            if self.answers is not False:
                _LOG.warning("no Ollama answers at %s: it will be asked again", self.client.address.url)
            self.answers, self.loaded = False, ()
            return
        if not self.answers:
            self.version = await self.client.version() or ""
            _LOG.info("Ollama answers at %s: it has %d models", self.client.address.url, len(models))
        self.answers, self.loaded, self.models = True, loaded, models
        for model in models:
            if model not in self.facts and (facts := await self.client.facts(model.tag)) is not None:
                self.facts[model] = facts
        self.facts = {model: self.facts[model] for model in models if model in self.facts}
        self.by_name = {m.tag.removesuffix(LATEST): (m, facts) for m, facts in self.facts.items()}


async def with_ollama_models(configuration: Configuration, devices: Iterable[Device]) -> Configuration:
    """Return the configuration with the models of `ollama:`, or a problem after 5 s without an answer."""
    settings = configuration.ollama
    if settings is None:
        return configuration
    # Nothing is logged of one that is known not to answer.
    daemon = OllamaDaemon(OllamaClient(settings.address), answers=False)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await daemon.ask()
    if not daemon.answers:
        why = f"no Ollama answers at {settings.address.url}: its models are not listed"
        problem = Problem(configuration.path or Path("the environment"), why)
        return replace(configuration, problems=(*configuration.problems, problem))
    gpus = [d for d in devices if d.kind is not DeviceKind.HOST and may_use(settings.gpus, d)]
    found = (
        replace(entry, stated_bytes=daemon.bytes_of(tag_of(entry), gpus)[0], stated_is_guess=True)
        for entry in entries_of(configuration, daemon)
    )
    return replace(configuration, models=(*configuration.models, *found))


def address_of(entry: ModelEntry) -> Endpoint | None:
    """Return the address of the daemon that has a model; None for models of other kinds of engines."""
    return entry.options.address if entry.recipe.engine is EngineKind.OLLAMA else None


def tag_of(entry: ModelEntry) -> str:
    """Return the tag by which the daemon knows a model."""
    return entry.options.model or entry.name


def entries_of(configuration: Configuration, daemon: OllamaDaemon) -> tuple[ModelEntry, ...]:
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
