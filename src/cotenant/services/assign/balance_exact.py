"""The best balance of a few sizes over up to four GPUs, exactly.

The GPUs are split into two halves of one or two. Every subset of the sizes is a candidate for the first half.
Its bound assumes that the load of a half can be divided between its GPUs in any way. Subsets are tried from
the best bound on, until no bound beats the best found. Within a half, overflow is convex in the load of its
first GPU, so the sums of least overflow are adjacent; spread is a convex quadratic in the load of the first
GPU of each half, so for each sum of one half the best of the other is next to the parabola's vertex.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MAX_SIZES: Final = 12
MAX_GPUS: Final = 4

_INFINITE: Final = float("inf")


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

    For at most 12 sizes and 4 GPUs; the time doubles with every further size and triples at worst.
    """
    n_gpus, n_sizes = len(problem.totals), len(problem.sizes)
    if n_gpus == 1:
        return (0,) * n_sizes
    order = sorted(range(n_sizes), key=problem.sizes.__getitem__)
    gpus = sorted(range(n_gpus), key=lambda g: problem.totals[g] - problem.bases[g])
    ordered = BalanceProblem(
        tuple(problem.sizes[i] for i in order),
        tuple(problem.totals[g] for g in gpus),
        tuple(problem.bases[g] for g in gpus),
    )
    where = dict(zip(order, _Search(ordered).run(), strict=True))
    return tuple(gpus[where[i]] for i in range(n_sizes))


@dataclass(frozen=True, slots=True)
class _Half:
    """One GPU or two: their totals and what is in use there. The bounds rest on `weight` and `in_use`."""

    first: int
    totals: tuple[int, ...]
    bases: tuple[int, ...]
    total: int
    in_use: int
    weight: float

    @classmethod
    def of(cls, problem: BalanceProblem, start: int, stop: int) -> _Half:
        totals, bases = problem.totals[start:stop], problem.bases[start:stop]
        weight = sum(totals) ** 2 / sum(t * t for t in totals)
        return cls(start, totals, bases, sum(totals), sum(bases), weight)

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
        """Return how the shares of this half depend on the part of `load` on its first GPU."""
        one, inverse = self.bases[0] / self.totals[0], 1 / self.totals[0]
        if len(self.totals) == 1:
            one += load * inverse
            return _Shares(one, 0.0, one * one, 0.0, 0.0)
        two, other = (self.bases[1] + load) / self.totals[1], 1 / self.totals[1]
        return _Shares(
            one + two,
            inverse - other,
            one * one + two * two,
            2 * (one * inverse - two * other),
            inverse * inverse + other * other,
        )


@dataclass(frozen=True, slots=True)
class _Shares:
    """s0 + s1·x is the sum of a half's shares, q0 + q1·x + q2·x² that of their squares."""

    s0: float
    s1: float
    q0: float
    q1: float
    q2: float


@dataclass(frozen=True, slots=True)
class _Marginal:
    """m0 + m1·x + m2·x²: the least spread for a given x, if the other half could be divided in any way."""

    m0: float
    m1: float
    m2: float

    @classmethod
    def of(cls, this: _Shares, other: _Shares, n_gpus: int) -> _Marginal:
        """Take the minimum over y of Σu² - (Σu)²/n, a parabola in y whose linear term is linear in x."""
        s0, curve = this.s0 + other.s0, other.q2 - other.s1 * other.s1 / n_gpus
        linear, slope = other.q1 - 2 * s0 * other.s1 / n_gpus, -2 * this.s1 * other.s1 / n_gpus
        quarter = 1 / (4 * curve) if curve > 0 else 0.0
        return cls(
            this.q0 + other.q0 - s0 * s0 / n_gpus - linear * linear * quarter,
            this.q1 - 2 * s0 * this.s1 / n_gpus - 2 * linear * slope * quarter,
            this.q2 - this.s1 * this.s1 / n_gpus - slope * slope * quarter,
        )

    def at(self, x: float) -> float:
        return self.m0 + (self.m1 + self.m2 * x) * x

    def vertex(self) -> float:
        return -self.m1 / (2 * self.m2) if self.m2 > 0 else 0.0

    def least(self, load: int, largest: int) -> float:
        """Return the least value where x is a part of `load`, one of whose sizes is `largest`."""
        x = min(max(self.vertex(), 0), load)
        if load - largest < x < largest:
            return min(self.at(load - largest), self.at(largest))
        return self.at(x)


