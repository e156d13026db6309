"""An eviction policy that knows the log, for comparison with the others."""

from bisect import bisect_right
from collections.abc import Sequence

from cotenant.scheduling.policy import Policy, Victim
from cotenant.simulation.workload import Request


def foresight(requests: Sequence[Request]) -> Policy:
    """Return the policy that knows when each model is asked for next: the sooner, the more a reload costs.

    It is not the optimum, but shows what better predictions could gain.
    """
    arrivals: dict[str, list[float]] = {}
    for request in requests:
        arrivals.setdefault(request.model, []).append(request.at)

    def cost(victim: Victim) -> float:
        known = arrivals.get(victim.model, [])
        following = bisect_right(known, victim.now)
        if following == len(known):
            return 0.0
        queued_behind = bisect_right(known, known[following] + victim.load_s) - following - 1
        delay = victim.load_s * (1 + queued_behind / 2)
        return delay / max(1.0, known[following] - victim.now)

    return cost
