"""What a model takes alone on one device, for plans in a thread: `DeviceNeeds` are the scheduler's own."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final

from cotenant.domain.placements import Budget, Placement
from cotenant.planning.device_needs import Fit
from cotenant.planning.host_memory import held_bytes

_UNLIMITED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a model takes of a device if it is alone there, and of host RAM besides."""

    bytes: int
    host_bytes: int = 0


class Needs:
    """Plans each model once for each kind of device, until its `fit` is another one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Fit, dict[Hashable, Need | None]]] = {}

    def of(self, model: str, fit: Fit, budget: Budget, kind: Hashable) -> Need | None:
        """Return what a model needs of a device of any size; None if it may not be placed on it alone.

        It is planned once for all devices of a `kind`.
        """
        known = self._known.get(model)
        if known is None or known[0] is not fit:
            known = self._known[model] = (fit, {})
        if kind not in known[1]:
            known[1][kind] = _alone(fit, budget)
        return known[1][kind]

    def keep_only(self, models: set[str]) -> None:
        """Forget all other models."""
        for name in self._known.keys() - models:
            self._known.pop(name, None)


def _alone(fit: Fit, budget: Budget) -> Need | None:
    placed = fit([replace(budget, budget_bytes=_UNLIMITED, left_out=None)])
    if not isinstance(placed, Placement):
        return None
    for share in placed.used_shares:
        if share.device.id == budget.device.id:
            return Need(share.parts.total, held_bytes(placed))
    return None
