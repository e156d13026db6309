"""What is in the way of a model that would fit if all devices were free."""

from cotenant.domain.units import format_bytes
from cotenant.planning.ledger import Ledger


def obstacles(ledger: Ledger) -> list[str]:
    """Return which devices are lost or not used, and what others hold of those that are there."""
    found = [f"{reading.device.label} is lost" for reading in ledger.lost.values()]
    for device, reading in ledger.readings.items():
        if device in ledger.drained:
            found.append(f"{reading.device.label} is drained")
        if held := ledger.foreign_bytes(device):
            who = reading.holders or "not named by the driver"
            found.append(f"other processes hold {format_bytes(held)} of {reading.device.label}: {who}")
    return [*found, *ledger.silent.values()]
