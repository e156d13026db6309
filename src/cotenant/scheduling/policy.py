"""Eviction policies: the cost of evicting a model. The cheapest is evicted first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cotenant.scheduling.demand import Demand, GapHistogram

_HORIZON_S: Final = 300.0
_MOST_RATE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Victim:
    """The inputs of a policy. Times are those of the scheduler's clock."""

    model: str
    demand: Demand
    load_s: float
    bytes: int
    now: float
    all_gaps: GapHistogram


Policy = Callable[[Victim], float]


def least_recently_used(victim: Victim) -> float:
    """The least recently used model is evicted: the cost falls with the idle time."""
    return 1.0 / (1.0 + victim.demand.idle_s(victim.now))


def greedy_dual_size_frequency(victim: Victim) -> float:
    """Frequency × reload time (Cherkasova 1998; FaasCache used it for keep-alive, ASPLOS 2021).

    It is not divided by size, since the search compares it with the bytes to free.
    """
    return victim.demand.rate(victim.now) * victim.load_s


def expected_delay(victim: Victim) -> float:
    """Probability of a request soon × the waiting that a reload causes, per second of the horizon.

    The waiting is `load_s · (1 + rate · load_s / 2)`: the request that misses, and those that queue after it
    (delayed hits; Atre et al., SIGCOMM 2020).
    """
    rate = min(victim.demand.rate(victim.now), _MOST_RATE)
    delay = victim.load_s * (1 + rate * victim.load_s / 2)
    return victim.demand.chance_soon(victim.now, victim.all_gaps) * delay / _HORIZON_S


POLICIES: Final[Mapping[str, Policy]] = {
    "lru": least_recently_used,
    "gdsf": greedy_dual_size_frequency,
    "cost": expected_delay,
}
"""Every policy by its name in the configuration. A new one is a function and a line here."""
DEFAULT_POLICY: Final = "gdsf"
