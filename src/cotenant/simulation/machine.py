"""Simulated GPUs: their actual memory use, what a driver reports of it, and how likely faults are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.residencies import ResidencyId
from cotenant.planning.ledger import DeviceReading


class Driver(StrEnum):
    """What a driver reports."""

    PROCESSES = "processes"
    """Free memory, and what each process holds."""
    TOTALS = "totals"
    """Free memory only."""
    NOTHING = "nothing"
    """Nothing: the cards are only described."""


@dataclass(slots=True)
class _Card:
    """What engines hold of a card, in bytes, and the sum of it."""

    total_bytes: int
    held: dict[ResidencyId, int] = field(default_factory=dict)
    held_bytes: int = 0


class Machine:
    """GPUs and the users of their memory: engines, until they return it, and other programs.

    The cards may be those of several machines, by their `node`.
    """

    def __init__(self, cards: Sequence[Device], driver: Driver = Driver.NOTHING) -> None:
        self.cards = tuple(cards)
        self.driver = driver
        self.missing: set[DeviceId] = set()
        self.silent: set[DeviceId] = set()
        self.foreign: dict[DeviceId, int] = {card.id: 0 for card in cards}
        self._cards = {card.id: _Card(card.total_bytes or 0) for card in cards}
        self._nodes: dict[str | None, list[Device]] = {}
        for each in cards:
            self._nodes.setdefault(each.node, []).append(each)
        self._held: dict[ResidencyId, dict[DeviceId, int]] = {}
        self._ended: set[ResidencyId] = set()
        self._disowned: set[ResidencyId] = set()

    def free_bytes(self, device: DeviceId) -> int:
        """Return the memory that is actually free on a card."""
        card = self._cards[device]
        return card.total_bytes - self.foreign[device] - card.held_bytes

    def take(self, engine: ResidencyId, wanted: Mapping[DeviceId, int]) -> bool:
        """Allocate for an engine. Returns False if a card is lost or has too little free memory."""
        if any(device in self.missing or self.free_bytes(device) < wanted[device] for device in wanted):
            return False
        self._held[engine] = dict(wanted)
        for device, count in wanted.items():
            self._cards[device].held[engine] = count
            self._cards[device].held_bytes += count
        return True

    def end(self, engine: ResidencyId) -> None:
        """Record that an engine's process has exited; its memory may be freed later."""
        self._ended.add(engine)

    def disown(self, engine: ResidencyId) -> None:
        """Record that the daemon does not know an engine: what it holds counts as others'."""
        self._disowned.add(engine)

    def rename(self, engine: ResidencyId, name: ResidencyId) -> None:
        """Record that an engine is known under another name from now on."""
        self._disowned.discard(engine)
        if engine in self._held:
            self._held[name] = held = self._held.pop(engine)
            for device in held:
                self._cards[device].held[name] = self._cards[device].held.pop(engine)

    def strand(self, engine: ResidencyId, node: str, name: ResidencyId) -> None:
        """Record that what an engine holds on a node stays there when it ends: nobody's, under this name."""
        held = self._held.get(engine, {})
        there = [card.id for card in self._nodes[node] if card.id in held]
        if there:
            self._held[name] = {device: held.pop(device) for device in there}
            self._disowned.add(name)
        for device in there:
            self._cards[device].held[name] = self._cards[device].held.pop(engine)

    def give_back(self, engine: ResidencyId) -> None:
        """Free the memory of an engine."""
        for device in self._held.pop(engine, ()):
            self._cards[device].held_bytes -= self._cards[device].held.pop(engine)
        self._ended.discard(engine)
        self._disowned.discard(engine)

    def set_foreign(self, device: DeviceId, count: int) -> None:
        """Set the memory that other programs use on a card, at most what is free."""
        self.foreign[device] = min(count, self.free_bytes(device) + self.foreign[device])

    def heal(self) -> None:
        """Have all cards back and readable, without other programs on them."""
        self.missing.clear()
        self.silent.clear()
        self.foreign = dict.fromkeys(self.foreign, 0)

    def readings(self, at: float) -> Iterator[tuple[str | None, tuple[DeviceReading, ...]]]:
        """Yield each node with readings of its cards that are present."""
        for node, cards in (self._nodes or {None: []}).items():
            yield node, tuple(self._reading(card, at) for card in cards if card.id not in self.missing)

    def _reading(self, card: Device, at: float) -> DeviceReading:
        total = card.total_bytes or 0
        if card.id in self.silent:
            return DeviceReading(card, at, total, None, live=self.driver is not Driver.NOTHING)
        if self.driver is Driver.NOTHING:
            return DeviceReading(card, at, total, total - self.foreign[card.id], live=False)
        free = self.free_bytes(card.id)
        if self.driver is Driver.TOTALS:
            return DeviceReading(card, at, total, free)
        held = self._cards[card.id].held
        others = self._ended | self._disowned
        ours = {engine: count for engine, count in held.items() if engine not in others}
        foreign = total - free - sum(ours.values())
        return DeviceReading(
            card,
            at,
            total,
            free,
            foreign_bytes=foreign,
            engine_bytes=ours,
            holders="others" if foreign else "",
        )


def card(index: int, total_bytes: int) -> Device:
    """Describe a card."""
    return Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, "card", index=index, total_bytes=total_bytes)


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities from 0 to 1, each per occasion: a load, a ready engine, an exit, a request.

    `trouble_every_s` is the mean time between card faults (foreign memory use, a lost card, no readings) and
    operator actions; None for none.
    """

    slow_load: float = 0.0
    failed_load: float = 0.0
    death: float = 0.0
    hang: float = 0.0
    slow_end: float = 0.0
    late_memory: float = 0.0
    lost_memory: float = 0.0
    leaves_waiting: float = 0.0
    leaves_served: float = 0.0
    trouble_every_s: float | None = None


NO_FAULTS = Faults()
