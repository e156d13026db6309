"""Leases on models, for the gateway."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.status import served_model
from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.errors import DoesNotFit
from cotenant.domain.requests import RequestRules, ServedModel
from cotenant.domain.residencies import ResidencyState, TicketId
from cotenant.interfaces import DEFAULT_TERMS, Lease, LeaseTerms
from cotenant.scheduling.events import RequestArrived

Remedies = Callable[[str], Callable[[], str]]
"""Prepares a search for what would let a model fit; it returns a sentence, empty if nothing is found."""


class FleetRouter:
    """The Router over a Loop. On a ready model with a free slot a lease is granted at once, in O(1)."""

    def __init__(self, loop: Loop, remedies: Remedies = lambda name: str) -> None:
        self._loop = loop
        self._remedies = remedies
        # What was found last for each model, with the refusal that it was for: a search takes up to a second.
        self._found: dict[str, tuple[str, str]] = {}
        self._searching = asyncio.Lock()
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
            log_path = loop.effects.log_of(model.residency if model else None, name)
            found.append(served_model(entry, residency, running, loop.served_since[name], log_path))
        return found

    def names(self) -> Collection[str]:
        """Return the names of the served models."""
        return self._loop.fleet.entries.keys()

    def resolve(self, name: str) -> str:
        """Return the model's own name for a name or alias. Raises UnknownModel."""
        return self._loop.fleet.resolve(name)

    def rules(self, name: str) -> RequestRules | None:
        """Return the rules of requests that use this name; None if there are none."""
        return self._loop.fleet.rules.get(name)

    def has_copies(self, name: str) -> bool:
        """Whether several engines may serve a model."""
        return name in self._scheduler.state.copied

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once on a ready model with a free slot. Raises UnknownModel."""
        loop = self._loop
        own, now = loop.fleet.resolve(name), self._clock.now()
        granted = self._scheduler.try_grant(own, now, terms.keep_alive_s, terms.conversation)
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
        deadline, keep_alive_s = now + timeout_s, terms.keep_alive_s
        request = RequestArrived(
            now, ticket, entry.name, deadline, priority, keep_alive_s, terms.conversation
        )
        try:
            return await self._loop.wait_for_lease(request)
        except DoesNotFit as refused:
            hint = await self._hint(entry.name, refused.message)
            raise DoesNotFit(refused.message, hint=hint, retry_after_s=refused.retry_after_s) from None

    async def _hint(self, name: str, refusal: str) -> str:
        """Return what would fit. It is searched in a thread, one at a time, and once for each refusal."""
        async with self._searching:
            if self._found.get(name, ("",))[0] != refusal:
                self._found[name] = refusal, await asyncio.to_thread(self._remedies(name))
            return self._found[name][1]

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Estimate how long one more request for a model would wait; None if it would not."""
        own, state = self._loop.fleet.resolve(name), self._scheduler.state
        estimate = self._scheduler.wait_estimate(own, self._clock.now())
        residency = state.residency_of(state.model(own))
        if estimate is None or residency is None or residency.state is not ResidencyState.LOADING:
            return estimate
        running = self._loop.effects.running.get(residency.id)
        seen = running.loaded_bytes if running is not None else None
        if seen is None or not seen.read_bytes or not seen.total_bytes:
            return estimate
        percent = min(99, seen.read_bytes * 100 // seen.total_bytes)
        return replace(estimate, waits_for=f"{estimate.waits_for}, {percent} % of its files read")
