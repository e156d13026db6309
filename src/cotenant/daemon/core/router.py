"""Leases on models, for the gateway."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from cotenant.daemon.core.groups import in_order, served_group
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.status import served_model
from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.errors import CotenantError, DoesNotFit, EngineLoadFailed, QueueFull, UnknownModel
from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms, RequestRules, ServedModel
from cotenant.domain.residencies import ResidencyState, TicketId
from cotenant.interfaces import Lease
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
        """List the models that are served, loaded or not, and the groups of them."""
        loop, state = self._loop, self._scheduler.state
        found = []
        for name, entry in loop.fleet.entries.items():
            model = state.models.get(name)
            residency = state.residency_of(model) if model else None
            running = loop.effects.running.get(residency.id) if residency else None
            log = loop.effects.log_of(model.residency if model else None, name), loop.effects.log_node(name)
            found.append(served_model(entry, residency, running, loop.served_since[name], *log))
        known = {model.name: model for model in found}
        groups = (served_group(state, group, known) for group in loop.groups.values())
        return [*found, *(group for group in groups if group is not None)]

    def names(self) -> Collection[str]:
        """Return the names of the served models and groups."""
        return self._loop.fleet.entries.keys() | self._loop.groups.keys()

    def resolve(self, name: str) -> str:
        """Return the model's own name for a name or alias, and a group's for itself. Raises UnknownModel."""
        groups = self._loop.groups
        return name if groups and name in groups else self._loop.fleet.resolve(name)

    def rules(self, name: str) -> RequestRules | None:
        """Return the rules of requests that use this name; None if there are none."""
        group = self._loop.groups.get(name)
        return self._loop.fleet.rules.get(name) if group is None else group.rules or None

    def has_copies(self, name: str) -> bool:
        """Whether several engines may serve a model."""
        group, copied = self._loop.groups.get(name), self._scheduler.state.copied
        return name in copied if group is None else not copied.keys().isdisjoint(group.members)

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once on a ready model with a free slot. Raises UnknownModel."""
        loop = self._loop
        if loop.groups and name in loop.groups:
            leases = (self.try_lease(member, terms) for member in self._members(name)[:1])
            return next((lease for lease in leases if lease is not None), None)
        own, now = loop.fleet.resolve(name), self._clock.now()
        granted = self._scheduler.try_grant(own, now, terms.keep_alive_s, terms.conversation)
        return None if granted is None else loop.lease_on(*granted)

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease:
        """Wait for a lease, while the model is loaded if need be; of a group the next member is a fallback.

        Raises UnknownModel, QueueFull, WaitTimeout, DoesNotFit, EngineLoadFailed or ShuttingDown.
        """
        if name not in self._loop.groups:
            return await self._lease(name, terms)
        refusals: list[CotenantError] = []
        for member in self._members(name):
            try:
                return await self._lease(member, terms)
            except (DoesNotFit, EngineLoadFailed, QueueFull) as refused:
                refusals.append(refused)
        raise refusals[0]

    async def _lease(self, name: str, terms: LeaseTerms) -> Lease:
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

    def _members(self, name: str) -> Sequence[str]:
        """Return the members of a group, the one that serves now first. Raises UnknownModel."""
        found = in_order(self._scheduler.state, self._loop.groups[name])
        if not found:
            raise UnknownModel(f"no model of the group {name} is served")
        return found

    async def _hint(self, name: str, refusal: str) -> str:
        """Return what would fit. It is searched in a thread, one at a time, and once for each refusal."""
        async with self._searching:
            if self._found.get(name, ("",))[0] != refusal:
                self._found[name] = refusal, await asyncio.to_thread(self._remedies(name))
            return self._found[name][1]

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Estimate how long one more request for a model would wait; None if it would not."""
        if name in self._loop.groups:
            name = self._members(name)[0]
        own, state = self._loop.fleet.resolve(name), self._scheduler.state
        estimate = self._scheduler.wait_estimate(own, self._clock.now())
        residency = state.residency_of(state.model(own))
        if estimate is None or residency is None or residency.state is not ResidencyState.LOADING:
            return estimate
        running = self._loop.effects.running.get(residency.id)
        fetches = self._loop.effects.fetches(own)
        fetch = next((each for each in fetches if each.node == residency.node), None)
        if fetch is not None:
            percent = fetch.received_bytes * 100 // max(1, fetch.total_bytes)
            what = f"{estimate.waits_for}, {percent} % of {fetch.file} fetched by {fetch.node}"
            return replace(estimate, waits_for=what)
        seen = running.loaded_bytes if running is not None else None
        if seen is None or not seen.read_bytes or not seen.total_bytes:
            return estimate
        percent = min(99, seen.read_bytes * 100 // seen.total_bytes)
        return replace(estimate, waits_for=f"{estimate.waits_for}, {percent} % of its files read")
