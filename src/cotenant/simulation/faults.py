"""Faults of a simulated world and their probabilities."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities from 0 to 1, each per occasion: a load, a ready engine, an exit, a request.

    `trouble_every_s` is the mean time between card faults (foreign memory use, a lost card, no readings) and
    operator actions; None for none.
    """

    slow_load: float = 0.0
    failed_load: float = 0.0
    death: float = 0.0
    slow_end: float = 0.0
    late_memory: float = 0.0
    lost_memory: float = 0.0
    leaves_waiting: float = 0.0
    leaves_served: float = 0.0
    trouble_every_s: float | None = None


NO_FAULTS = Faults()
