"""Chooses the devices for a model."""

from collections.abc import Collection, Sequence

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.device_needs import Fit
from cotenant.planning.machines import place_on_a_machine


def choose_devices(
    fit: Fit, budgets: Sequence[Budget], used: Collection[DeviceId], *, together: bool = False
) -> Placement | Refusal:
    """Place a model on one device if it fits there, else on as few as possible of one machine.

    The first unused device that fits is taken, in the given order; else the fullest one that still fits, so
    that larger models find contiguous room. A model that is better spread than packed (`together`) is placed
    on all devices of a machine at once.
    """
    if together:
        return place_on_a_machine(budgets, fit, most=True)
    usable = [budget for budget in budgets if budget.left_out is None]
    unused = [budget for budget in usable if budget.device.id not in used]
    fullest_first = sorted(
        (budget for budget in usable if budget.device.id in used), key=lambda budget: budget.budget_bytes
    )
    for budget in (*unused, *fullest_first):
        alone = fit([budget])
        if isinstance(alone, Placement):
            return alone
    return place_on_a_machine(budgets, fit)
