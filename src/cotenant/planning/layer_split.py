"""One model over several devices: contiguous ranges of units, exactly.

Devices keep their order; any may stay empty. The bytes of a device grow with its range, so three searches
are exact without trying all partitions:

`fill` keeps, for each number of devices, the earliest start from which the rest still fits (going from the
back), then gives each device from the front as much as fits. `balance` and `speed` are dynamic
programs over (device, units placed) whose inner minimum moves monotonically, so each is linear in devices ×
units.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.analysis.footprint import Costs
from cotenant.domain.models import SplitPolicy

Range = tuple[int, int]
"""Units [start, stop) of one device; start = stop if it holds nothing."""

_INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """Units `costs.begin` … `costs.n_units` to be placed on devices with these budgets, in this order.

    `budgets` are bytes after overheads. `bandwidths` are bytes per second, needed by `speed` alone.
    """

    costs: Costs
    budgets: tuple[int, ...]
    bandwidths: tuple[float, ...] = ()

    @property
    def begin(self) -> int:
        """First unit to place."""
        return self.costs.begin

    @property
    def end(self) -> int:
        """One past the last unit: the output layer is always among those placed."""
        return self.costs.n_units

    def furthest(self, device: int, start: int, many: bool) -> int:
        """Return the largest stop such that units [start, stop) fit the device; `start` if none does."""
        total, stops = self.costs.total, range(start + 1, self.end + 1)
        return start + bisect_right(stops, self.budgets[device], key=lambda stop: total(start, stop, many))

    def earliest(self, device: int, stop: int, many: bool) -> int:
        """Return the smallest start such that units [start, stop) fit the device; `stop` if none does.

        The first unit has extra costs, so it is checked separately.
        """
        total, budget = self.costs.total, self.budgets[device]
        second = self.begin + 1
        starts = range(second, stop)
        first = second + bisect_left(starts, True, key=lambda start: total(start, stop, many) <= budget)
        if first == second and stop > self.begin and total(self.begin, stop, many) <= budget:
            return self.begin
        return min(first, stop)


def fill(problem: SplitProblem) -> tuple[Range, ...] | None:
    """Use the fewest devices that any contiguous partition can; give the first ones as much as fits."""
    for count in range(1, len(problem.budgets) + 1):
        if (found := _fill_exactly(problem, count)) is not None:
            return found
    return None


def _fill_exactly(problem: SplitProblem, count: int) -> tuple[Range, ...] | None:
    many = count > 1
    reach = _starts_from_the_back(problem, count, many)
    if reach[count][0] > problem.begin:
        return None
    ranges: list[Range] = []
    start, left = problem.begin, count
    for device in range(len(problem.budgets)):
        stop = start
        if left:
            furthest = problem.furthest(device, start, many)
            if furthest >= reach[left - 1][device + 1]:
                stop, left = furthest, left - 1
        ranges.append((start, stop))
        start = stop
    return tuple(ranges)


def _starts_from_the_back(problem: SplitProblem, count: int, many: bool) -> list[list[int]]:
    """Return reach[k][d]: the smallest s such that k devices among d … hold units [s, end)."""
    n_devices, end = len(problem.budgets), problem.end
    reach = [[end] * (n_devices + 1) for _ in range(count + 1)]
    for k in range(1, count + 1):
        for device in range(n_devices - 1, -1, -1):
            here = problem.earliest(device, reach[k - 1][device + 1], many)
            reach[k][device] = min(reach[k][device + 1], here)
    return reach


def balance(problem: SplitProblem) -> tuple[Range, ...] | None:
    """Minimise the largest fraction of a device's budget; None if that is over 1: nothing fits."""
    fraction, ranges = least_fraction(problem)
    return ranges if fraction <= 1 else None


def least_fraction(problem: SplitProblem) -> tuple[float, tuple[Range, ...]]:
    """Return the least maximum fraction that any partition reaches, fitting or not, and its ranges."""
    alone = [
        (problem.costs.total(problem.begin, problem.end, False) / max(budget, 1), device)
        for device, budget in enumerate(problem.budgets)
    ]
    best_alone, device = min(alone)
    together, ranges = _balance_many(problem)
    if best_alone <= together:
        return best_alone, only(problem, device)
    return together, ranges


