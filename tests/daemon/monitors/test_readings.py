from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
)
from cotenant.domain.residencies import ResidencyId
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules

OURS = {100: ResidencyId(7)}


def reading_of(source: InventorySource = InventorySource.NVML, **facts: object):
    device = Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=24 * GIB)
    reading = Reading(device.id, 0.0, **facts)  # type: ignore[arg-type]
    inventory = Inventory(source, (device,), {device.id: reading})
    (found,) = device_readings(inventory, BudgetRules(), OURS, at=5.0)
    return found


def test_our_engines_are_told_apart_from_others() -> None:
    processes = (GpuProcess(100, "engine", 4 * GIB), GpuProcess(200, "game", 2 * GIB))
    found = reading_of(free_bytes=17 * GIB, processes=processes)
    assert found.live
    assert found.engine_bytes == {ResidencyId(7): 4 * GIB}
    assert found.foreign_bytes == 3 * GIB
    assert "game (pid 200" in found.holders
    assert "engine" not in found.holders


def test_what_the_driver_does_not_tell_is_unknown() -> None:
    hidden = (GpuProcess(100, None, None),)
    assert reading_of(free_bytes=GIB, processes=hidden).engine_bytes is None
    assert reading_of(free_bytes=GIB, processes=None).foreign_bytes is None


def test_cards_that_cannot_be_used_are_left_out_with_the_reason() -> None:
    assert "lost" in (reading_of(problem="the card is lost").left_out or "")
    prohibited = reading_of(free_bytes=GIB, compute_mode=ComputeMode.PROHIBITED, processes=())
    assert "Prohibited" in (prohibited.left_out or "")
    crowded = reading_of(free_bytes=500 * MIB, processes=(GpuProcess(9, "other", 23 * GIB),))
    assert "under the minimum" in (crowded.left_out or "")
    full_of_ours = reading_of(free_bytes=500 * MIB, processes=(GpuProcess(100, "engine", 23 * GIB),))
    assert full_of_ours.left_out is None


def test_a_described_card_shares_out_what_was_free_at_the_start() -> None:
    found = reading_of(InventorySource.DESCRIBED, free_bytes=20 * GIB)
    assert (found.capacity_bytes, found.live, found.foreign_bytes) == (20 * GIB, False, 0)


def test_a_stranger_on_an_exclusive_card_keeps_us_off_it_and_our_own_engines_do_not() -> None:
    exclusive = {"free_bytes": 20 * GIB, "compute_mode": ComputeMode.EXCLUSIVE_PROCESS}
    held = reading_of(processes=(GpuProcess(9, "python3", GIB),), **exclusive)
    assert "process 9 (python3) holds it" in (held.left_out or "")
    assert reading_of(processes=(GpuProcess(100, "engine", GIB),), **exclusive).left_out is None
    server = GpuProcess(9, "/usr/bin/nvidia-cuda-mps-server", 30 * MIB)
    assert reading_of(processes=(server,), **exclusive).left_out is None
