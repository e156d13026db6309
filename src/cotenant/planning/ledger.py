"""Claims against capacity, per device: of the ledger and the Reading, the worse counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cotenant.domain.devices import Device, DeviceId
from cotenant.domain.placements import Budget
from cotenant.domain.residencies import ResidencyId


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What was measured of one device at one instant, in bytes.

    `live` says that what our engines take shows in `free_bytes`; a described device's does not.
    `foreign_bytes` is what others hold, None where the driver does not tell processes apart; `engine_bytes`
    what each of our engines holds, None likewise. `holders` names the others.
    """

    device: Device
    at: float
    capacity_bytes: int
    free_bytes: int | None
    live: bool = True
    foreign_bytes: int | None = None
    engine_bytes: Mapping[ResidencyId, int] | None = None
    holders: str = ""
    left_out: str | None = None


@dataclass(slots=True)
class Claim:
    """Bytes held for a residency, by device, from the decision to load until they are seen back.

    `shown_at` is when the engine had taken them: a Reading from then on includes them.
    """

    residency: ResidencyId
    bytes_by_device: Mapping[DeviceId, int]
    shown_at: float | None = None


@dataclass(slots=True)
class Ledger:
    """Every device's last Reading, and every claim."""

    reserve_bytes: int = 0
    readings: dict[DeviceId, DeviceReading] = field(default_factory=dict)
    claims: dict[ResidencyId, Claim] = field(default_factory=dict)

    def read(self, readings: Sequence[DeviceReading]) -> tuple[DeviceId, ...]:
        """Take in new Readings of all devices, in planned order; return the devices that are gone."""
        lost = tuple(device for device in self.readings if device not in {r.device.id for r in readings})
        self.readings = {reading.device.id: reading for reading in readings}
        return lost

    def claimed_bytes(self, device: DeviceId) -> int:
        """Sum of the claims on a device."""
        return sum(claim.bytes_by_device.get(device, 0) for claim in self.claims.values())

    def foreign_bytes(self, device: DeviceId) -> int:
        """What others hold: as told, else what is used beyond all claims.

        How much of its claim an engine that is still loading has taken, nobody tells: it may be all.
        """
        reading = self.readings[device]
        if reading.foreign_bytes is not None:
            return reading.foreign_bytes
        if reading.free_bytes is None:
            return 0
        used = reading.capacity_bytes - reading.free_bytes
        return max(0, used - (self.claimed_bytes(device) if reading.live else 0))

    def available_bytes(self, device: DeviceId) -> int:
        """What may still be planned; negative when the device is overcommitted."""
        reading = self.readings[device]
        if reading.free_bytes is None or reading.left_out:
            return 0
        by_ledger = reading.capacity_bytes - self.foreign_bytes(device) - self.claimed_bytes(device)
        if not reading.live:
            return by_ledger - self.reserve_bytes
        unshown = self.claimed_bytes(device) - self._shown_bytes(reading)
        return min(by_ledger, reading.free_bytes - unshown) - self.reserve_bytes

    def budgets(
        self, *, freed: Mapping[DeviceId, int] | None = None, busy: Collection[DeviceId] = ()
    ) -> tuple[Budget, ...]:
        """Return what may be planned per device, as if `freed` had come back; `busy` ones are left out."""
        more = freed or {}
        return tuple(
            self._budget(reading, more.get(device, 0), busy) for device, reading in self.readings.items()
        )

    def overcommitted(self) -> Iterator[tuple[DeviceId, int]]:
        """Yield the devices where claims and others' use exceed capacity less reserve, and by how much."""
        for device, reading in self.readings.items():
            if reading.free_bytes is None:
                continue
            over = self.claimed_bytes(device) + self.foreign_bytes(device)
            over += self.reserve_bytes - reading.capacity_bytes
            if over > 0:
                yield device, over

    def _budget(self, reading: DeviceReading, freed: int, busy: Collection[DeviceId]) -> Budget:
        device = reading.device
        left_out = reading.left_out or ("a load is under way there" if device.id in busy else None)
        if left_out or reading.free_bytes is None:
            return Budget(device, reading.free_bytes, 0, left_out or "its free memory is unknown")
        return Budget(device, reading.free_bytes, max(0, self.available_bytes(device.id) + freed))

    def _shown_bytes(self, reading: DeviceReading) -> int:
        return sum(
            claim.bytes_by_device.get(reading.device.id, 0)
            for claim in self.claims.values()
            if claim.shown_at is not None and claim.shown_at <= reading.at
        )
