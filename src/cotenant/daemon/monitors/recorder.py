"""Records decisions, load times and measured footprints, so that the next run plans by them."""

import asyncio
import hashlib
import time

from cotenant.analysis.calibration import compare
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.effects import Running
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import Inventory
from cotenant.domain.nodes import FileState
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, Warmth
from cotenant.domain.residencies import ResidencyId
from cotenant.hardware.model_cache.warm import presence
from cotenant.scheduling.residency import Residency
from cotenant.store.store import SqlJournal

_MOSTLY = 0.9


class Recorder:
    """Writes decisions and what loads took to the journal."""

    def __init__(self, journal: SqlJournal, view: FleetView) -> None:
        self._journal = journal
        self._view = view
        self._warmth: dict[str, Warmth] = {}
        self._measured: set[ResidencyId] = set()
        self._checks = BackgroundTasks()

    def decided(self, decision: Decision) -> None:
        """Record a decision and, when a load has ended, its time."""
        self._journal.record(DecisionRecord(time.time(), decision))
        entry = self._view.entry(decision.model) if decision.model else None
        if entry is None:
            return
        if decision.kind is DecisionKind.LOAD and decision.model is not None:
            there = self._view.file_state(decision.model)
            if there is None:
                self._checks.start(self._check_warmth(entry))
            else:
                # This machine's page cache says nothing of another one's.
                self._warmth[entry.name] = Warmth.WARM if there is FileState.WARM else Warmth.COLD
        elif decision.kind is DecisionKind.READY:
            warmth = self._warmth.get(entry.name, Warmth.COLD)
            seconds = float(decision.facts["load_s"])
            self._journal.record(
                LoadRecord(time.time(), entry.name, seconds, entry.shape.tensor_bytes, warmth)
            )

    def measured(self, inventory: Inventory | None) -> None:
        """Record what each loaded model is measured to hold, once per load and device."""
        loaded = self._view.loaded()
        self._measured &= {residency.id for residency, _ in loaded}
        for residency, running in loaded:
            if residency.id not in self._measured and residency.measured_bytes is not None:
                self._measured.add(residency.id)
                self._record_footprints(residency, running)

    async def _check_warmth(self, entry: ModelEntry) -> None:
        try:
            total, resident = await asyncio.to_thread(presence, entry.parts)
        except OSError:
            # The file was deleted; the load will report it.
            return
        warm = (resident or 0) >= _MOSTLY * total
        self._warmth[entry.name] = Warmth.WARM if warm else Warmth.COLD

    def _record_footprints(self, residency: Residency, running: Running) -> None:
        entry = self._view.entry(residency.model)
        if entry is None:
            return
        engine = running.engine.build if running.engine else None
        for row in compare(running.placement, running.report):
            if row.device is None:
                continue
            self._journal.record(
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
                    measured_bytes=self._view.measured_bytes(residency.id, row.device.id),
                )
            )


def _fingerprint(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()
