"""The ledger: claims per device against its capacity. Of ledger and Reading, the worse counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from cotenant.domain.devices import Device, DeviceId, DeviceKind, host_id
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import ResidencyId
from cotenant.planning.budgets import FREE_UNKNOWN
from cotenant.planning.claims import Account, Claim
from cotenant.planning.compute_modes import ANY_NUMBER, Admission
from cotenant.planning.device_map import DeviceMap
from cotenant.planning.host_memory import on_host
from cotenant.planning.rooms import Rooms

DRAINED: Final = "it is drained"


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


class Ledger:
    """The last Reading of every device, and all claims.

    `lost` are the last Readings of devices that were there and are not any more. `hosts` are the RAM of
    machines with GPUs, by id: models claim it, and none is placed on it as a device; where a GPU shares it,
    that GPU's Reading. Nothing new is placed on the `drained` ones (`drain`), nor on nodes that are `silent`,
    each with the reason. What follows is kept by device, and computed anew only for devices whose Reading or
    claims have changed. `changed` collects these devices for whoever empties it.
    """

    def __init__(self, reserve_bytes: int = 0) -> None:
        self.reserve_bytes = reserve_bytes
        self.readings: dict[DeviceId, DeviceReading] = {}
        self.lost: dict[DeviceId, DeviceReading] = {}
        self.hosts: dict[DeviceId, DeviceReading] = {}
        self.drained: frozenset[DeviceId] = frozenset()
        self.silent: dict[str | None, str] = {}
        self.claims: dict[ResidencyId, Claim] = {}
        self.changed: set[DeviceId] = set()
        self._accounts: dict[DeviceId, Account] = {}
        self._nodes: dict[str | None, tuple[DeviceId, ...]] = {}
        self.devices = DeviceMap()
        self._rooms = Rooms()
        self._limited: set[DeviceId] = set()
        self._crowded: set[DeviceId] = set()
        self._stale: set[DeviceId] = set()
        self._budgets: list[Budget] = []
        self._over: dict[DeviceId, int] = {}

    def read(self, readings: Sequence[DeviceReading], node: str | None = None) -> tuple[DeviceId, ...]:
        """Record new Readings of all devices of a node, in planned order; return those that are gone."""
        gpus = {r.device.id: r for r in readings if r.device.kind is not DeviceKind.HOST}
        before_host = self.hosts.pop(host_id(node), None)
        pools = (r for r in readings if r.device.kind is DeviceKind.HOST or r.device.unified)
        host = next(pools, None) if gpus else None
        if host is not None:
            self.hosts[host_id(node)] = host
        new_or_gone = (before_host is None) is not (host is None)
        if new_or_gone or (before_host and host and self._differs(before_host, host)):
            self._touch(host_id(node))
        now = gpus or {reading.device.id: reading for reading in readings}
        before = self._nodes.get(node, ())
        if tuple(now) != before:
            self._place(node, now)
        for device, reading in now.items():
            known = self.readings[device]
            if known.device != reading.device:
                self.devices.update(reading.device)
            if self._differs(known, reading):
                self._touch(device)
            self.readings[device] = reading
        present = {reading.device.id for reading in readings}
        return tuple(device for device in before if device not in present)

    def devices_of(self, node: str | None) -> Sequence[DeviceId]:
        """Return the devices of a node by its last Readings, in planned order."""
        return self._nodes.get(node, ())

    def next_to(self, host: DeviceId) -> Sequence[DeviceId]:
        """Return the devices of the machine whose RAM this is."""
        return next((devices for node, devices in self._nodes.items() if host_id(node) == host), ())

    def drain(self, devices: frozenset[DeviceId]) -> None:
        """Leave exactly these devices out of all plans; the claims on them stay."""
        for device in self.drained ^ devices:
            self._touch(device)
        self.drained = devices

    def silence(self, node: str, why: str | None) -> None:
        """Leave a node out of all plans for a reason, or with None no more; the claims there stay."""
        if why is None:
            self.silent.pop(node, None)
        else:
            self.silent[node] = why
        for device in (*self.devices_of(node), host_id(node)):
            self._touch(device)

    def claim(
        self, residency: ResidencyId, bytes_by_device: dict[DeviceId, int], *, grows: bool = False
    ) -> None:
        """Hold bytes for a residency until they are released; one that `grows` takes them at any time."""
        self.claims[residency] = claim = Claim(residency, bytes_by_device, grows=grows)
        if grows:
            claim.foreign_before = {device: self.foreign_bytes(device) for device in bytes_by_device}
        for device, count in bytes_by_device.items():
            account = self._accounts.setdefault(device, Account())
            account.claims[residency] = claim
            account.claimed_bytes += count
            self._touch(device)

    def show(self, residency: ResidencyId, at: float) -> None:
        """Record that the engine has taken its bytes: Readings from then on include them."""
        self.claims[residency].shown_at = at
        for device in self.claims[residency].bytes_by_device:
            self._touch(device)

    def change(self, residency: ResidencyId, bytes_by_device: Mapping[DeviceId, int]) -> None:
        """Hold other bytes for a residency."""
        claim = self.claims[residency]
        self.release(residency)
        held = claim.bytes_by_device
        held.clear()
        held.update(bytes_by_device)
        self.claim(residency, held)
        self.claims[residency].shown_at = claim.shown_at

    def lower(self, residency: ResidencyId, device: DeviceId, most_bytes: int) -> None:
        """Hold no more than this on a device."""
        held = self.claims[residency].bytes_by_device
        self._accounts[device].claimed_bytes -= max(0, held[device] - most_bytes)
        held[device] = min(held[device], most_bytes)
        self._touch(device)

    def release(self, residency: ResidencyId) -> None:
        """Hold nothing any more for a residency."""
        for device, count in self.claims.pop(residency).bytes_by_device.items():
            account = self._accounts[device]
            del account.claims[residency]
            account.claimed_bytes -= count
            if not account.claims:
                del self._accounts[device]
            self._touch(device)

    def holders(self, device: DeviceId) -> Collection[ResidencyId]:
        """Return the residencies with a claim on a device, the oldest first."""
        account = self._accounts.get(device)
        return account.claims.keys() if account else ()

    def claimed_devices(self) -> Set[DeviceId]:
        """Return the devices with a claim."""
        return self._accounts.keys()

    def claimed_bytes(self, device: DeviceId) -> int:
        """Return the sum of the claims on a device."""
        account = self._accounts.get(device)
        return account.claimed_bytes if account else 0

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
            return by_ledger - reading.device.reserve(self.reserve_bytes)
        account = self._accounts.get(device)
        unshown = sum(
            claim.bytes_by_device[device]
            for claim in (account.claims.values() if account else ())
            if not claim.grows and (claim.shown_at is None or claim.shown_at > reading.at)
        )
        if account is not None and reading.free_bytes is not None:
            used = reading.capacity_bytes - reading.free_bytes
            unshown += account.growth(device, used, reading.engine_bytes)
        return min(by_ledger, reading.free_bytes - unshown) - reading.device.reserve(self.reserve_bytes)

    def host_budget(self, freed: Mapping[DeviceId, int], node: str | None) -> Budget | None:
        """Return what may be planned of a node's RAM besides GPUs once `freed` is free; None if unknown."""
        host = self.hosts.get(host_id(node))
        if host is None or host.free_bytes is None:
            return None
        room = max(0, self.available_bytes(host.device.id) + freed.get(host.device.id, 0))
        return Budget(host.device, host.free_bytes, room)

    def on_host(
        self, placement: Placement | Refusal, freed: Mapping[DeviceId, int] | None = None
    ) -> Placement | Refusal:
        """Return a placement if the RAM of its node has room for its part there once `freed` is free."""
        if isinstance(placement, Refusal):
            return placement
        if placement.node in self.silent:
            return Refusal(placement.model, self.silent[placement.node])
        return on_host(placement, self.host_budget(freed or {}, placement.node))

    def engines(self, device: DeviceId) -> int:
        """Count the claims on a device: an engine each, from the decision until its bytes are seen back."""
        return len(self.holders(device))

    def engines_to_remove(self, device: DeviceId, *, leaving: int = 0) -> int:
        """Return how many engines must be stopped, besides `leaving` ones, before one more may start."""
        most = self.readings[device].admission.max_engines
        return 0 if most is None else max(0, self.engines(device) - leaving + 1 - most)

    def full(self, leaving: Mapping[DeviceId, int] | None = None) -> list[str]:
        """Return why, for each device that admits no further engine once `leaving` engines are gone."""
        self._refresh()
        readings = (self.readings[device] for device in self._in_order(self._limited))
        return [
            f"{reading.device.label}: {reading.admission.why}"
            for reading in readings
            if reading.left_out is None
            and self.engines_to_remove(reading.device.id, leaving=(leaving or {}).get(reading.device.id, 0))
        ]

    def budgets(
        self,
        *,
        freed: Mapping[DeviceId, int] | None = None,
        leaving: Mapping[DeviceId, int] | None = None,
        busy: Collection[DeviceId] = (),
        among: Sequence[DeviceId] | None = None,
    ) -> tuple[Budget, ...]:
        """Return what may be planned per device once `freed` bytes are free and `leaving` engines are gone.

        `busy` devices are left out, and so are those that admit no further engine. `among` are the devices to
        return, by default all.
        """
        self._refresh()
        freed, leaving = freed or {}, leaving or {}
        altered = {*busy, *freed, *leaving}
        return tuple(
            self.budget(device, freed.get(device, 0), leaving.get(device, 0), busy=device in busy)
            if device in altered
            else self._budgets[self.devices.place(device)]
            for device in (self.readings if among is None else among)
        )

    def budget(
        self,
        device: DeviceId,
        freed: int = 0,
        leaving: int = 0,
        *,
        busy: bool = False,
        any_number: bool = False,
        silent_too: bool = False,
    ) -> Budget:
        """Return one device's Budget; `any_number` admits any engines, `silent_too` nodes that are silent."""
        reading = self.readings[device]
        left_out = reading.left_out or (DRAINED if device in self.drained else None)
        if not left_out and self.silent and not silent_too:
            left_out = self.silent.get(reading.device.node)
        if not left_out and busy:
            left_out = "a load is under way there"
        elif not left_out and not any_number and self.engines_to_remove(device, leaving=leaving):
            left_out = reading.admission.why
        if reading.free_bytes is None:
            left_out = left_out or FREE_UNKNOWN
        room = 0 if left_out else max(0, self.available_bytes(device) + freed)
        return Budget(reading.device, reading.free_bytes, room, left_out or None, reading.admission.group)

    def rooms(self) -> Rooms:
        """Return the usable devices by kind and by what may be planned on each now."""
        self._refresh()
        return self._rooms

    def whole(self, *, lost: bool = False) -> list[Budget]:
        """Return what may be planned of all devices if nobody used them, with those that are `lost` too."""
        found = ((self.lost if lost else {}) | self.readings).values()
        whole = ((reading.device, reading.capacity_bytes) for reading in found)
        return [Budget(each, size, max(0, size - each.reserve(self.reserve_bytes))) for each, size in whole]

    def overcommitted(self) -> Iterator[tuple[DeviceId, int]]:
        """Yield devices where claims and others' use exceed capacity minus reserve, and the excess bytes."""
        self._refresh()
        yield from ((device, self._over[device]) for device in self._in_order(self._over))

    def crowded(self) -> Iterator[tuple[DeviceId, int]]:
        """Yield the devices with more engines than they admit, and how many they admit."""
        self._refresh()
        for device in self._in_order(self._crowded):
            most = self.readings[device].admission.max_engines
            if most is not None:
                yield device, most

    def rebuilt(self) -> Ledger:
        """Return a ledger of the same Readings and claims, with nothing computed before."""
        fresh = Ledger(self.reserve_bytes)
        fresh.drain(self.drained)
        fresh.silent = dict(self.silent)
        for node, devices in self._nodes.items():
            host = self.hosts.get(host_id(node))
            fresh.read((*(self.readings[device] for device in devices), *((host,) if host else ())), node)
        for claim in self.claims.values():
            fresh.claim(claim.residency, dict(claim.bytes_by_device))
            anew = fresh.claims[claim.residency]
            anew.shown_at, anew.grows, anew.foreign_before = claim.shown_at, claim.grows, claim.foreign_before
        return fresh

    def _reading(self, device: DeviceId) -> DeviceReading:
        return self.hosts.get(device) or self.readings[device]

    def _place(self, node: str | None, readings: Mapping[DeviceId, DeviceReading]) -> None:
        """Take in other devices of a node, or another order of them."""
        self._nodes[node] = tuple(readings)
        known = self.lost | self.readings | dict(readings)
        budgets = {budget.device.id: budget for budget in self._budgets}
        self.readings = {device: known[device] for devices in self._nodes.values() for device in devices}
        self.lost = {device: last for device, last in known.items() if device not in self.readings}
        before = self.devices.order
        self.devices.arrange(reading.device for reading in self.readings.values())
        self._budgets = [budgets.get(device) or self.budget(device) for device in self.readings]
        self._limited &= self.readings.keys()
        self._crowded &= self.readings.keys()
        self._over = {device: over for device, over in self._over.items() if device in self.readings}
        self._stale |= readings.keys()
        if self.devices.order[: len(before)] != before:
            # Devices stand at other places.
            self._rooms = Rooms()
            self._stale |= self.readings.keys()
        self.changed |= self.readings.keys()

    def _differs(self, before: DeviceReading, now: DeviceReading) -> bool:
        """Whether a Reading tells something new, or shows bytes that the one before did not."""
        if before.at != now.at:
            account = self._accounts.get(now.device.id)
            shown = (claim.shown_at for claim in account.claims.values()) if account else ()
            if any(at is not None and at > before.at for at in shown):
                return True
            before = replace(before, at=now.at)
        return before != now

    def _touch(self, device: DeviceId) -> None:
        self._stale.add(device)
        self.changed.add(device)

    def _refresh(self) -> None:
        """Compute anew what follows from Readings and claims that have changed."""
        for device in self._stale & self.readings.keys():
            place = self.devices.place(device)
            self._budgets[place] = budget = self.budget(device)
            if budget.left_out is None:
                kind, is_used = self.devices.kind(device), device in self._accounts
                self._rooms.put(place, kind, budget.budget_bytes, budget.device.node, used=is_used)
            else:
                self._rooms.drop(place)
            reading = self.readings[device]
            most = reading.admission.max_engines
            _keep_in(self._limited, device, most is not None)
            _keep_in(self._crowded, device, most is not None and self.engines(device) > most)
            used = self.claimed_bytes(device) + self.foreign_bytes(device)
            over = used + reading.device.reserve(self.reserve_bytes) - reading.capacity_bytes
            if reading.free_bytes is None or over <= 0:
                self._over.pop(device, None)
            else:
                self._over[device] = over
        self._stale.clear()

    def _in_order(self, devices: Iterable[DeviceId]) -> list[DeviceId]:
        return sorted(devices, key=self.devices.place)


def _keep_in(kept: set[DeviceId], device: DeviceId, belongs: bool) -> None:
    (kept.add if belongs else kept.discard)(device)
