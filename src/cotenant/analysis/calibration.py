"""Predicted against reported."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts
from cotenant.domain.placements import Placement, Share


@dataclass(frozen=True, slots=True)
class Comparison:
    """One device's planned bytes beside those that the engine says it took.

    Overhead is not in an engine's report, so it is left out of both totals.
    """

    label: str
    planned: Parts
    reported: Parts

    @property
    def error_bytes(self) -> int:
        """Reported less planned, overhead aside; positive when the plan was short."""
        return self.reported.total - (self.planned.total - self.planned.overhead)


def compare(placement: Placement, report: EngineReport) -> tuple[Comparison, ...]:
    """Pair the devices of a placement with the engine's own, by PCI bus id, else by order.

    The engine sees exactly the used devices, in planned order, so its n-th device is the n-th share.
    What the engine keeps in host RAM is compared with the placement's host part, or with the host share
    where host RAM is the device.
    """
    gpu_shares = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
    gpu_rows = [row for row in report.devices if not row.on_host]
    rows = [
        Comparison(share.device.label, share.parts, row.parts) for share, row in _paired(gpu_shares, gpu_rows)
    ]
    reported_host = Parts()
    for row in report.devices:
        if row.on_host:
            reported_host += row.parts
    planned_host = placement.host
    for share in placement.used_shares:
        if share.device.kind is DeviceKind.HOST:
            planned_host += share.parts
    return (*rows, Comparison("host RAM", planned_host, reported_host))


def _paired(shares: list[Share], rows: list[ReportedDevice]) -> list[tuple[Share, ReportedDevice]]:
    by_bus_id = {row.pci_bus_id: row for row in rows if row.pci_bus_id}
    pairs = [(share, by_bus_id.get(share.device.pci_bus_id or "")) for share in shares]
    found = [(share, row) for share, row in pairs if row is not None]
    if len(found) == len(shares):
        return found
    return list(zip(shares, rows, strict=False))
