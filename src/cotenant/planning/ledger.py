"""The ledger: claims per device against its capacity. Of ledger and Reading, the worse counts."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind
from cotenant.domain.placements import Budget
from cotenant.domain.residencies import ResidencyId
from cotenant.domain.units import format_bytes
from cotenant.planning.budgets import FREE_UNKNOWN
from cotenant.planning.compute_modes import ANY_NUMBER, Admission


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What was measured of one device at one instant, in bytes.

    `live` says that `free_bytes` includes the use of our engines, unlike that of a described device.
    `foreign_bytes` is what others hold and `engine_bytes` what each of our engines holds, both None if the
    driver does not report memory by process. `holders` names the others. `admission` limits the engines.
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
    admission: Admission = ANY_NUMBER


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
    """The last Reading of every device, and all claims.

    `lost` are the last Readings of devices that were there and are not any more. `host` is host RAM on a
    machine with GPUs: models claim it, and none is placed on it as a device.
    """

    reserve_bytes: int = 0
    readings: dict[DeviceId, DeviceReading] = field(default_factory=dict)
    lost: dict[DeviceId, DeviceReading] = field(default_factory=dict)
    host: DeviceReading | None = None
    claims: dict[ResidencyId, Claim] = field(default_factory=dict)

    def read(self, readings: Sequence[DeviceReading]) -> tuple[DeviceId, ...]:
        """Record new Readings of all devices, in planned order; return the devices that are gone."""
        gpus = {r.device.id: r for r in readings if r.device.kind is not DeviceKind.HOST}
        known = self.lost | self.readings
        lost = tuple(device for device in self.readings if device not in {r.device.id for r in readings})
        self.host = next((r for r in readings if gpus and r.device.kind is DeviceKind.HOST), None)
        self.readings = gpus or {reading.device.id: reading for reading in readings}
        self.lost = {device: last for device, last in known.items() if device not in self.readings}
        return lost

    def claimed_bytes(self, device: DeviceId) -> int:
        """Return the sum of the claims on a device."""
        return sum(claim.bytes_by_device.get(device, 0) for claim in self.claims.values())

    def foreign_bytes(self, device: DeviceId) -> int:
        """Return what others hold: as reported, else what is used beyond all claims.

        An engine that is still loading may have taken any part of its claim, so the whole claim counts.
        """
        reading = self._reading(device)
        if reading.foreign_bytes is not None:
            return reading.foreign_bytes
        if reading.free_bytes is None:
            return 0
        used = reading.capacity_bytes - reading.free_bytes
        return max(0, used - (self.claimed_bytes(device) if reading.live else 0))

    def available_bytes(self, device: DeviceId) -> int:
        """Return what may still be planned; negative if the device is overcommitted."""
        reading = self._reading(device)
        if reading.free_bytes is None or reading.left_out:
            return 0
        by_ledger = reading.capacity_bytes - self.foreign_bytes(device) - self.claimed_bytes(device)
        if not reading.live:
            return by_ledger - self.reserve_bytes
        unshown = sum(
            claim.bytes_by_device.get(device, 0)
            for claim in self.claims.values()
            if claim.shown_at is None or claim.shown_at > reading.at
        )
        return min(by_ledger, reading.free_bytes - unshown) - self.reserve_bytes

    def host_budget(self, freed: Mapping[DeviceId, int]) -> Budget | None:
        """Return what may be planned of host RAM besides GPUs once `freed` is free; None if unknown."""
        if self.host is None or self.host.free_bytes is None:
            return None
        room = max(0, self.available_bytes(HOST_ID) + freed.get(HOST_ID, 0))
        return Budget(self.host.device, self.host.free_bytes, room)

    def engines(self, device: DeviceId) -> int:
        """Count the claims on a device: an engine each, from the decision until its bytes are seen back."""
        return sum(device in claim.bytes_by_device for claim in self.claims.values())

    def engines_to_remove(self, device: DeviceId, *, leaving: int = 0) -> int:
        """Return how many engines must be stopped, besides `leaving` ones, before one more may start."""
        most = self.readings[device].admission.max_engines
        return 0 if most is None else max(0, self.engines(device) - leaving + 1 - most)

    def full(self, leaving: Mapping[DeviceId, int] | None = None) -> list[str]:
        """Return why, for each device that admits no further engine once `leaving` engines are gone."""
        return [
            f"{reading.device.label}: {reading.admission.why}"
            for device, reading in self.readings.items()
            if reading.left_out is None and self._is_full(device, leaving)
        ]

    def budgets(
        self,
        *,
        freed: Mapping[DeviceId, int] | None = None,
        leaving: Mapping[DeviceId, int] | None = None,
        busy: Collection[DeviceId] = (),
        any_number: bool = False,
    ) -> tuple[Budget, ...]:
        """Return what may be planned per device once `freed` bytes are free and `leaving` engines are gone.

        `busy` devices are left out, and so are those that admit no further engine unless `any_number`.
        """
        found = []
        for device, reading in self.readings.items():
            left_out = reading.left_out
            if not left_out and device in busy:
                left_out = "a load is under way there"
            elif not left_out and not any_number and self._is_full(device, leaving):
                left_out = reading.admission.why
            if reading.free_bytes is None:
                left_out = left_out or FREE_UNKNOWN
            room = 0 if left_out else max(0, self.available_bytes(device) + (freed or {}).get(device, 0))
            group = reading.admission.group
            found.append(Budget(reading.device, reading.free_bytes, room, left_out or None, group))
        return tuple(found)

    def whole(self, *, lost: bool = False) -> list[Budget]:
        """Return what may be planned of all devices if nobody used them, with those that are `lost` too."""
        found = ((self.lost if lost else {}) | self.readings).values()
        return [
            Budget(r.device, r.capacity_bytes, max(0, r.capacity_bytes - self.reserve_bytes)) for r in found
        ]

    def obstacles(self) -> list[str]:
        """Return which devices are lost, and what others hold of those that are there."""
        found = [f"{reading.device.label} is lost" for reading in self.lost.values()]
        for device, reading in self.readings.items():
            if held := self.foreign_bytes(device):
                who = reading.holders or "not named by the driver"
                found.append(f"other processes hold {format_bytes(held)} of {reading.device.label}: {who}")
        return found

    def overcommitted(self) -> Iterator[tuple[DeviceId, int]]:
        """Yield devices where claims and others' use exceed capacity minus reserve, and the excess bytes."""
        for device, reading in self.readings.items():
            if reading.free_bytes is None:
                continue
            over = self.claimed_bytes(device) + self.foreign_bytes(device)
            over += self.reserve_bytes - reading.capacity_bytes
            if over > 0:
                yield device, over

    def crowded(self) -> Iterator[tuple[DeviceId, int]]:
        """Yield the devices with more engines than they admit, and how many they admit."""
        for device, reading in self.readings.items():
            most = reading.admission.max_engines
            if most is not None and self.engines(device) > most:
                yield device, most

    def _reading(self, device: DeviceId) -> DeviceReading:
        if self.host is not None and device == HOST_ID:
            return self.host
        return self.readings[device]

    def _is_full(self, device: DeviceId, leaving: Mapping[DeviceId, int] | None) -> bool:
        return self.engines_to_remove(device, leaving=(leaving or {}).get(device, 0)) > 0
