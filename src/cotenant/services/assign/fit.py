"""Prefers a layout that fits: repairs the choice of a strategy that overfills a GPU although it need not.

What counts is what services take with the budgets that they would get. All layouts of few services are
compared; of many, the strategy's and the most even one are improved by moves and exchanges.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Final

from cotenant.services.assign.balance import good_balance
from cotenant.services.assign.balance_exact import (
    MAX_GPUS,
    MAX_SIZES,
    BalanceProblem,
    Where,
    best_balance,
)
from cotenant.services.assign.memory import Placed, adjustable, adjusted_budgets, needed_bytes
from cotenant.services.model import Service, ServiceDevice

_MAX_LAYOUTS: Final = 4096
_MAX_COMPARED: Final = 3000
"""Layouts that the repair of many services may look at: some tenths of a second for 64 on 8 GPUs."""

Preference = Callable[[Sequence[Sequence[Service]], Sequence[Service]], tuple[float, ...]]
"""What a strategy wants least of, given each GPU's services, and those that are not where it put them."""

_Cost = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a strategy puts services: `where` has the position of the GPU for each of `movable`.

    `fixed` are the services of each GPU that stay. Services come with their manual budgets.
    """

    devices: Sequence[ServiceDevice]
    fixed: Sequence[Placed]
    movable: Placed
    where: Where


def fitting(layout: Layout, preference: Preference) -> Where:
    """Return a layout that overfills no GPU: the one given if it is one, or if none is found.

    Of several it is the one of least `preference`, then with the largest budgets, then that moves the fewest
    bytes.
    """
    search = _Search(layout, preference)
    if not search.overfill(layout.where):
        return layout.where
    n_gpus, n_services = len(layout.devices), len(layout.movable)
    if n_gpus**n_services <= _MAX_LAYOUTS:
        found = min(product(range(n_gpus), repeat=n_services), key=search.cost)
    else:
        found = search.improved(layout.where, until_it_fits=True)
        if search.overfill(found):
            found = search.improved(_even(layout))
    return layout.where if search.overfill(found) else found


def _even(layout: Layout) -> Where:
    """Return the most even layout with every adjustable service as small as can be."""
    bases = [
        min(device.total_bytes, device.occupied_bytes + sum(_least(*each) for each in fixed))
        for device, fixed in zip(layout.devices, layout.fixed, strict=True)
    ]
    problem = BalanceProblem(
        tuple(_least(*each) for each in layout.movable),
        tuple(max(1, device.total_bytes) for device in layout.devices),
        tuple(bases),
    )
    small = len(problem.sizes) <= MAX_SIZES and len(problem.totals) <= MAX_GPUS
    return best_balance(problem) if small else good_balance(problem)


def _least(service: Service, given_gb: float | None) -> int:
    return needed_bytes(service, 0.1 if adjustable(service, given_gb) else given_gb)


class _Search:
    """Compares layouts of the same services."""

    def __init__(self, layout: Layout, preference: Preference) -> None:
        self._layout = layout
        self._preference = preference
        self._needs = [needed_bytes(service, given) for service, given in layout.movable]
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        self._compared = 0

    def overfill(self, where: Where) -> int:
        """Return the bytes beyond the GPUs' totals."""
        return sum(excess for excess, _ in self._gpus(where))

    def cost(self, where: Where) -> _Cost:
        """Return what to minimise, most important first."""
        seen = self._gpus(where)
        moved = [i for i, gpu in enumerate(where) if gpu != self._layout.where[i]]
        return (
            sum(excess for excess, _ in seen),
            *self._preference(
                [
                    [one for one, _ in fixed] + [one for (one, _), at in self._placed(where) if at == gpu]
                    for gpu, fixed in enumerate(self._layout.fixed)
                ],
                [self._layout.movable[i][0] for i in moved],
            ),
            sum(cut for _, cut in seen),
            sum(self._needs[i] for i in moved),
            len(moved),
        )

    def improved(self, where: Where, *, until_it_fits: bool = False) -> Where:
        """Make the best move of one service, or exchange of two, as long as one improves the layout."""
        least = self.cost(where)
        while least[0] or not until_it_fits:
            found = self._best(self._moves(where), least) or self._best(self._exchanges(where), least)
            if found is None:
                break
            least, where = found
        return where

    def _best(self, layouts: Iterator[Where], least: _Cost) -> tuple[_Cost, Where] | None:
        """Return the best of the layouts, if it costs less than `least`."""
        best = None
        for each in layouts:
            if self._compared >= _MAX_COMPARED:
                return None
            self._compared += 1
            if self.overfill(each) <= least[0]:
                cost = self.cost(each)
                if cost < least:
                    least, best = cost, (cost, each)
        return best

    def _moves(self, where: Where) -> Iterator[Where]:
        for i, gpu in product(range(len(where)), range(len(self._layout.devices))):
            if where[i] != gpu:
                yield (*where[:i], gpu, *where[i + 1 :])

    def _exchanges(self, where: Where) -> Iterator[Where]:
        for i, j in combinations(range(len(where)), 2):
            if where[i] != where[j]:
                yield (*where[:i], where[j], *where[i + 1 : j], where[i], *where[j + 1 :])

    def _placed(self, where: Where) -> Iterator[tuple[tuple[Service, float | None], int]]:
        return zip(self._layout.movable, where, strict=True)

    def _gpus(self, where: Where) -> list[tuple[int, int]]:
        """Return, for each GPU, the bytes beyond its total, and those by which budgets limit services."""
        masks = [0] * len(self._layout.devices)
        for i, gpu in enumerate(where):
            masks[gpu] |= 1 << i
        return [self._gpu(gpu, mask) for gpu, mask in enumerate(masks)]

    def _gpu(self, gpu: int, mask: int) -> tuple[int, int]:
        if (gpu, mask) not in self._known:
            device = self._layout.devices[gpu]
            here = [*self._layout.fixed[gpu]]
            here += [each for i, each in enumerate(self._layout.movable) if mask >> i & 1]
            budgets = adjusted_budgets(device, here)
            needs = sum(needed_bytes(*each) for each in here)
            load = sum(needed_bytes(service, budgets.get(service.name, given)) for service, given in here)
            excess = max(0, device.occupied_bytes + load - device.total_bytes) if load else 0
            self._known[gpu, mask] = excess, needs - load
        return self._known[gpu, mask]
