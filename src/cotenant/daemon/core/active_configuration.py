"""The configuration that the daemon runs with, and how it is read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cotenant.clock import Clock
from cotenant.config.changes import Changes, diff
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.watch import Change, Watched, watch
from cotenant.daemon.core.fleet import as_learned, spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.domain.errors import BadSetting
from cotenant.domain.records import LoadTimes
from cotenant.scheduling.events import LoadAsked, ModelsChanged

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class ActiveConfiguration:
    """The configuration in force and how to read it again; a broken one leaves it as it is."""

    configuration: Configuration
    reread: Callable[[Change], Configuration] | None
    loop: Loop
    clock: Clock
    use_fit_params: bool = False
    load_times: Mapping[str, LoadTimes] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None
    offered: tuple[ModelEntry, ...] = ()
    learned: dict[str, int] = field(default_factory=dict)
    # A reading that began earlier and ends later must not put what it read in place of what is newer.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The models of the configuration, and those that hubs offer beside them."""
        names = {name for entry in self.configuration.models for name in (entry.name, *entry.aliases)}
        return (*self.configuration.models, *(e for e in self.offered if e.name not in names))

    def offer(self, entries: tuple[ModelEntry, ...]) -> None:
        """Serve these beside the configuration's."""
        if entries != self.offered:
            self.offered = entries
            self.announce()

    def learn(self, known: Mapping[str, int]) -> None:
        """Plan by what models were seen to take, from their next load on."""
        if any(self.learned.get(name) != count for name, count in known.items()):
            self.learned.update(known)
            self.announce()

    def announce(self, *, replaced: frozenset[str] = frozenset()) -> None:
        """Have the loop serve the models of the configuration, and what hubs offer."""
        rules = self.configuration.devices.rules
        specs = tuple(
            spec_of(
                as_learned(entry, self.learned.get(entry.name)),
                rules,
                self.load_times.get(entry.name, LoadTimes()).expected_s,
                use_fit_params=self.use_fit_params,
            )
            for entry in self.models
        )
        self.loop.serve(self.models, ModelsChanged(self.clock.now(), specs, replaced))
        self.changed()

    async def reload(self, change: Change | None = None) -> Sequence[str]:
        """Read it again and take over what changed, in sentences. Raises BadSetting and changes nothing."""
        if self.reread is None:
            raise BadSetting(
                "there is no configuration file to read again",
                hint="Start with --config, or a cotenant.yaml.",
            )
        async with self._turn:
            fresh = self._with_what_was_learned(await asyncio.to_thread(self.reread, change or Change()))
            changes = diff(self.configuration, fresh)
            if changes:
                self._take_over(fresh, changes)
        return changes.sentences()

    def _with_what_was_learned(self, fresh: Configuration) -> Configuration:
        """Carry the overheads learned from past runs over: no file says them."""
        overheads = self.configuration.devices.rules.overheads
        rules = replace(fresh.devices.rules, overheads=overheads)
        return replace(fresh, devices=replace(fresh.devices, rules=rules))

    def _take_over(self, fresh: Configuration, changes: Changes) -> None:
        for name in changes.settings:
            _LOG.warning("%s changed: it takes effect at the next start", name)
        self.configuration = fresh
        self.announce(replaced=frozenset(entry.name for entry in changes.reloaded))
        for entry in (*changes.added, *changes.reloaded):
            if entry.preload:
                self.loop.post(LoadAsked(self.clock.now(), entry.name))

    async def watch(self) -> None:
        """Reload whenever the files change, until cancelled."""
        if self.reread is None:
            return
        async for change in watch(self._watched, self.clock):
            await self._reload_quietly(change)

    async def _reload_quietly(self, change: Change) -> None:
        try:
            for sentence in await self.reload(change):
                _LOG.info("configuration: %s", sentence)
        except BadSetting as error:
            _LOG.error("the configuration was left as it was: %s (%s)", error.message, error.hint)

    def _watched(self) -> Watched:
        path = self.configuration.path
        return Watched(() if path is None else (path,), self.configuration.models_dir)
