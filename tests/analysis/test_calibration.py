from dataclasses import replace

from cotenant.analysis.calibration import compare
from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Placement, Share
from cotenant.domain.units import GIB
from tests.support.models.shapes import gpu


def placement(*bus_ids: str | None) -> Placement:
    shares = []
    for index, bus_id in enumerate(bus_ids):
        budget = gpu(index, GIB)
        budget = replace(budget, device=replace(budget.device, pci_bus_id=bus_id))
        parts = Parts(weights=100 * (index + 1), kv=10, compute=5, overhead=500)
        shares.append(Share(budget, index, index, 1, has_output=False, parts=parts))
    return Placement("m", Recipe(), len(shares), len(shares), tuple(shares), host=Parts(weights=7))


def row(name: str, bus_id: str | None, weights: int) -> ReportedDevice:
    return ReportedDevice(name, bus_id, Parts(weights=weights, kv=10, compute=6))


HOST = ReportedDevice("CPU", None, Parts(weights=7, compute=1), on_host=True)


def test_devices_are_joined_by_bus_id_whatever_their_order() -> None:
    report = EngineReport((row("CUDA0", "0000:02:00.0", 200), row("CUDA1", "0000:01:00.0", 103), HOST))
    first, second, host = compare(placement("0000:01:00.0", "0000:02:00.0"), report)
    assert (first.error_bytes, second.error_bytes, host.error_bytes) == (4, 1, 1)


def test_devices_without_bus_ids_are_joined_by_order() -> None:
    report = EngineReport((row("RPC0", None, 100), row("RPC1", None, 200), HOST))
    assert [entry.error_bytes for entry in compare(placement(None, None), report)] == [1, 1, 1]


def test_what_the_engine_did_not_say_is_unknown_and_not_zero() -> None:
    missing = compare(placement("0000:01:00.0"), EngineReport((row("CUDA0", "0000:09:00.0", 1), HOST)))
    assert missing[0].reported is None
    assert missing[0].error_bytes is None
    assert [entry.reported for entry in compare(placement("0000:01:00.0"), None)] == [None, None]
