"""The strategy `balanced`: GPUs as evenly used as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotenant.services.assign.balance_exact import MAX_GPUS, MAX_SIZES, best_balance
from cotenant.services.assign.balance_problem import BalanceProblem
from cotenant.services.assign.balance_search import good_balance
from cotenant.services.assign.free_memory import Chosen, Room
from cotenant.services.model import Service


def balanced(services: Sequence[Service], needs: Mapping[str, int], room: Room) -> Chosen:
    """Overfill GPUs by the fewest bytes, none if that can be, then keep the variance of used shares least.

    The used share is what others occupy and services need, by the GPU's total. Exact for at most 12 services
    with a known need and 4 GPUs; beyond, by search. What needs nothing goes where most is free.
    """
    weighty = [service for service in services if needs[service.name] > 0]
    problem = BalanceProblem(
        sizes=tuple(needs[service.name] for service in weighty),
        totals=tuple(max(1, device.total_bytes) for device in room.devices),
        bases=tuple(max(1, device.total_bytes) - room.free(device) for device in room.devices),
    )
    small = len(problem.sizes) <= MAX_SIZES and len(problem.totals) <= MAX_GPUS
    where = best_balance(problem) if small else good_balance(problem)
    chosen: Chosen = {}
    for service, gpu in zip(weighty, where, strict=True):
        chosen[service.name] = room.devices[gpu]
        room.place(service, needs[service.name], room.devices[gpu])
    return chosen | room.spread([service for service in services if service.name not in chosen], needs)
