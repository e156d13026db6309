"""The strategy `balanced`, which uses GPUs as evenly as possible: exact for few services, else by search.

The search improves greedy starts by exchanges between two GPUs. Then it solves groups of up to four GPUs that
hold few services exactly, the most uneven group first, within a bound of work.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

from cotenant.services.assign.balance_exact import (
    MAX_GPUS,
    MAX_SIZES,
    BalanceProblem,
    Cost,
    Where,
    best_balance,
    overflow,
    spread,
)
from cotenant.services.assign.memory import Chosen, FreeMemory
from cotenant.services.model import Service

_MAX_ALL_SUBSETS: Final = 7
_MAX_EXCHANGED: Final = 2
_MIN_GAIN: Final = 1e-9
"""Of spread: about one MiB on a GPU of 24 GiB."""

_EVEN: Final = 4e-8
"""Variance that counts as none: five MiB on each GPU of 24 GiB."""
_MAX_GROUP_SIZES: Final = 11
_MAX_WORK: Final = 250_000
"""Sums of sizes that solving groups may look at: some tens of milliseconds."""

Exchange = tuple[int, tuple[int, ...]]
"""Bytes, and which sizes they are."""


def balanced(services: Sequence[Service], needs: Mapping[str, int], memory: FreeMemory) -> Chosen:
    """Overfill GPUs by the fewest bytes, by none if possible, then minimise the variance of the used shares.

    The used share is what others occupy and services need, divided by the GPU's total. Exact for at most 12
    services with a known need and 4 GPUs; beyond, by search. Services without a known need go where most
    memory is free.
    """
    sized = [service for service in services if needs[service.name] > 0]
    problem = BalanceProblem(
        sizes=tuple(needs[service.name] for service in sized),
        totals=tuple(max(1, device.total_bytes) for device in memory.devices),
        bases=tuple(max(1, device.total_bytes) - memory.free(device) for device in memory.devices),
    )
    small = len(problem.sizes) <= MAX_SIZES and len(problem.totals) <= MAX_GPUS
    where = best_balance(problem) if small else good_balance(problem)
    chosen: Chosen = {}
    for service, gpu in zip(sized, where, strict=True):
        chosen[service.name] = memory.devices[gpu]
        memory.place(service, needs[service.name], memory.devices[gpu])
    return chosen | memory.spread([service for service in services if service.name not in chosen], needs)


def good_balance(problem: BalanceProblem) -> Where:
    """Return where each size goes: no exchange between two GPUs improves it by more than about a MiB.

    An exchange takes any of the sizes of a GPU that holds at most 7, else at most two, and as many from the
    other GPU. The best of several starts; ties go to the earlier start.
    """
    tried: list[Where] = []
    for start in _starts(problem):
        tried.append(_Exchanges(problem, start).run())
        if _even(problem, problem.cost(tried[-1])):
            return tried[-1]
    return _improve_groups(problem, min(tried, key=problem.cost))


def _even(problem: BalanceProblem, cost: Cost) -> bool:
    return cost < (0, _EVEN * len(problem.totals))


def _improve_groups(problem: BalanceProblem, where: Where) -> Where:
    """Solve groups of GPUs exactly until none gains or the work is used up."""
    work, cost = 0, problem.cost(where)
    tried: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    while not _even(problem, cost):
        group, sizes = next(((g, s) for g, s in _groups(problem, where) if (g, s) not in tried), (None, ()))
        work += 3 ** len(sizes)
        if group is None or work > _MAX_WORK:
            break
        tried.add((group, sizes))
        part = BalanceProblem(
            tuple(problem.sizes[i] for i in sizes),
            tuple(problem.totals[g] for g in group),
            tuple(problem.bases[g] for g in group),
        )
        changed = list(where)
        for i, g in zip(sizes, best_balance(part), strict=True):
            changed[i] = group[g]
        improved = _Exchanges(problem, tuple(changed)).run()
        found = problem.cost(improved)
        if found < (cost[0], cost[1] - _MIN_GAIN):
            where, cost = improved, found
    return where


def _groups(problem: BalanceProblem, where: Where) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return groups of GPUs that hold few sizes, with those sizes; the most uneven first."""
    loads = problem.loads(where)
    shares = [load / total for load, total in zip(loads, problem.totals, strict=True)]
    found = []
    for count in (3, MAX_GPUS):
        for group in combinations(range(len(shares)), count):
            sizes = tuple(i for i, g in enumerate(where) if g in group)
            if len(sizes) <= _MAX_GROUP_SIZES:
                uneven = overflow([loads[g] for g in group], [problem.totals[g] for g in group])
                found.append((-uneven, -spread([shares[g] for g in group]), group, sizes))
    return [(group, sizes) for *_, group, sizes in sorted(found)]


