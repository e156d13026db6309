"""Chooses the cheapest set of victims that frees enough memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import ResidencyId

_EXHAUSTIVE: Final = 12


@dataclass(frozen=True, slots=True)
class Candidate:
    """A residency that may be evicted: its cost (expected seconds of waiting) and its bytes by device."""

    residency: ResidencyId
    cost: float
    bytes_by_device: Mapping[DeviceId, int]


def cheapest_on_device(
    candidates: Sequence[Candidate], device: DeviceId, needed_bytes: int, min_victims: int = 0
) -> tuple[Candidate, ...] | None:
    """Return the set with the least total cost that frees `needed_bytes` on one device; None if none does.

    It has at least `min_victims` members, for a device with a limit on engines. The result is exact for up to
    12 candidates on the device; for more, candidates are added cheapest per byte first, then unneeded ones
    are removed. Ties go to fewer victims, then to lower ids.
    """
    here = [c for c in candidates if c.bytes_by_device.get(device, 0) > 0]
    if sum(c.bytes_by_device[device] for c in here) < needed_bytes or len(here) < min_victims:
        return None
    if len(here) > _EXHAUSTIVE:
        return _greedy(here, device, needed_bytes, min_victims)
    enough = (
        chosen
        for count in range(min_victims, len(here) + 1)
        for chosen in combinations(here, count)
        if sum(c.bytes_by_device[device] for c in chosen) >= needed_bytes
    )
    return min(
        enough, key=lambda of: (sum(c.cost for c in of), len(of), [c.residency for c in of]), default=None
    )


def cheapest_anywhere(
    candidates: Sequence[Candidate], fits: Callable[[Sequence[Candidate]], Placement | None]
) -> tuple[tuple[Candidate, ...], Placement] | None:
    """Return victims on any devices without which `fits` places the model, and the placement.

    Candidates are added cheapest first until it fits; then unneeded ones are removed, most expensive first.
    The set is minimal, but not always the cheapest.
    """
    chosen: list[Candidate] = []
    placement = None
    for candidate in sorted(candidates, key=lambda c: (c.cost, c.residency)):
        chosen.append(candidate)
        placement = fits(chosen)
        if placement is not None:
            break
    if placement is None:
        return None
    for candidate in sorted(chosen, key=lambda c: (-c.cost, c.residency)):
        without = [c for c in chosen if c is not candidate]
        spared = fits(without)
        if spared is not None:
            chosen, placement = without, spared
    return tuple(chosen), placement


def freed_by(
    victims: Iterable[Mapping[DeviceId, int]],
) -> tuple[Counter[DeviceId], Counter[DeviceId]]:
    """Return the bytes and the engines that end with victims, by device, given what each of them holds."""
    freed: Counter[DeviceId] = Counter()
    engines: Counter[DeviceId] = Counter()
    for held in victims:
        freed.update(held)
        engines.update(held.keys())
    return freed, engines


def _greedy(
    here: Sequence[Candidate], device: DeviceId, needed_bytes: int, min_victims: int
) -> tuple[Candidate, ...]:
    chosen: list[Candidate] = []
    freed = 0
    for candidate in sorted(here, key=lambda c: (c.cost / c.bytes_by_device[device], c.residency)):
        if freed >= needed_bytes and len(chosen) >= min_victims:
            break
        chosen.append(candidate)
        freed += candidate.bytes_by_device[device]
    for candidate in sorted(chosen, key=lambda c: (-c.cost, c.residency)):
        if len(chosen) > min_victims and freed - candidate.bytes_by_device[device] >= needed_bytes:
            chosen.remove(candidate)
            freed -= candidate.bytes_by_device[device]
    return tuple(chosen)
