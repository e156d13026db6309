"""Keeps the files of models that are wanted next in host RAM."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision, DecisionKind, WarmStatus
from cotenant.domain.units import format_bytes, format_duration
from cotenant.hardware.model_cache.warm import Warmed, WarmTier, forget, presence
from cotenant.scheduling.events import WarmChanged

EVERY_S: Final = 30.0
_FLUTTER: Final = 1.1
"""A budget this little too small for what is kept is no reason to give any of it up."""


@dataclass(slots=True)
class _Kept:
    """Files of which `wanted_bytes` are to be in RAM, and `seen_bytes` were when last seen."""

    files: Sequence[Path]
    wanted_bytes: int
    seen_bytes: int = 0


class ModelCache(Protocol):
    """The page cache of a machine, as the keeper uses it."""

    async def budget(self) -> tuple[int, str | None]:
        """As `WarmTier.budget`."""

    async def warm(
        self,
        paths: Sequence[Path],
        reason: str,
        *,
        limit_bytes: int | None = None,
        yields_to: Callable[[], str | None] = lambda: None,
        at_idle: bool = False,
    ) -> Warmed:
        """As `WarmTier.warm`."""

    async def forget(self, paths: Sequence[Path]) -> None:
        """Give the RAM of files back."""

    async def is_unknown(self, paths: Sequence[Path]) -> bool:
        """Whether the kernel does not say how much of files is in RAM."""


@dataclass(frozen=True, slots=True)
class OwnModelCache:
    """The page cache of this machine."""

    tier: WarmTier

    async def budget(self) -> tuple[int, str | None]:
        """Return what `WarmTier.budget` does."""
        return await asyncio.to_thread(self.tier.budget)

    async def warm(
        self,
        paths: Sequence[Path],
        reason: str,
        *,
        limit_bytes: int | None = None,
        yields_to: Callable[[], str | None] = lambda: None,
        at_idle: bool = False,
    ) -> Warmed:
        """Do what `WarmTier.warm` does."""
        return await self.tier.warm(
            paths, reason, limit_bytes=limit_bytes, yields_to=yields_to, at_idle=at_idle
        )

    async def forget(self, paths: Sequence[Path]) -> None:
        """Give the RAM of files back."""
        await asyncio.to_thread(forget, paths)

    async def is_unknown(self, paths: Sequence[Path]) -> bool:
        """Whether the kernel does not say how much of files is in RAM."""
        return await asyncio.to_thread(_is_unknown, paths)


class WarmKeeper:
    """Ranks the models after each decision, reads files that should be in RAM, and gives up others.

    It does so for one machine, this one if `node` is None, and at most once in `pause_s`.
    The kernel may take pages at any time, and demand changes without a decision: what is kept is seen to
    every `every_s`. Files of a model that others are evicted for are read first. While an engine loads,
    nothing else is read.
    """

    def __init__(
        self,
        cache: ModelCache,
        loop: Loop,
        view: FleetView,
        *,
        node: str | None = None,
        every_s: float = EVERY_S,
        pause_s: float = 0.0,
    ) -> None:
        self._cache = cache
        self._node = node
        self._pause_s = pause_s
        self._loop = loop
        self._view = view
        self._every_s = every_s
        self._kept: dict[str, _Kept] = {}
        self._read_ahead: set[str] = set()
        self._awaiting: Sequence[str] = ()
        self._loading: frozenset[str] = frozenset()
        self._checked_at = 0.0
        self._changed = asyncio.Event()
        self._changed.set()
        loop.record_warm(WarmStatus(), node)

    def decided(self, decision: Decision) -> None:
        """Look again soon, and end a pass that has to make way."""
        if decision.kind is not DecisionKind.WARM:
            self._see_fleet()
            self._changed.set()

    async def run(self) -> None:
        """Keep files in RAM until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()
            self._changed.clear()
            self._see_fleet()
            budget_bytes, paused = await self._cache.budget()
            for name in [name for name in self._awaiting if name not in self._read_ahead]:
                await self._read_for_waiting(name)
            if self._loading:
                paused = f"{', '.join(sorted(self._loading))} is loading"
            else:
                await self._rank(budget_bytes, under_pressure=paused is not None)
                due = self._loop.clock.now() - self._checked_at >= self._every_s
                self._checked_at = self._loop.clock.now() if due else self._checked_at
                for name, kept in self._kept.items():
                    if due or kept.seen_bytes < kept.wanted_bytes:
                        await self._complete(name, kept)
            by_model = {name: kept.seen_bytes for name, kept in self._kept.items()}
            status = WarmStatus(budget_bytes, sum(by_model.values()), by_model, paused)
            self._loop.record_warm(status, self._node)
            await asyncio.sleep(self._pause_s)

    def _see_fleet(self) -> None:
        # Kept in attributes, since the threads of a pass read them.
        self._loading = frozenset(self._view.loading_models(self._node))
        self._awaiting = tuple(self._view.models_awaiting_room(self._node))
        self._read_ahead &= {*self._awaiting}

    def _yields_to(self, name: str) -> str | None:
        """Return why the files of a model should not be read now, if so."""
        if self._loading - {name}:
            return "another model is loading"
        if self._awaiting and name not in self._awaiting and name not in self._loading:
            return "another model waits for room"
        return None

    async def _read_for_waiting(self, name: str) -> None:
        entry = self._view.entry(name)
        self._read_ahead.add(name)
        if entry is not None and entry.parts:
            await self._cache.warm(
                entry.parts, f"{name} waits for room", yields_to=lambda: self._yields_to(name)
            )

    async def _rank(self, budget_bytes: int, *, under_pressure: bool) -> None:
        """Decide what is kept from now on, and give up the rest."""
        sizes = {name: kept.wanted_bytes for name, kept in self._kept.items()}
        total = sum(sizes.values())
        if under_pressure:
            budget_bytes = min(budget_bytes, total // 2)
        elif budget_bytes < total <= budget_bytes * _FLUTTER:
            budget_bytes = total
        chosen = self._view.warm_ranking(budget_bytes, sizes, self._node)
        before, self._kept = self._kept, {}
        for name, wanted_bytes in chosen.items():
            entry, kept = self._view.entry(name), before.get(name)
            if entry is not None:
                seen_bytes = kept.seen_bytes if kept is not None and kept.files == entry.parts else 0
                self._kept[name] = _Kept(entry.parts, wanted_bytes, min(seen_bytes, wanted_bytes))
        shared = {file for kept in self._kept.values() for file in kept.files}
        for name in before.keys() - self._kept.keys():
            await self._cache.forget([file for file in before[name].files if file not in shared])
            room = format_bytes(budget_bytes)
            text = f"its files are no longer kept in {self._ram}: {room} may be used for others"
            self._publish(name, 0, text)

    async def _complete(self, name: str, kept: _Kept) -> None:
        """Read what is missing of a model's files."""
        was_complete = kept.seen_bytes == kept.wanted_bytes
        if was_complete and await self._cache.is_unknown(kept.files):
            # All of them would be read again at every look.
            return
        done = await self._cache.warm(
            kept.files,
            "it is likely wanted next",
            limit_bytes=kept.wanted_bytes,
            yields_to=lambda: self._yields_to(name),
            at_idle=True,
        )
        kept.seen_bytes = max(done.covered_bytes, kept.seen_bytes if done.stopped else 0)
        if kept.seen_bytes == kept.wanted_bytes and not was_complete:
            number = [*self._kept].index(name) + 1
            took = f", read in {format_duration(done.seconds)}" if done.read_bytes else ""
            text = f"{format_bytes(kept.seen_bytes)} of its files are kept in {self._ram}{took}"
            self._publish(name, kept.seen_bytes, f"{text}: number {number} by demand and load time")

    @property
    def _ram(self) -> str:
        return "host RAM" if self._node is None else f"the RAM of {self._node}"

    def _publish(self, name: str, kept_bytes: int, why: str) -> None:
        self._loop.post(WarmChanged(self._loop.clock.now(), name, kept_bytes, why))


def _is_unknown(files: Sequence[Path]) -> bool:
    with contextlib.suppress(OSError):
        return presence(files)[1] is None
    return False
