"""Devices by kind and by the room on them: a choice among many needs no look at all."""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cotenant.planning.device_needs import DeviceNeeds, Kind

Rank: TypeAlias = tuple[bool, int, int]
"""How devices that fit are preferred, least first: by `rank`."""


Soonness: TypeAlias = tuple[bool, float]
"""How soon a model loads on a machine, least first: whether it must be fetched, and the seconds."""

Soonest: TypeAlias = tuple[bool, bool, float, Rank]
"""A device: whether its machine must fetch the model, whether it is used, the seconds, and its rank."""


def rank(place: int, room: int, *, used: bool) -> Rank:
    """Rank a device: unused ones in planned order, then used ones, the fullest first."""
    return (True, room, place) if used else (False, place, 0)


def place_of(best: Rank) -> int:
    """Return the place of a ranked device."""
    return best[2] if best[0] else best[1]


@dataclass(slots=True)
class _OfKind:
    """The usable devices of a kind, as pairs: used ones by room and place, unused ones by place and room."""

    used: list[tuple[int, int]] = field(default_factory=list)
    unused: list[tuple[int, int]] = field(default_factory=list)
    unused_rooms: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: Kind
    room: int
    used: bool
    node: str | None


class Rooms:
    """What may be planned on each usable device now, in bytes, by its place in the planned order.

    `of_nodes` are the sums of machines, which are named as devices name them.
    """

    def __init__(self) -> None:
        self.of_nodes: Counter[str | None] = Counter()
        self._kinds: dict[Kind, _OfKind] = {}
        self._entries: dict[int, _Entry] = {}

    def put(self, place: int, kind: Kind, room: int, node: str | None, *, used: bool) -> None:
        """Record the room of a device on a node."""
        entry = _Entry(kind, room, used, node)
        if self._entries.get(place) == entry:
            return
        self.drop(place)
        self._entries[place] = entry
        self.of_nodes[node] += room
        known = self._kinds.setdefault(kind, _OfKind())
        if used:
            insort(known.used, (room, place))
        else:
            insort(known.unused, (place, room))
            insort(known.unused_rooms, room)

    def drop(self, place: int) -> None:
        """Record that a device cannot be used."""
        entry = self._entries.pop(place, None)
        if entry is None:
            return
        self.of_nodes[entry.node] -= entry.room
        known = self._kinds[entry.kind]
        if entry.used:
            del known.used[bisect_left(known.used, (entry.room, place))]
        else:
            del known.unused[bisect_left(known.unused, (place, entry.room))]
            del known.unused_rooms[bisect_left(known.unused_rooms, entry.room)]

    def room(self, place: int) -> int:
        """Return the room of a device; 0 if it cannot be used."""
        entry = self._entries.get(place)
        return entry.room if entry else 0

    def best(self, needs: DeviceNeeds, without: Collection[int]) -> Rank | None:
        """Return the first unused device on which a model fits, else the fullest used one; None without any.

        Devices at the places `without` are left out.
        """
        found: Rank | None = None
        for kind, known in self._kinds.items():
            if not known.unused or not needs.fits(kind, known.unused_rooms[-1]):
                continue
            for place, room in known.unused:
                if found is not None and place > found[1]:
                    break
                if place not in without and needs.fits(kind, room):
                    found = rank(place, room, used=False)
                    break
        if found is not None:
            return found
        for kind, known in self._kinds.items():
            for index in range(_first_that_fits(needs, kind, known.used), len(known.used)):
                room, place = known.used[index]
                if place not in without:
                    ranked = rank(place, room, used=True)
                    found = ranked if found is None else min(found, ranked)
                    break
        return found

    def soonest(
        self, needs: DeviceNeeds, without: Collection[int], order: Mapping[str | None, Soonness]
    ) -> Soonest | None:
        """Return the device that is `best` of those whose machine is first in an order; None without any.

        Machines that must fetch the model come last, those that cannot load it never; an unused device goes
        before seconds.
        """
        least, found = min(order.values()), None
        for used in (False, True):
            if found is not None and found[0] == least[0]:
                break
            for kind, known in self._kinds.items():
                for place, room in _fitting(needs, kind, known, used=used):
                    fetched, seconds = soonness = order[self._entries[place].node]
                    if place in without or seconds == math.inf:
                        continue
                    each = fetched, used, seconds, rank(place, room, used=used)
                    found = each if found is None else min(found, each)
                    if soonness == least:
                        break
        return found


def _fitting(needs: DeviceNeeds, kind: Kind, known: _OfKind, *, used: bool) -> Iterator[tuple[int, int]]:
    """Yield the devices of a kind on which a model fits, the best first: place and room."""
    if used:
        for room, place in known.used[_first_that_fits(needs, kind, known.used) :]:
            yield place, room
    elif known.unused and needs.fits(kind, known.unused_rooms[-1]):
        yield from ((place, room) for place, room in known.unused if needs.fits(kind, room))


def _first_that_fits(needs: DeviceNeeds, kind: Kind, used: list[tuple[int, int]]) -> int:
    """Return the index of the least room that is enough."""
    if not used or not needs.fits(kind, used[-1][0]):
        return len(used)
    low, high = 0, len(used) - 1
    while low < high:
        middle = (low + high) // 2
        if needs.fits(kind, used[middle][0]):
            high = middle
        else:
            low = middle + 1
    return low
