"""Compares predicted with reported and measured bytes, and learns from the differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineReport, kind_of_build
from cotenant.domain.models import Parts
from cotenant.domain.placements import Placement, Share
from cotenant.domain.records import FootprintRecord, LoadRecord, LoadTimes, ModelOnEngine, PastRuns, Warmth
from cotenant.domain.units import GIB, MIB

LEARNED_FROM: Final = 2_000
"""How many of the newest footprints, and of the newest loads, `past_runs` is to be given."""
LAST_RECORDS: Final = 20
LEAST_SAMPLES: Final = 3
LEAST_MARGIN_BYTES: Final = 32 * MIB
MAX_OVERHEAD_BYTES: Final = 2 * GIB
_SPREADS: Final = 3
_SIGMA_PER_MAD: Final = 1.4826
_LAST_LOADS: Final = 5
_ONE_LOAD_S: Final = 1.0
"""Records of one load are written together."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One device's planned bytes and those that the engine reports.

    `share` is None for what stays in host RAM; `reported` is None if the engine reported nothing. Engines do
    not report overhead, so the error leaves it out.
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
        """Reported minus planned; positive if the plan was too small."""
        if self.reported is None:
            return None
        return self.reported.total - (self.planned.total - self.planned.overhead)


def compare(placement: Placement, report: EngineReport | None) -> tuple[Comparison, ...]:
    """Pair each used GPU of a placement with the engine's own entry for it; host RAM is last.

    They are joined by PCI bus id or, if the engine reports none, by order: it sees exactly the used devices,
    in planned order, so its n-th device is the n-th share. Of several machines its own come first.
    """
    cards = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
    rows = _paired(cards, report, placement.node)
    planned = placement.host
    for share in placement.used_shares:
        if share.device.kind is DeviceKind.HOST:
            planned += share.parts
    reported = Parts() if report else None
    for row in report.devices if report else ():
        if row.on_host and reported is not None:
            reported += row.parts
    return (*rows, Comparison(None, planned, reported))


def as_reported(placement: Placement, report: EngineReport) -> Placement:
    """Return a placement with the bytes that the engine reports, for one that has laid itself out.

    Overheads, which no engine reports, stay as planned.
    """
    rows = {
        row.device.id if row.device else None: row.reported or Parts() for row in compare(placement, report)
    }
    shares = tuple(
        replace(share, parts=replace(rows[share.device.id], overhead=share.parts.overhead))
        if share.device.id in rows
        else share
        for share in placement.shares
    )
    return replace(placement, shares=shares, host=rows[None], estimated=())


def seen_bytes(records: Iterable[FootprintRecord]) -> Mapping[ModelOnEngine, int]:
    """Return the bytes of each model on all devices, as last measured with each kind of engine."""
    last: dict[ModelOnEngine, dict[str, FootprintRecord]] = {}
    for key, record in _by_engine(records):
        if record.measured_bytes is None:
            continue
        known = last.setdefault(key, {})
        if any(record.at - other.at > _ONE_LOAD_S for other in known.values()):
            known.clear()
        known[record.device_id] = record
    return {
        key: sum(record.measured_bytes or 0 for record in by_device.values())
        for key, by_device in last.items()
    }


def learned_overheads(
    records: Iterable[FootprintRecord], default_bytes: int
) -> Mapping[tuple[EngineKind, str], int]:
    """Return what a process takes beyond its engine's report, per kind of engine and device name.

    A sample is measured minus reported bytes of one load, limited to 0 to MAX_OVERHEAD_BYTES. Of the newest
    LAST_RECORDS samples the estimate is the median plus three standard deviations, these taken from the
    median absolute deviation (times 1.4826, as for normal noise; Rousseeuw and Croux, 1993), and at least
    LEAST_MARGIN_BYTES: other processes also allocate while a model loads, and one such load must not move
    the estimate. The estimate has the same limits. Samples never count for another kind of engine, since
    each reports something else: Ollama's report includes what llama.cpp's leaves out. With fewer than
    LEAST_SAMPLES the default is returned.
    """
    samples: dict[tuple[EngineKind, str], list[int]] = {}
    for key, record in _by_engine(records):
        if record.measured_bytes is not None and record.reported is not None:
            reported = record.reported.total - record.reported.overhead
            sample = _bounded(record.measured_bytes - reported)
            samples.setdefault((key.engine, record.device_name), []).append(sample)
    return {where: _estimate(found[-LAST_RECORDS:], default_bytes) for where, found in samples.items()}


