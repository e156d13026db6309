"""The configuration that the daemon runs with, and how it is read again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cotenant.clock import Clock
from cotenant.config.changes import Changes, diff
from cotenant.config.configuration import Configuration, ModelEntry, ServerSettings
from cotenant.config.watch import Change, Watched, watch
from cotenant.daemon.core.fleet import RpcVersion, as_learned, only_allowed, spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.settings import ApiKeys
from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.keys import ApiKey
from cotenant.domain.placements import Refusal
from cotenant.domain.records import ModelOnEngine, PastRuns
from cotenant.planning.advice import plan
from cotenant.scheduling.events import LoadAsked, ModelsChanged

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class ActiveConfiguration:
    """The configuration that is served, and how to read it again; an invalid file changes nothing.

    `discovered` are models that Ollama daemons have in addition to the configured ones. `past` is what
    earlier runs teach, `learned_bytes` what to plan for models that were measured. `listeners` are called
    when what is served may have changed, or to whom. `rpc_version` says which machines may share a model.
    """

    configuration: Configuration
    reread: Callable[[Change], Configuration] | None
    loop: Loop
    clock: Clock
    use_fit_params: bool = False
    past: PastRuns = field(default_factory=PastRuns)
    learned_bytes: dict[ModelOnEngine, int] = field(default_factory=dict)
    discovered: tuple[ModelEntry, ...] = ()
    listeners: list[Callable[[], None]] = field(default_factory=list)
    rpc_version: RpcVersion = lambda entry, node: None
    keys: ApiKeys = field(default_factory=lambda: ApiKeys(ServerSettings()))
    # One at a time: a read that starts first and ends last must not replace a newer one.
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The models of the configuration, and the discovered ones whose names are free."""
        names = {name for entry in self.configuration.models for name in entry.names}
        return (*self.configuration.models, *(e for e in self.discovered if e.name not in names))

    def set_discovered(self, entries: tuple[ModelEntry, ...]) -> None:
        """Serve these in addition to the configuration's."""
        if entries != self.discovered:
            self.discovered = entries
            self.publish()

    def learn(self, known: Mapping[ModelOnEngine, int]) -> None:
        """Plan models by what they were measured to hold, from their next load on."""
        if any(self.learned_bytes.get(model) != count for model, count in known.items()):
            self.learned_bytes.update(known)
            self.publish()

    def planned(self) -> Configuration:
        """Return the configuration with all models, planned by what they were measured to hold."""
        models = (as_learned(entry, self.learned_bytes.get(entry.on_engine)) for entry in self.models)
        return replace(self.configuration, models=tuple(models))

    def remedies(self, name: str) -> Callable[[], str]:
        """Return a search for what would let a model fit next to what others and pinned models hold now."""
        state, rules = self.loop.scheduler.state, self.configuration.devices.rules
        entry = next((each for each in self.planned().models if each.name == name), None)
        if entry is None:
            return str
        taken = Counter({device: state.ledger.foreign_bytes(device) for device in state.ledger.readings})
        for residency in state.residencies.values():
            if state.models[residency.model].pinned:
                taken.update(residency.bytes_by_device)
        left = [
            replace(budget, budget_bytes=max(0, budget.budget_bytes - taken[budget.device.id]))
            for budget in state.ledger.whole()
        ]
        request, allowed = entry.request, only_allowed(left, entry)

        def search() -> str:
            result = plan(request, allowed, rules)
            found = result.remedies if isinstance(result, Refusal) else ()
            texts = [each.text + (f" ({each.flags})" if each.flags else "") for each in found]
            return f"Any one of these would fit: {'; '.join(texts)}." if texts else ""

        return search

    def publish(self, *, replaced: frozenset[str] = frozenset()) -> None:
        """Have the loop serve `models`; those in `replaced` must be loaded again to take effect."""
        rules = self.configuration.devices.rules
        specs = tuple(
            spec_of(
                entry,
                rules,
                self.past.load_s(entry.name),
                use_fit_params=self.use_fit_params,
                rpc_version=lambda entry, node: self.rpc_version(entry, node),
            )
            for entry in self.planned().models
        )
        changed = ModelsChanged(self.clock.now(), specs, replaced)
        self.loop.serve(self.models, changed, self.configuration.groups)
        self.notify()

    def notify(self) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener()

    async def reload(self, change: Change | None = None) -> tuple[str, ...]:
        """Read it again, apply what changed, and say what. Raises BadSetting and then changes nothing."""
        if change is None and not self._may_change:
            raise BadSetting(
                "there is no configuration file to read again",
                hint="Start with --config, or a cotenant.yaml.",
            )
        async with self._lock:
            try:
                fresh, keys = await asyncio.to_thread(self._read, change or Change())
            except BadSetting:
                # A key taken out of its file is void, whatever else is wrong.
                keys = await asyncio.to_thread(self.keys.read, self.configuration.server)
                for sentence in self._replace_keys(keys):
                    _LOG.info("configuration: %s", sentence)
                raise
            # No file contains the overheads learned from past runs.
            rules = replace(fresh.devices.rules, overheads=self.configuration.devices.rules.overheads)
            fresh = replace(fresh, devices=replace(fresh.devices, rules=rules))
            for problem in fresh.problems:
                if problem not in self.configuration.problems:
                    _LOG.warning("%s", problem)
            changes = diff(self.configuration, fresh)
            self.configuration = fresh
            if changes:
                self._apply(changes)
            about_keys = self._replace_keys(keys)
        return (*changes.sentences(), *about_keys)

    @property
    def _may_change(self) -> bool:
        """Whether there is a file to read again: `serve MODEL` has only that of its keys."""
        return self.reread is not None or self.configuration.server.api_key_file is not None

    def _read(self, change: Change) -> tuple[Configuration, tuple[ApiKey, ...]]:
        fresh = self.configuration if self.reread is None else self.reread(change)
        if fresh.is_empty and not self.configuration.is_empty:
            hint = "Restore it; `models: []` is a file that serves none."
            raise BadSetting(f"{fresh.path} has become empty", hint=hint)
        return fresh, self.keys.read(fresh.server)

    async def reread_keys(self) -> None:
        """Follow the files of keys at once, of which one was changed by this daemon. Raises BadSetting."""
        async with self._lock:
            keys = await asyncio.to_thread(self.keys.read, self.configuration.server)
            for sentence in self._replace_keys(keys):
                _LOG.info("configuration: %s", sentence)

    def _replace_keys(self, keys: tuple[ApiKey, ...]) -> tuple[str, ...]:
        said = self.keys.replace(keys)
        if said:
            self.notify()
        return said

    def _apply(self, changes: Changes) -> None:
        self.publish(replaced=frozenset(entry.name for entry in changes.reloaded))
        for entry in (*changes.added, *changes.reloaded):
            if entry.preload:
                self.loop.post(LoadAsked(self.clock.now(), entry.name))

    async def watch(self) -> None:
        """Reload whenever the files change, until cancelled."""
        if not self._may_change and self.keys.stored is None:
            return
        async for change in watch(self._watched, self.clock):
            try:
                for sentence in await self.reload(change):
                    _LOG.info("configuration: %s", sentence)
            except UsageError as error:
                _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)

    def _watched(self) -> Watched:
        configuration = self.configuration
        files = filter(None, (configuration.path, configuration.server.api_key_file, self.keys.stored))
        entries = (entry for entry in configuration.models if entry.from_folder)
        served = frozenset(str(part) for entry in entries for part in entry.parts)
        return Watched(tuple(files), configuration.models_dir, served)
