"""What services are told to use of a GPU that cannot hold what they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.memory import needed_bytes
from cotenant.services.model import Service, ServiceDevice

HEADROOM_BYTES: Final = 128 * MIB

Placed = Sequence[tuple[Service, float | None]]
"""Services on one GPU, each with the budget that it was given by hand."""


def adjusted_budgets(device: ServiceDevice, placed: Placed) -> dict[str, float]:
    """Return budgets in GB (2^30 bytes) for services on one GPU that cannot hold all; none where all fits.

    Only services with a budget variable can be told, and those to whom a budget was given keep theirs. The
    rule: the GPU's total, less what others occupy, less the other services there, less a headroom of 128 MiB,
    rounded down to 0.1 GB. Several such services are cut by the same share of what they need. On the
    reference card, 4,094 MiB with 329 in use, that is 3.5 GB for one that needs 6.8. A service for which less
    than 0.1 GB would be left is told nothing, since no budget would help.
    """
    cut = [service for service, given in placed if adjustable(service, given)]
    others = sum(needed_bytes(service, given) for service, given in placed if not adjustable(service, given))
    left = device.total_bytes - device.occupied_bytes - others
    needed = sum(needed_bytes(service) for service in cut)
    if needed <= left:
        return {}
    room = left - HEADROOM_BYTES
    tenths = {service.name: room * 10 * needed_bytes(service) // (needed * GIB) for service in cut}
    return {name: count / 10 for name, count in tenths.items() if count >= 1}


def adjustable(service: Service, given_gb: float | None) -> bool:
    """Tell whether a service's budget is ours to set."""
    return service.budget_env is not None and given_gb is None and bool(service.vram_bytes)
