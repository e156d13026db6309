"""The best balance of a few sizes over up to four GPUs, exactly.

The GPUs are split into two halves of one or two. Every subset of the sizes is a candidate for the first half.
Its bound assumes that the load of a half can be divided between its GPUs in any way. Subsets are tried from
the best bound on, until no bound beats the best found. Within a half, overflow is convex in the load of its
first GPU, so the sums of least overflow are adjacent; spread is a convex quadratic in the load of the first
GPU of each half, so for each sum of one half the best of the other is next to the parabola's vertex.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Self

MAX_SIZES: Final = 12
MAX_GPUS: Final = 4

Cost = tuple[int, float]
"""Overflow in bytes, then spread: compared in this order."""

Where = tuple[int, ...]
"""For each size, the position of its GPU."""


@dataclass(frozen=True, slots=True)
class BalanceProblem:
    """`sizes` to be placed on GPUs of `totals`, of which `bases` are in use already; all in bytes."""

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


def best_balance(problem: BalanceProblem) -> Where:
    """Return where each size goes: the least overflow, then the least spread.

    For at most 12 sizes and 4 GPUs; the time triples at worst with every further size.
    """
    n_gpus, n_sizes = len(problem.totals), len(problem.sizes)
    if n_gpus == 1:
        return (0,) * n_sizes
    # Sizes in ascending order make the sums of a subset cheap; similar GPUs in one half tighten the bounds.
    order = sorted(range(n_sizes), key=problem.sizes.__getitem__)
    gpus = sorted(range(n_gpus), key=lambda g: problem.totals[g] - problem.bases[g])
    ordered = BalanceProblem(
        tuple(problem.sizes[i] for i in order),
        tuple(problem.totals[g] for g in gpus),
        tuple(problem.bases[g] for g in gpus),
    )
    where = dict(zip(order, _search(ordered), strict=True))
    return tuple(gpus[where[i]] for i in range(n_sizes))


_Shares = tuple[float, float, float, float, float]
"""s0, s1, q0, q1, q2: s0 + s1·x is the sum of a half's shares, q0 + q1·x + q2·x² that of their squares."""


@dataclass(frozen=True, slots=True)
class _Half:
    """One GPU or two, the first by position: their totals and what is in use there."""

    first: int
    totals: tuple[int, ...]
    bases: tuple[int, ...]

    @classmethod
    def of(cls, problem: BalanceProblem, start: int, stop: int) -> Self:
        return cls(start, problem.totals[start:stop], problem.bases[start:stop])

    def level(self, load: int) -> float:
        """Return the used share if `load` could be divided in any way."""
        return (sum(self.bases) + load) / sum(self.totals)

    def least_overflow(self, load: int) -> int:
        """Return the overflow if `load` could be divided in any way."""
        free = [total - base for total, base in zip(self.totals, self.bases, strict=True)]
        beyond = sum(-f for f in free if f < 0)
        return beyond + max(0, load - sum(f for f in free if f > 0))

    def of_least_overflow(self, load: int, sums: list[int]) -> tuple[int, list[int]]:
        """Return the least overflow of dividing `load`, and which `sums` on the first GPU reach it."""
        room = self.totals[0] - self.bases[0]
        if len(self.totals) == 1:
            return max(0, load - room), [load]
        rest = load - (self.totals[1] - self.bases[1])
        low, high = min(room, rest), max(room, rest)
        flat = max(0, rest - room)
        start, stop = bisect_left(sums, low), bisect_right(sums, high)
        if start < stop:
            return flat, sums[start:stop]
        nearest = sums[max(0, start - 1) : start + 1]
        beyond = [max(low - x, x - high) for x in nearest]
        least = min(beyond)
        return flat + least, [x for x, more in zip(nearest, beyond, strict=True) if more == least]

    def shares(self, load: int) -> _Shares:
        """Return how the shares of this half depend on the part x of `load` on its first GPU."""
        one, inverse = self.bases[0] / self.totals[0], 1 / self.totals[0]
        if len(self.totals) == 1:
            one += load * inverse
            return one, 0, one * one, 0, 0
        two, other = (self.bases[1] + load) / self.totals[1], 1 / self.totals[1]
        return (
            one + two,
            inverse - other,
            one * one + two * two,
            2 * (one * inverse - two * other),
            inverse * inverse + other * other,
        )


