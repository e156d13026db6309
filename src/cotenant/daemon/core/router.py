"""Leases on models, for the gateway."""

from collections.abc import Sequence

from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.status import served_model
from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.requests import ServedModel
from cotenant.domain.residencies import TicketId
from cotenant.interfaces import DEFAULT_TERMS, Lease, LeaseTerms
from cotenant.scheduling.events import RequestArrived


class FleetRouter:
    """The Router over a Loop. On a ready model with a free slot a lease is granted at once, in O(1)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._scheduler = loop.scheduler
        self._clock = loop.clock

    def models(self) -> Sequence[ServedModel]:
        """List the models that are served, loaded or not."""
        loop, state = self._loop, self._scheduler.state
        found = []
        for name, entry in loop.fleet.entries.items():
            model = state.models.get(name)
            residency = state.residency_of(model) if model else None
            running = loop.effects.running.get(residency.id) if residency else None
            log_path = loop.effects.log_paths.get(name)
            found.append(served_model(entry, residency, running, loop.served_since[name], log_path))
        return found

    def resolve(self, name: str) -> str:
        """Return the model's own name for a name or alias. Raises UnknownModel."""
        return self._loop.fleet.resolve(name)

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once on a ready model with a free slot. Raises UnknownModel."""
        loop = self._loop
        granted = self._scheduler.try_grant(loop.fleet.resolve(name), self._clock.now(), terms.keep_alive_s)
        return None if granted is None else loop.lease_on(*granted)

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease:
        """Wait for a lease, while the model is loaded if need be.

        Raises UnknownModel, QueueFull, WaitTimeout, DoesNotFit, EngineLoadFailed or ShuttingDown.
        """
        fleet, now = self._loop.fleet, self._clock.now()
        entry = fleet.entries[fleet.resolve(name)]
        timeout_s = entry.timeout_s if terms.timeout_s is None else terms.timeout_s
        priority = entry.priority if terms.priority is None else terms.priority
        ticket = TicketId(self._scheduler.state.next_id())
        return await self._loop.wait_for_lease(
            RequestArrived(now, ticket, entry.name, now + timeout_s, priority, terms.keep_alive_s)
        )

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Estimate how long one more request for a model would wait; None if it would not."""
        return self._scheduler.wait_estimate(self._loop.fleet.resolve(name), self._clock.now())
