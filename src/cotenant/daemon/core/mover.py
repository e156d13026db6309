"""Moves of models, and drains of devices, as operators order them."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from cotenant.daemon.core.fleet import find_device, may_use
from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import BadRequest, CannotMove, StoreError
from cotenant.domain.moves import MoveMethod, MoveOutcome, MovePlan
from cotenant.domain.residencies import model_of
from cotenant.scheduling import events
from cotenant.scheduling.moves import moves, plan_drain, plan_move
from cotenant.scheduling.state import State
from cotenant.store.store import Store

_LOG = logging.getLogger(__name__)
_KEY: Final = "drained:"
_MOVED: Final = (MoveOutcome.LIVE.value, MoveOutcome.RELOAD.value)


class FleetMover:
    """The Mover over a Loop. GPUs are named by index or by UUID, or its beginning.

    Devices that an operator drains stay so over a restart: `store` has them, by UUID. `configured` returns
    those of the configuration, which only it can undrain.
    """

    def __init__(self, loop: Loop, store: Store, configured: Callable[[], Sequence[str]]) -> None:
        self._loop = loop
        self._store = store.services
        self._configured = configured
        self._ordered: frozenset[DeviceId] = frozenset()

    async def restore(self) -> None:
        """Drain again what was drained when the daemon last ended, if that can be read."""
        try:
            kept = await self._store.settings()
        except StoreError as error:
            _LOG.warning(
                "what GPUs are drained cannot be read, so only those of the file are: %s", error.message
            )
            return
        drained = (key.removeprefix(_KEY) for key, value in kept.items() if value.get("drained"))
        self._ordered = frozenset(DeviceId(id_) for id_ in drained)

    def republish(self) -> None:
        """Drain what is to be drained of the devices that are there now."""
        drained = self._ordered | self._by_configuration()
        if drained != self._state.ledger.drained:
            self._loop.post(events.DrainsChanged(self._loop.clock.now(), drained))

    def plan_move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        """Return how a model would move. Raises UnknownModel, UnknownDevice or CannotMove."""
        model = self._state.model(self._loop.fleet.resolve_copy(name))
        plan = plan_move(self._state, model, frozenset(self._find(gpu) for gpu in gpus))
        if plan.method is MoveMethod.STAY:
            raise CannotMove(f"{plan.model} does not move: {plan.text}")
        return plan

    async def move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        """Move a model, and return once it is served there. Raises as `plan_move`, also if the move fails."""
        plan, feed = self.plan_move(name, gpus), self._loop.feed
        copy = self._state.model(plan.model).copy
        since = self._state.decisions
        devices = frozenset(self._find(gpu) for gpu in gpus)
        self._loop.post(events.MoveAsked(self._loop.clock.now(), plan.model, devices))

        def end() -> Decision | None:
            told = (each for each in feed.about(model_of(plan.model)) if each.number > since)
            ends = (each for each in told if "outcome" in each.facts)
            return next((each for each in ends if each.facts.get("copy", 1) == copy), None)

        def ended() -> bool:
            model = self._state.models.get(plan.model)
            return model is None or not moves(self._state, model) or bool(end())

        await self._loop.until(ended)
        decided = end()
        if decided is None or decided.facts["outcome"] not in _MOVED:
            raise CannotMove(f"{plan.model} {decided.text if decided else 'was unloaded while it moved'}")
        return plan

    def cancel_move(self, name: str) -> None:
        """Have a model that moves stay where it is; nothing else happens. Raises UnknownModel."""
        resolved = self._loop.fleet.resolve_copy(name)
        self._loop.post(events.MoveCancelled(self._loop.clock.now(), resolved))

    def plan_drain(self, gpu: str) -> Sequence[MovePlan]:
        """Return what would become of each model on a device. Raises UnknownDevice."""
        return plan_drain(self._state, frozenset({self._find(gpu)}))

    async def drain(self, gpu: str, drained: bool) -> None:
        """Drain a device from now on, or use it again. Raises UnknownDevice, BadRequest or StoreError."""
        device = self._find(gpu)
        if not drained and device in self._by_configuration():
            raise BadRequest(
                f"GPU {gpu} is drained by the configuration", hint="Take it out of `devices.drain` there."
            )
        if drained != (device in self._ordered):
            await self._store.set_setting(f"{_KEY}{device}", {"drained": drained})
            self._ordered ^= {device}
        self.republish()

    @property
    def _state(self) -> State:
        return self._loop.scheduler.state

    def _by_configuration(self) -> frozenset[DeviceId]:
        names, readings = self._configured(), self._state.ledger.readings.values()
        return frozenset(r.device.id for r in readings if names and may_use(names, r.device))

    def _find(self, gpu: str) -> DeviceId:
        return find_device([reading.device for reading in self._state.ledger.readings.values()], gpu).id
