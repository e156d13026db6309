"""Moves loaded models by itself, so that one fits for which none can be evicted."""

import asyncio
import contextlib
import logging
from typing import Final

from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.operator import FleetOperator
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.errors import CotenantError
from cotenant.domain.fragmentation import DefragmentMode
from cotenant.domain.residencies import model_of

_LOG = logging.getLogger("cotenant.decisions")
_PAUSE_S: Final = 300.0
"""How long a device rests after a move from it or to it."""


class Defragmenter:
    """Makes the moves that let a waiting model fit, with `scheduling.defragment: auto`.

    Only a model waits for which nothing may be evicted now: the scheduler evicts at once. It is looked for
    after each decision, and every `every_s`, since requests end without one. Only idle models are moved: the
    engine of one in use would end with its requests, and meanwhile another model may become evictable.
    """

    def __init__(self, loop: Loop, view: FleetView, operator: FleetOperator, *, every_s: float = 5.0) -> None:
        self._loop = loop
        self._view = view
        self._operator = operator
        self._every_s = every_s
        self._changed = asyncio.Event()
        self._moved_at: dict[str, float] = {}

    def decided(self, decision: Decision) -> None:
        """Look again soon if a model waits."""
        if decision.kind is DecisionKind.WAITING:
            self._changed.set()

    async def run(self) -> None:
        """Look for models that wait, and make room for them, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()
            self._changed.clear()
            if self._loop.scheduler.state.settings.defragment is DefragmentMode.AUTO:
                for name in self._view.models_without_room():
                    if self._view.entry(name) is not None:
                        await self._make_room(name)

    async def _make_room(self, name: str) -> None:
        try:
            found = await self._operator.defragmentation(name)
            now = self._loop.clock.now()
            devices = {device for move in found.moves for device in (*move.origin, move.to)}
            rested = all(now - self._moved_at.get(device, -_PAUSE_S) >= _PAUSE_S for device in devices)
            statuses = {each.name: each for each in self._operator.statuses()}
            moved = [statuses[model_of(move.model)] for move in found.moves]
            idle = all(not model.in_flight and not model.queued for model in moved)
            if found.moves and rested and idle:
                self._moved_at.update(dict.fromkeys(devices, now))
                _LOG.info("defragment: %s", found.text.replace("would fit if", "waits:", 1))
                await self._operator.defragment(name)
        except CotenantError as error:
            _LOG.warning("defragment: %s", error.message)