def _search(problem: BalanceProblem) -> Where:
    n_gpus, n_sizes = len(problem.totals), len(problem.sizes)
    cut = (n_gpus + 1) // 2
    a, b = _Half.of(problem, 0, cut), _Half.of(problem, cut, n_gpus)
    loads = [0]
    for size in problem.sizes:
        loads += [load + size for load in loads]
    weights = [sum(half.totals) ** 2 / sum(t * t for t in half.totals) for half in (a, b)]
    harmonic = weights[0] * weights[1] / sum(weights)

    def bound(subset: int) -> Cost:
        """Bound a subset on the first half: at best all shares of a half are equal to its level.

        The least sum of (u - m)² with Σ total·u given is (level - m)² · (Σ total)² / Σ total². Over m, for
        two halves, that is the harmonic weight times the squared distance of the levels.
        """
        load, other = loads[subset], loads[-1] - loads[subset]
        apart = a.level(load) - b.level(other)
        return a.least_overflow(load) + b.least_overflow(other), harmonic * apart * apart

    @cache
    def sums(subset: int) -> list[int]:
        """Return every sum of sizes in the subset, ascending."""
        if not subset:
            return [0]
        largest = subset.bit_length() - 1
        fewer = sums(subset ^ (1 << largest))
        return sorted({*fewer, *[s + problem.sizes[largest] for s in fewer]})

    best: Cost = (loads[-1] + sum(problem.bases) + 1, math.inf)
    found = (0, 0, 0)
    everything = len(loads) - 1
    for least, subset in sorted((bound(subset), subset) for subset in range(len(loads))):
        if least >= best:
            break
        load, other = loads[subset], loads[everything ^ subset]
        excess_a, xs = a.of_least_overflow(load, sums(subset))
        excess_b, ys = b.of_least_overflow(other, sums(everything ^ subset))
        if excess_a + excess_b > best[0]:
            continue
        if len(xs) <= len(ys):
            spread_, x, y = min(_spreads(xs, a.shares(load), ys, b.shares(other), n_gpus))
        else:
            spread_, y, x = min(_spreads(ys, b.shares(other), xs, a.shares(load), n_gpus))
        if (excess_a + excess_b, spread_) < best:
            best, found = (excess_a + excess_b, spread_), (subset, x, y)
    where = [0] * n_sizes
    for half, mask, load in ((a, found[0], found[1]), (b, everything ^ found[0], found[2])):
        # The part of the half that is on its first GPU: of equal ones, the greatest as a number.
        part = mask
        while loads[part] != load:
            part = (part - 1) & mask
        for i in range(n_sizes):
            if mask >> i & 1:
                where[i] = half.first if part >> i & 1 else half.first + 1
    return tuple(where)


def _spreads(
    xs: list[int], of_x: _Shares, ys: list[int], of_y: _Shares, n_gpus: int
) -> Iterator[tuple[float, int, int]]:
    """Yield the least spread for each x, with its x and y.

    The spread is Σu² - (Σu)²/n: for each x a parabola in y, whose least is next to its vertex.
    """
    s0, s1, q0, q1, q2 = of_x
    t0, t1, r0, r1, r2 = of_y
    curve = r2 - t1 * t1 / n_gpus
    for x in xs:
        shares = s0 + s1 * x + t0
        base = q0 + (q1 + q2 * x) * x + r0 - shares * shares / n_gpus
        slope = r1 - 2 * shares * t1 / n_gpus
        after = bisect_left(ys, -slope / (2 * curve)) if curve > 0 else 0
        for y in ys[max(0, after - 1) : after + 1]:
            yield base + (slope + curve * y) * y, x, y
