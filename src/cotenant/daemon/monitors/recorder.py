"""What is kept of each run for the next: decisions, load times, and what loads really took."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace

from cotenant.analysis.calibration import compare
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, Warmth
from cotenant.domain.residencies import ResidencyId
from cotenant.hardware.model_cache.warm import WarmTier, presence
from cotenant.interfaces import Journal
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.state import Residency

_MOSTLY = 0.9


class Recorder:
    """Listens to decisions and Readings, and writes the journal."""

    def __init__(self, journal: Journal, loop: Loop) -> None:
        self._journal = journal
        self._loop = loop
        self._warmth: dict[str, Warmth] = {}
        self._measured: set[ResidencyId] = set()
        self._looking: set[asyncio.Task[None]] = set()

    def decided(self, decision: Decision) -> None:
        """Keep a decision, and a load's time when it is over."""
        self._journal.record_decision(DecisionRecord(time.time(), decision))
        entry = self._loop.entry(decision.model) if decision.model else None
        if entry is None:
            return
        if decision.kind is DecisionKind.LOAD:
            looking = asyncio.get_running_loop().create_task(self._look(entry))
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        elif decision.kind is DecisionKind.READY:
            warmth = self._warmth.get(entry.name, Warmth.COLD)
            seconds = float(decision.facts["load_s"])
            self._journal.record_load(
                LoadRecord(time.time(), entry.name, seconds, entry.shape.tensor_bytes, warmth)
            )

    def measured(self) -> None:
        """Keep what each loaded model is seen to hold, once per load and device."""
        loaded = self._loop.loaded()
        self._measured &= {residency.id for residency, _ in loaded}
        for residency, running in loaded:
            if residency.id not in self._measured and residency.measured_bytes is not None:
                self._measured.add(residency.id)
                self._record_footprints(residency, running)

    async def _look(self, entry: ModelEntry) -> None:
        try:
            found = await asyncio.to_thread(presence, entry.parts)
        except OSError:
            # The file has gone; the load will tell.
            return
        warm = (found.resident_bytes or 0) >= _MOSTLY * found.total_bytes
        self._warmth[entry.name] = Warmth.WARM if warm else Warmth.COLD

    def _record_footprints(self, residency: Residency, running: Running) -> None:
        entry = self._loop.entry(residency.model)
        if entry is None:
            return
        engine = running.engine.build if running.engine else None
        for row in compare(running.placement, running.report):
            if row.device is None:
                continue
            self._journal.record_footprint(
                FootprintRecord(
                    at=time.time(),
                    model=entry.name,
                    file_fingerprint=_fingerprint(entry.signature),
                    recipe_fingerprint=_fingerprint(entry.recipe),
                    device_id=row.device.id,
                    device_name=row.device.name,
                    predicted=row.planned,
                    engine=f"{engine.form} {engine.version}" if engine else None,
                    reported=row.reported,
                    measured_bytes=self._loop.measured_bytes(residency.id, row.device.id),
                )
            )


class CacheWarmer:
    """Reads a model's file ahead while the model waits for others to make room."""

    def __init__(self, tier: WarmTier, loop: Loop) -> None:
        self._tier = tier
        self._loop = loop
        self._passes: dict[str, asyncio.Task[object]] = {}

    def decided(self, decision: Decision) -> None:
        """Warm whoever room is being made for."""
        for name in self._loop.models_awaiting_room():
            entry = self._loop.entry(name)
            running = self._passes.get(name)
            if entry is not None and (running is None or running.done()):
                warming = self._tier.warm(entry.parts, f"{name} waits for room")
                self._passes[name] = asyncio.get_running_loop().create_task(warming)


async def learned(journal: Journal, configuration: Configuration) -> Configuration:
    """Return the configuration with the overheads learned from past runs, unless the operator set one."""
    rules = configuration.devices.rules
    if rules.overhead_bytes != BudgetRules().overhead_bytes:
        return configuration
    overheads = await journal.overheads(rules.overhead_bytes)
    devices = replace(configuration.devices, rules=replace(rules, overheads=overheads))
    return replace(configuration, devices=devices)


def _fingerprint(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()
