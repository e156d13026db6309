"""Keeps the KV caches of unloaded models, as far as host RAM is not wanted for models."""

import asyncio
import logging
from pathlib import Path
from typing import Final

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.engines.process.slot_store import SlotStore, erase, memory_folder

_PART_OF_RAM: Final = 16

_log = logging.getLogger(__name__)


def open_slot_store(most_bytes: int | None, folder: Path | None, ram_bytes: int | None) -> SlotStore | None:
    """Open the store of saved slots; None if there is to be none, or no folder for it."""
    parent = folder or memory_folder()
    if most_bytes is None:
        most_bytes = (ram_bytes or 0) // _PART_OF_RAM
    if most_bytes == 0:
        return None
    if parent is None:
        _log.info(
            "KV caches are not kept over unloads: /dev/shm is no folder in RAM (`warm.kv_dir` names another)"
        )
        return None
    try:
        return SlotStore.open(parent, most_bytes)
    except OSError as error:
        _log.warning("KV caches are not kept over unloads: %s: %s", parent, error.strerror)
        return None


class SlotKeeper:
    """Drops slots saved in RAM when that is short, or when a model waits for room that may be there.

    Those `in_ram` are bounded by what host RAM has left.
    """

    def __init__(self, store: SlotStore, view: FleetView, loop: Loop, *, in_ram: bool) -> None:
        self._store = store
        self._view = view
        self._loop = loop
        self._in_ram = in_ram
        self._erasing = BackgroundTasks()
        if in_ram:
            store.room = view.host_room

    def measured(self, _: object) -> None:
        """Drop what host RAM has no room for by its last Reading."""
        wanted = self._in_ram and self._view.holds_models_in_ram()
        waits = self._view.models_without_room() if wanted else ()
        dropped = self._store.clear() if waits else self._store.shrink()
        if dropped:
            why = f"{waits[0]} waits for room" if waits else "host RAM is short"
            _log.info("%d saved slots are dropped: %s", len(dropped), why)
            self._erasing.start(asyncio.to_thread(erase, [slot.path for slot in dropped]))
        self._loop.saved_slots = self._store.status()