class _Search:
    """Sizes are in ascending order; similar GPUs are in the same half, which tightens the bounds."""

    def __init__(self, problem: BalanceProblem) -> None:
        self._problem = problem
        self._n_gpus = len(problem.totals)
        cut = (self._n_gpus + 1) // 2
        self._a, self._b = _Half.of(problem, 0, cut), _Half.of(problem, cut, self._n_gpus)
        self._all = (1 << len(problem.sizes)) - 1
        self._sums: dict[int, list[int]] = {0: [0]}
        self._loads = [0]
        for size in problem.sizes:
            self._loads += [load + size for load in self._loads]
        self._best: Cost = (sum(problem.sizes) + sum(problem.bases) + 1, _INFINITE)

    def run(self) -> Where:
        found = (0, 0, 0)
        for bound, subset in sorted(self._bounds()):
            if bound >= self._best:
                break
            found = self._divide(subset, bound[0]) or found
        return self._where(*found)

    def _bounds(self) -> Iterator[tuple[Cost, int]]:
        """Bound each subset on the first half: at best all shares of a half are equal to its level.

        The least sum of (u - m)² with Σ total·u given is (level - m)² · (Σ total)² / Σ total². Over m, for
        two halves, that is the harmonic weight times the squared distance of the levels.
        """
        a, b, whole = self._a, self._b, self._loads[-1]
        harmonic = a.weight * b.weight / (a.weight + b.weight)
        for subset, load in enumerate(self._loads):
            apart = (a.in_use + load) / a.total - (b.in_use + whole - load) / b.total
            excess = a.least_overflow(load) + b.least_overflow(whole - load)
            yield (excess, harmonic * apart * apart), subset

    def _divide(self, subset: int, excess_bound: int) -> tuple[int, int, int] | None:
        """Divide `subset` and the rest within their halves; return the division if it is the best so far."""
        rest = self._all ^ subset
        load, other = self._loads[subset], self._loads[rest]
        of_a, of_b = self._a.shares(load), self._b.shares(other)
        over_a = _Marginal.of(of_a, of_b, self._n_gpus)
        over_b = _Marginal.of(of_b, of_a, self._n_gpus)
        if excess_bound == self._best[0]:
            bound = max(over_a.least(load, self._largest(subset)), over_b.least(other, self._largest(rest)))
            if bound >= self._best[1]:
                return None
        excess_a, xs = self._a.of_least_overflow(load, self._sums_of(subset, self._a))
        excess_b, ys = self._b.of_least_overflow(other, self._sums_of(rest, self._b))
        excess = excess_a + excess_b
        if excess > self._best[0]:
            return None
        limit = self._best[1] if excess == self._best[0] else _INFINITE
        if len(xs) <= len(ys):
            least, x, y = _least_spread(over_a, xs, of_a, of_b, ys, limit, self._n_gpus)
        else:
            least, y, x = _least_spread(over_b, ys, of_b, of_a, xs, limit, self._n_gpus)
        if least >= limit:
            return None
        self._best = excess, least
        return subset, x, y

    def _largest(self, subset: int) -> int:
        """Return the largest size of a subset; sizes are in ascending order."""
        return self._problem.sizes[subset.bit_length() - 1] if subset else 0

    def _sums_of(self, subset: int, half: _Half) -> list[int]:
        """Return every sum of sizes in the subset, ascending; a half of one GPU needs none."""
        if len(half.totals) == 1:
            return []
        if subset not in self._sums:
            size = self._largest(subset)
            fewer = self._sums_of(subset ^ (1 << (subset.bit_length() - 1)), half)
            self._sums[subset] = sorted({*fewer, *[s + size for s in fewer]})
        return self._sums[subset]

    def _where(self, subset: int, x: int, y: int) -> Where:
        where = [0] * len(self._problem.sizes)
        for half, mask, load in ((self._a, subset, x), (self._b, self._all ^ subset, y)):
            on_first = mask if len(half.totals) == 1 else self._subset_with(mask, load)
            for i in range(len(where)):
                if mask >> i & 1:
                    where[i] = half.first if on_first >> i & 1 else half.first + 1
        return tuple(where)

    def _subset_with(self, mask: int, load: int) -> int:
        """Return the part of `mask` whose sizes sum to `load`, the greatest as a number."""
        part = mask
        while self._loads[part] != load:
            part = (part - 1) & mask
        return part


def _least_spread(
    over: _Marginal, xs: list[int], of_x: _Shares, of_y: _Shares, ys: list[int], limit: float, n_gpus: int
) -> tuple[float, int, int]:
    """Return the least spread with its x and y; `limit` if none is below it.

    x goes outwards from the vertex of what it can reach at best; y is next to the vertex that x leaves.
    """
    least, best_x, best_y = limit, xs[0], ys[0]
    m0, m1, m2 = over.m0, over.m1, over.m2
    curve = of_y.q2 - of_y.s1 * of_y.s1 / n_gpus
    half = 0.5 / curve if curve > 0 else 0.0
    vertex_0 = (2 * (of_x.s0 + of_y.s0) * of_y.s1 / n_gpus - of_y.q1) * half
    vertex_1 = 2 * of_x.s1 * of_y.s1 / n_gpus * half
    middle = bisect_left(xs, over.vertex())
    for outwards in (xs[middle:], reversed(xs[:middle])):
        for x in outwards:
            reachable = m0 + (m1 + m2 * x) * x
            if reachable >= least:
                break
            vertex = vertex_0 + vertex_1 * x
            after = bisect_left(ys, vertex)
            for y in ys[max(0, after - 1) : after + 1]:
                away = y - vertex
                value = reachable + curve * away * away
                if value < least:
                    least, best_x, best_y = value, x, y
    return least, best_x, best_y