def _balance_many(problem: SplitProblem) -> tuple[float, tuple[Range, ...]]:
    """Minimax over (device, stop).

    As `start` grows, the best for units before it rises and this device's own fraction falls; the best start
    is where they cross, and the crossing only moves forward with `stop`. The first unit's extra cost breaks
    the fall at one point only, start = begin, which is tried separately.
    """
    begin, end = problem.begin, problem.end
    total = problem.costs.total
    before = [0.0] + [_INFINITE] * (end - begin)
    choices: list[list[int]] = []
    for budget in problem.budgets:
        scale = 1 / max(budget, 1)
        after, starts = [0.0], [begin]
        pointer = begin + 1
        for stop in range(begin + 1, end + 1):
            while pointer < stop and before[pointer - begin] < total(pointer, stop, True) * scale:
                pointer += 1
            value, choice = before[stop - begin], stop
            for start in (begin, pointer - 1, pointer):
                if begin <= start < stop:
                    here = max(before[start - begin], total(start, stop, True) * scale)
                    if here < value:
                        value, choice = here, start
            after.append(value)
            starts.append(choice)
        before = after
        choices.append(starts)
    return before[-1], _trace_back(choices, begin, end)


def fastest(problem: SplitProblem) -> tuple[Range, ...] | None:
    """Minimise the time that one token takes to read what it needs, device after device."""
    alone = [
        (problem.costs.read_bytes(problem.begin, problem.end) / problem.bandwidths[device], device)
        for device, budget in enumerate(problem.budgets)
        if problem.costs.total(problem.begin, problem.end, False) <= budget
    ]
    together, ranges = _fastest_many(problem)
    if alone and min(alone)[0] <= together:
        return only(problem, min(alone)[1])
    return ranges if together < _INFINITE else None


def _fastest_many(problem: SplitProblem) -> tuple[float, tuple[Range, ...]]:
    """Additive program: bytes read are differences of prefix sums, so a sliding minimum solves each stop."""
    begin, end = problem.begin, problem.end
    read = [problem.costs.read_bytes(begin, stop) if stop > begin else 0 for stop in range(begin, end + 1)]
    before = [0.0] + [_INFINITE] * (end - begin)
    choices: list[list[int]] = []
    for device, bandwidth in enumerate(problem.bandwidths):
        after, starts = [0.0], [begin]
        window: deque[tuple[float, int]] = deque()
        for stop in range(begin + 1, end + 1):
            entering = stop - 1
            if entering > begin:
                key = before[entering - begin] - read[entering - begin] / bandwidth
                while window and window[-1][0] >= key:
                    window.pop()
                window.append((key, entering))
            earliest = problem.earliest(device, stop, True)
            while window and window[0][1] < earliest:
                window.popleft()
            value, choice = before[stop - begin], stop
            if window and window[0][0] + read[stop - begin] / bandwidth < value:
                value, choice = window[0][0] + read[stop - begin] / bandwidth, window[0][1]
            if earliest == begin and read[stop - begin] / bandwidth < value:
                value, choice = read[stop - begin] / bandwidth, begin
            after.append(value)
            starts.append(choice)
        before = after
        choices.append(starts)
    return before[-1], _trace_back(choices, begin, end)


def _trace_back(choices: Sequence[Sequence[int]], begin: int, end: int) -> tuple[Range, ...]:
    ranges: list[Range] = []
    stop = end
    for starts in reversed(choices):
        start = starts[stop - begin]
        ranges.append((start, stop))
        stop = start
    return tuple(reversed(ranges))


def only(problem: SplitProblem, device: int) -> tuple[Range, ...]:
    """Return the ranges of a model that is on one device alone."""
    begin, end = problem.begin, problem.end
    return tuple(
        (begin, end) if d == device else (begin, begin) if d < device else (end, end)
        for d in range(len(problem.budgets))
    )


SPLITS: Final[Mapping[SplitPolicy, Callable[[SplitProblem], tuple[Range, ...] | None]]] = {
    SplitPolicy.FILL: fill,
    SplitPolicy.BALANCE: balance,
    SplitPolicy.SPEED: fastest,
}
"""Each returns one Range per device, or None if no contiguous partition fits.

`fill`: the fewest devices; among these, the first devices first. `balance`: the least maximum fraction of
a budget. `speed`: the least sum over devices of bytes read per token ÷ bandwidth.
"""
