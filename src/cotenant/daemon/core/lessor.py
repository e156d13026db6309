"""Leases of memory to guests, commands that are not ours, over the loop."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cotenant.config.configuration import ModelEntry
from cotenant.config.engine_options import unread_shape
from cotenant.daemon.core.fleet import Guest, find_device, spec_of
from cotenant.daemon.core.loop import Loop
from cotenant.domain.decisions import Decision, DecisionKind, LeaseStatus
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import BadRequest, UnknownLease
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import GuestTerms
from cotenant.domain.residencies import ResidencyState, TicketId
from cotenant.engines.guest import GuestHost
from cotenant.scheduling.events import GuestAsked, GuestEnded

_ENDS: Final = (DecisionKind.UNLOAD, DecisionKind.DEVICE_LOST)
_EXPLAINED: Final = 20
"""How many leases that have ended `why` can tell of."""
_GRANT_S: Final = 1.0
"""How long a grant takes, for the order of those who wait."""


class FleetLessor:
    """The Lessor over a Loop. The names of leases are none that a model can have."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._hosts: dict[str, GuestHost] = {}
        self._asked_at: dict[str, float] = {}
        self._ended: deque[str] = deque()

    def leases(self) -> Sequence[LeaseStatus]:
        """Return all leases, the oldest first."""
        return [self._status(name) for name in self._loop.guests]

    async def lease(self, terms: GuestTerms) -> LeaseStatus:
        """Wait for memory, and return what is leased. It has ended if the wait is cancelled.

        Raises UnknownDevice, BadRequest, DoesNotFit, WaitTimeout, QueueFull or ShuttingDown.
        """
        state, now = self._loop.scheduler.state, self._loop.clock.now()
        devices = [reading.device for reading in state.ledger.readings.values()]
        gpus = () if terms.gpu is None else (str(find_device(devices, terms.gpu).id),)
        for other, host in self._hosts.items():
            if terms.pid is not None and host.pid == terms.pid:
                raise BadRequest(f"process {terms.pid} has a lease already: {other}")
        ticket = TicketId(state.next_id())
        name = f"lease~{ticket}"
        recipe = Recipe(engine=EngineKind.COMMAND, parallel=1)
        shape = unread_shape(name, ModelKind.TEXT)
        entry = ModelEntry(
            name, None, recipe, shape, (), (), gpus=gpus, gpus_fallback=False, stated_bytes=terms.bytes
        )
        spec = replace(spec_of(entry, self._loop.effects.rules, _GRANT_S), guest=True)
        self._hosts[name], self._asked_at[name] = GuestHost(terms.pid), now
        self._loop.guests[name] = Guest(entry, self._hosts[name])
        granted = False
        try:
            asked = GuestAsked(now, ticket, name, now + terms.wait_s, spec=spec, lasts_s=terms.lasts_s)
            lease = await self._loop.wait_for_lease(asked)
            granted = True
        finally:
            if not granted:
                self._loop.post(GuestEnded(self._loop.clock.now(), name, "its client has left"))
                self._forget(name)
        lease.when_ended(lambda: self._forget(name))
        return self._status(name)

    async def ended(self, name: str) -> str:
        """Return why a lease has ended, once it has. Raises UnknownLease."""
        self._find(name)
        await self._loop.until(lambda: name not in self._loop.guests)
        told = [each.text for each in self._loop.feed.about(name) if each.kind in _ENDS]
        return told[-1] if told else "it has ended"

    def end(self, name: str, why: str) -> None:
        """End a lease. Raises UnknownLease."""
        self._find(name)
        self._loop.post(GuestEnded(self._loop.clock.now(), name, why))

    def why(self, name: str) -> Sequence[Decision]:
        """Return the last decisions about a lease, oldest first, also after its end. Raises UnknownLease."""
        told = self._loop.feed.about(name)
        if not told:
            self._find(name)
        return told

    def _find(self, name: str) -> Guest:
        found = self._loop.guests.get(name)
        if found is None:
            there = ", ".join(self._loop.guests) or "none"
            raise UnknownLease(f"there is no lease {name[:80]!r}", hint=f"There are: {there}.")
        return found

    def _forget(self, name: str) -> None:
        for kept in (self._loop.guests, self._hosts, self._asked_at):
            kept.pop(name, None)
        self._ended.append(name)
        if len(self._ended) > _EXPLAINED:
            self._loop.feed.forget(self._ended.popleft())

    def _status(self, name: str) -> LeaseStatus:
        loop, now = self._loop, self._loop.clock.now()
        state, host, asked = loop.scheduler.state, self._hosts[name], loop.guests[name].entry
        model, guest = state.models.get(name), state.guests.get(name)
        residency = None if model is None else state.residency_of(model)
        size = asked.stated_bytes or 0
        if residency is None:
            return LeaseStatus(name, "waiting", size, now - self._asked_at[name], pid=host.pid)
        return LeaseStatus(
            name,
            "leased" if residency.state is ResidencyState.READY else str(residency.state),
            size,
            now - residency.since,
            None if guest is None or guest.ends_at is None else max(0.0, guest.ends_at - now),
            residency.devices,
            {str(device): residency.bytes_by_device[device] for device in residency.devices},
            residency.measured_bytes,
            host.pid,
            host.engine.env if host.engine is not None else {},
        )
