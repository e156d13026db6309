"""Engines that run already and are taken over: what they hold counted as held by others until then."""

from collections.abc import Mapping
from dataclasses import replace

from cotenant.domain.devices import DeviceId, host_id, is_host
from cotenant.domain.residencies import ResidencyId
from cotenant.planning.ledger import Ledger


def why_no_claim(ledger: Ledger, wanted: Mapping[DeviceId, int], reserved: Mapping[DeviceId, int]) -> str:
    """Return why the ledger cannot hold these bytes for an engine that runs already; empty if it can.

    `reserved` are negative bytes that others are promised. What the engine is seen to hold is its own: only
    what it may take beyond that has to fit.
    """
    for device, count in wanted.items():
        reading = ledger.hosts.get(device) or ledger.readings.get(device)
        if reading is None:
            if is_host(device):
                continue  # What is free of it is unknown.
            return f"{device} is not there"
        if device in ledger.readings and ledger.engines_to_remove(device):
            return f"{reading.device.label} admits no further engine: {reading.admission.why}"
        foreign = ledger.foreign_bytes(device)
        more = count - (min(count, foreign) if reading.live else 0)
        left = reading.capacity_bytes - foreign - ledger.claimed_bytes(device)
        left -= reading.device.reserve(ledger.reserve_bytes)
        if more > max(0, left + reserved.get(device, 0)):
            return f"{reading.device.label} has no room for what it may take"
    return ""


def claim_running(ledger: Ledger, residency: ResidencyId, bytes_by_device: dict[DeviceId, int]) -> None:
    """Claim what an engine holds already; until the next Reading it counts as seen."""
    for device, count in bytes_by_device.items():
        known = ledger.hosts if device in ledger.hosts else ledger.readings
        reading = known.get(device)
        if reading is not None and reading.live and reading.foreign_bytes is not None:
            held = min(count, reading.foreign_bytes)
            ours = {**(reading.engine_bytes or {}), residency: held}
            known[device] = replace(reading, foreign_bytes=reading.foreign_bytes - held, engine_bytes=ours)
            pool = host_id(reading.device.node)
            if reading.device.unified and pool in ledger.hosts:
                ledger.hosts[pool] = known[device]
    ledger.claim(residency, bytes_by_device)
