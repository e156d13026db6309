import pytest

from cotenant.domain.devices import (
    HOST_ID,
    Device,
    DeviceId,
    DeviceKind,
    DeviceOrder,
    Inventory,
    Reading,
    launch_environment,
    normalise_bus_id,
)
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.vendors import InventorySource, Vendor

HOST = Device(HOST_ID, DeviceKind.HOST, "host RAM")


def gpu(name: str, index: int, total: int | None = None, *, described: bool = False) -> Device:
    return Device(
        DeviceId(name),
        DeviceKind.GPU,
        "card",
        index=index,
        total_bytes=total,
        described=described,
        vendor=Vendor.NVIDIA,
    )


def inventory(
    *devices: Device, free: tuple[int | None, ...] = (), problems: tuple[str, ...] = ()
) -> Inventory:
    readings = {
        device.id: Reading(device.id, at=0.0, free_bytes=count)
        for device, count in zip(devices, free, strict=False)
    }
    return Inventory(InventorySource.NVML, devices, readings, problems=problems)


FOUR = inventory(
    gpu("GPU-aa11", 0, 24),
    gpu("GPU-aa22", 1, None),
    gpu("GPU-bb", 2, 48),
    gpu("GPU-cc", 3, 24),
    free=(5, None, 9, 5),
)


@pytest.mark.parametrize(
    ("order", "indices"),
    [
        (DeviceOrder.FREE_DESC, [2, 0, 3, 1]),
        (DeviceOrder.TOTAL_DESC, [2, 0, 3, 1]),
        (DeviceOrder.INDEX, [0, 1, 2, 3]),
    ],
)
def test_devices_are_ordered_with_unknown_sizes_last_and_ties_by_index(
    order: DeviceOrder, indices: list[int]
) -> None:
    assert [device.index for device in FOUR.ordered(order)] == indices


@pytest.mark.parametrize(
    ("names", "indices"),
    [
        ([], [0, 1, 2, 3]),
        (["all"], [0, 1, 2, 3]),
        (["2", "0"], [0, 2]),
        (["GPU-aa2"], [1]),
        (["gpu-BB", "2"], [2]),
    ],
)
def test_devices_are_selected_by_index_uuid_or_prefix(names: list[str], indices: list[int]) -> None:
    assert [device.index for device in FOUR.select(names).devices] == indices


@pytest.mark.parametrize("name", ["4", "GPU-aa", "GPU-dd", "", "-1", "None", "²", "9" * 5000])
def test_a_name_of_no_or_several_devices_is_refused_with_the_right_ones(name: str) -> None:
    with pytest.raises(UnknownDevice) as refused:
        FOUR.select([name])

    assert "0 (GPU-aa11), 1 (GPU-aa22), 2 (GPU-bb), 3 (GPU-cc)" in refused.value.hint


def test_a_whole_uuid_wins_over_a_longer_one_that_begins_with_it() -> None:
    found = inventory(gpu("GPU-a", 0), gpu("GPU-ab", 1)).select(["GPU-a"])

    assert [device.index for device in found.devices] == [0]


def test_a_refused_name_is_told_what_is_wrong_with_the_machine() -> None:
    with pytest.raises(UnknownDevice) as refused:
        inventory(HOST, problems=("the driver is not loaded.",)).select(["0"])

    assert "the driver is not loaded." in refused.value.hint


def test_an_engine_sees_the_planned_gpus_by_uuid_in_planned_order() -> None:
    environment = launch_environment([gpu("GPU-b", 2), gpu("MIG-a", 0), HOST])

    assert environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-b,MIG-a"}


@pytest.mark.parametrize("devices", [[], [HOST], [gpu("GPU-a", 0, described=True)]])
def test_an_engine_planned_on_no_real_gpu_sees_none(devices: list[Device]) -> None:
    environment = launch_environment(devices)

    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HIP_VISIBLE_DEVICES"]) == ("-1", "-1")


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("00000000:01:00.0", "0000:01:00.0"),
        ("00000000:C1:00.0", "0000:c1:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("00000001:00:00.0", "0001:00:00.0"),
        ("", None),
        ("01:00", None),
        ("PCI:1:0:0", None),
    ],
)
def test_bus_ids_are_written_as_llama_cpp_prints_them(written: str, printed: str | None) -> None:
    assert normalise_bus_id(written) == printed
