"""The advice that is in force for a model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActiveAdvice:
    """The advice in force for a model: each part until an instant, 0 if there is none.

    A factor on its keep-alive, a soft pin (others are evicted first), a load before any request.
    """

    factor: float = 1.0
    factor_until: float = 0.0
    pinned_until: float = 0.0
    prefetch_until: float = 0.0

    @property
    def ends_at(self) -> float | None:
        """When the first of its parts ends; None if none is in force."""
        instants = (self.factor_until, self.pinned_until, self.prefetch_until)
        return min((instant for instant in instants if instant), default=None)
