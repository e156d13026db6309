"""Predicted against reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts
from cotenant.domain.placements import Placement, Share


@dataclass(frozen=True, slots=True)
class Comparison:
    """One device's planned bytes beside those that the engine says it took.

    `share` is None for what stays in host RAM; `reported` is None where the engine did not say. Overhead is
    not in an engine's report, so it is left out of the error.
    """

    share: Share | None
    planned: Parts
    reported: Parts | None

    @property
    def device(self) -> Device | None:
        """The device compared; None for host RAM."""
        return self.share.device if self.share else None

    @property
    def error_bytes(self) -> int | None:
        """Reported less planned; positive when the plan was short."""
        if self.reported is None:
            return None
        return self.reported.total - (self.planned.total - self.planned.overhead)


def compare(placement: Placement, report: EngineReport | None) -> tuple[Comparison, ...]:
    """Pair each used GPU of a placement with the engine's own entry for it, host RAM coming last.

    They are joined by PCI bus id, or, where the engine names none, by order: it sees exactly the used
    devices, in planned order, so that its n-th device is the n-th share.
    """
    cards = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
    rows = [
        Comparison(share, share.parts, None if row is None else row.parts)
        for share, row in _paired(cards, report)
    ]
    planned = placement.host
    for share in placement.used_shares:
        if share.device.kind is DeviceKind.HOST:
            planned += share.parts
    reported = Parts() if report else None
    for row in report.devices if report else ():
        if row.on_host and reported is not None:
            reported += row.parts
    return (*rows, Comparison(None, planned, reported))


def _paired(
    shares: list[Share], report: EngineReport | None
) -> Iterator[tuple[Share, ReportedDevice | None]]:
    rows = [row for row in report.devices if not row.on_host] if report else []
    by_bus_id = {row.pci_bus_id: row for row in rows if row.pci_bus_id}
    for position, share in enumerate(shares):
        bus_id = share.device.pci_bus_id
        row = by_bus_id.get(bus_id) if bus_id else None
        if row is None and position < len(rows) and None in (bus_id, rows[position].pci_bus_id):
            row = rows[position]
        yield share, row