def _starts(problem: BalanceProblem) -> Iterator[Where]:
    """Yield layouts, largest size first: on the most free GPU, the least used, the fullest that holds it."""
    totals = problem.totals
    rules: tuple[Callable[[int, int, int], tuple[float, ...]], ...] = (
        lambda gpu, load, size: (load - totals[gpu],),
        lambda gpu, load, size: ((load + size) / totals[gpu],),
        lambda gpu, load, size: (max(0, load + size - totals[gpu]), totals[gpu] - load),
    )
    order = sorted(range(len(problem.sizes)), key=lambda i: -problem.sizes[i])
    for rule in rules:
        loads, where = list(problem.bases), [0] * len(problem.sizes)
        for i in order:
            size = problem.sizes[i]
            gpu = min(range(len(totals)), key=lambda g: (rule(g, loads[g], size), g))
            where[i] = gpu
            loads[gpu] += size
        yield tuple(where)


class _Exchanges:
    """Improves a layout by exchanges between two GPUs until no pair gains."""

    def __init__(self, problem: BalanceProblem, where: Where) -> None:
        self._problem = problem
        self._where = list(where)
        self._loads = problem.loads(where)
        self._parts = [self._parts_of(gpu) for gpu in range(len(problem.totals))]

    def run(self) -> Where:
        pairs = list(combinations(range(len(self._problem.totals)), 2))
        waiting = set(pairs)
        while waiting:
            for pair in pairs:
                if pair in waiting:
                    waiting.discard(pair)
                    if self._improve(*pair):
                        waiting.update(p for p in pairs if set(p) & set(pair))
        return tuple(self._where)

    def _parts_of(self, gpu: int) -> list[Exchange]:
        """Return what may leave a GPU, in ascending order of bytes, beginning with nothing."""
        sizes = self._problem.sizes
        here = [i for i, g in enumerate(self._where) if g == gpu]
        most = len(here) if len(here) <= _MAX_ALL_SUBSETS else _MAX_EXCHANGED
        parts = {0: ()} | {
            sum(sizes[i] for i in chosen): chosen
            for count in range(1, most + 1)
            for chosen in combinations(here, count)
        }
        return sorted(parts.items())

    def _improve(self, g: int, h: int) -> bool:
        """Make the best exchange between two GPUs; return whether it improved the layout."""
        totals, load_g, load_h = self._problem.totals, self._loads[g], self._loads[h]
        n_gpus, total_g, total_h = len(totals), totals[g], totals[h]
        others = [self._loads[i] / totals[i] for i in range(n_gpus) if i not in (g, h)]
        others_sum, others_squares = sum(others), sum(u * u for u in others)

        def cost(moved: int) -> Cost:
            """Return the overflow of both GPUs and the spread of all after `moved` bytes went from g to h."""
            u, v = (load_g - moved) / total_g, (load_h + moved) / total_h
            shares = others_sum + u + v
            over = max(0, load_g - moved - total_g) + max(0, load_h + moved - total_h)
            return over, others_squares + u * u + v * v - shares * shares / n_gpus

        # The best number of bytes to move: least overflow, then least spread, a parabola.
        a, b = 1 / total_g, 1 / total_h
        u, v = load_g * a, load_h * b
        slope = 2 * (v * b - u * a) - 2 * (others_sum + u + v) * (b - a) / n_gpus
        curve = 2 * (a * a + b * b) - 2 * (b - a) ** 2 / n_gpus
        enough, room = load_g - total_g, total_h - load_h
        target = min(max(-slope / curve, min(enough, room)), max(enough, room))
        least, best = cost(0), None
        incoming = self._parts[h]
        amounts = [amount for amount, _ in incoming]
        for out_bytes, out in self._parts[g]:
            after = bisect_left(amounts, out_bytes - target)
            for back_bytes, back in incoming[max(0, after - 1) : after + 1]:
                found = cost(out_bytes - back_bytes)
                if found[0] < least[0] or (found[0] == least[0] and found[1] < least[1] - _MIN_GAIN):
                    least, best = found, (out, back)
        if best is None:
            return False
        for chosen, gpu, other in ((best[0], g, h), (best[1], h, g)):
            for i in chosen:
                self._where[i] = other
                self._loads[gpu] -= self._problem.sizes[i]
                self._loads[other] += self._problem.sizes[i]
        self._parts[g], self._parts[h] = self._parts_of(g), self._parts_of(h)
        return True