def estimate_errors(records: Iterable[FootprintRecord]) -> Mapping[ModelOnEngine, float]:
    """Return |predicted − measured| / measured per model and kind of engine.

    It is the median of the newest LAST_RECORDS records. Records without a measurement are ignored; a model
    without others is left out.
    """
    found: dict[ModelOnEngine, list[float]] = {}
    for key, record in _by_engine(records):
        if record.measured_bytes:
            error = abs(record.predicted.total - record.measured_bytes) / record.measured_bytes
            found.setdefault(key, []).append(error)
    return {key: median(errors[-LAST_RECORDS:]) for key, errors in found.items()}


def expected_load_times(records: Iterable[LoadRecord]) -> Mapping[str, LoadTimes]:
    """Return the median of each model's last five cold and last five warm loads."""
    by_model: dict[str, dict[Warmth, list[float]]] = {}
    for record in sorted(records, key=lambda record: record.at):
        by_model.setdefault(record.model, {}).setdefault(record.warmth, []).append(record.seconds)
    return {
        model: LoadTimes(_expected(loads.get(Warmth.COLD)), _expected(loads.get(Warmth.WARM)))
        for model, loads in by_model.items()
    }


def _expected(seconds: list[float] | None) -> float | None:
    return median(seconds[-_LAST_LOADS:]) if seconds else None


def _by_engine(records: Iterable[FootprintRecord]) -> Iterator[tuple[ModelOnEngine, FootprintRecord]]:
    """Yield the records of known kinds of engines, oldest first."""
    for record in sorted(records, key=lambda record: record.at):
        kind = kind_of_build(record.engine)
        if kind is not None:
            yield ModelOnEngine(record.model, kind), record


def _estimate(samples: list[int], default_bytes: int) -> int:
    if len(samples) < LEAST_SAMPLES:
        return default_bytes
    middle = median(samples)
    spread = _SPREADS * _SIGMA_PER_MAD * median(abs(sample - middle) for sample in samples)
    return _bounded(round(middle + max(spread, LEAST_MARGIN_BYTES)))


def _bounded(overhead_bytes: int) -> int:
    return min(max(overhead_bytes, 0), MAX_OVERHEAD_BYTES)


def _paired(shares: list[Share], report: EngineReport | None, node: str | None) -> Iterator[Comparison]:
    rows = [row for row in report.devices if not row.on_host] if report else []
    by_bus_id = {row.pci_bus_id: row for row in rows if row.pci_bus_id}
    for position, share in enumerate(shares):
        # The engine knows no bus id of a GPU that another machine lends it.
        bus_id = share.device.pci_bus_id if share.device.node == node else None
        row = by_bus_id.get(bus_id) if bus_id else None
        if row is None and position < len(rows) and None in (bus_id, rows[position].pci_bus_id):
            row = rows[position]
        yield Comparison(share, share.parts, None if row is None else row.parts)


def past_runs(
    footprints: Sequence[FootprintRecord], loads: Sequence[LoadRecord], default_overhead_bytes: int
) -> PastRuns:
    """Return what loads of earlier runs teach; both are oldest first."""
    return PastRuns(
        learned_overheads(footprints, default_overhead_bytes),
        seen_bytes(footprints),
        estimate_errors(footprints),
        expected_load_times(loads),
    )
