"""Sizes to be laid over GPUs that are in use already, and how good a way of doing so is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cost = tuple[int, float]
"""Overflow in bytes, then spread: compared in this order."""

Where = tuple[int, ...]
"""For each size, the position of its GPU."""


@dataclass(frozen=True, slots=True)
class BalanceProblem:
    """`sizes` to be laid over GPUs of `totals`, of which `bases` are in use already; all in bytes."""

    sizes: tuple[int, ...]
    totals: tuple[int, ...]
    bases: tuple[int, ...]

    def loads(self, where: Sequence[int]) -> list[int]:
        """Return the bytes in use on each GPU, bases and sizes."""
        loads = list(self.bases)
        for size, gpu in zip(self.sizes, where, strict=True):
            loads[gpu] += size
        return loads

    def cost(self, where: Sequence[int]) -> Cost:
        """Return the overflow over all GPUs, and the spread: GPUs × variance of load / total."""
        loads = self.loads(where)
        shares = [load / total for load, total in zip(loads, self.totals, strict=True)]
        return overflow(loads, self.totals), spread(shares)


def overflow(loads: Sequence[int], totals: Sequence[int]) -> int:
    """Return the bytes by which loads exceed totals, summed over GPUs."""
    return sum(load - total for load, total in zip(loads, totals, strict=True) if load > total)


def spread(shares: Sequence[float]) -> float:
    """Return the sum of squared differences from the mean: GPUs × variance."""
    mean = sum(shares) / len(shares)
    return sum((share - mean) ** 2 for share in shares)
