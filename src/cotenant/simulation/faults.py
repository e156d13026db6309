"""What may go wrong in a simulated world, and how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances from 0 to 1, each of one occasion: a load, an engine that became ready, an end, a request.

    `trouble_every_s` is the mean time between things that befall a card (others take memory, it disappears,
    it does not answer) or that an operator does; None: nothing does.
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
ALL_FAULTS = Faults(
    slow_load=0.1,
    failed_load=0.08,
    death=0.2,
    slow_end=0.15,
    late_memory=0.2,
    lost_memory=0.05,
    leaves_waiting=0.1,
    leaves_served=0.1,
    trouble_every_s=20.0,
)
