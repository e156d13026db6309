"""The models that a key may use, in place of all that are served."""

from collections.abc import Collection, Sequence

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.errors import UnknownModel
from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms, RequestRules, ServedModel
from cotenant.interfaces import Lease, Router


class AllowedModels:
    """A router as a key sees it that may use some models only: others are not served to it."""

    def __init__(self, router: Router, allowed: Collection[str]) -> None:
        self._router = router
        self._allowed = frozenset(allowed)

    def models(self) -> Sequence[ServedModel]:
        """List the models that are allowed by a name or an alias."""
        found = self._router.models()
        return [each for each in found if not self._allowed.isdisjoint((each.name, *each.aliases))]

    def names(self) -> Collection[str]:
        """The names of the models."""
        return [model.name for model in self.models()]

    def resolve(self, name: str) -> str:
        """Return the name of an allowed model. Raises UnknownModel, which names no other."""
        try:
            own = self._router.resolve(name)
        except UnknownModel:
            raise UnknownModel.among(name, self.names()) from None
        if own not in self._allowed and own not in self.names():
            raise UnknownModel.among(name, self.names())
        return own

    def rules(self, name: str) -> RequestRules | None:
        """Return the rules of requests that use this name."""
        return self._router.rules(name)

    def has_copies(self, name: str) -> bool:
        """Whether several engines may serve a model."""
        return self._router.has_copies(name)

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease | None:
        """Grant a lease at once, or return None."""
        return self._router.try_lease(name, terms)

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> Lease:
        """Wait for a lease."""
        return await self._router.lease(name, terms)

    def wait_estimate(self, name: str) -> WaitEstimate | None:
        """Return what one more request may expect."""
        return self._router.wait_estimate(name)
