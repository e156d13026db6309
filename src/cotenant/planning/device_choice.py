"""Which devices bear a model, among those that could."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Budget, Placement, Refusal

Fit = Callable[[Sequence[Budget]], Placement | Refusal]
"""Lays one model over the devices of these budgets."""


def choose_devices(
    fit: Fit, budgets: Sequence[Budget], used: Collection[DeviceId], *, together: bool = False
) -> Placement | Refusal:
    """Place a model on one device if one can bear it, else on as few as possible.

    An unused device that fits comes first, in the given order; else the fullest that still fits, so that room
    for larger models stays in one piece; never one that does not fit. A model that is better spread than
    packed, `together`, is laid over all devices at once.
    """
    if together:
        return fit(budgets)
    usable = [budget for budget in budgets if budget.left_out is None]
    unused = [budget for budget in usable if budget.device.id not in used]
    fullest_first = sorted(
        (budget for budget in usable if budget.device.id in used), key=lambda budget: budget.budget_bytes
    )
    for budget in (*unused, *fullest_first):
        alone = fit([budget])
        if isinstance(alone, Placement):
            return alone
    return fit(budgets)
