"""Whose container a process on a GPU runs in, and what services so were measured to hold."""

from pathlib import Path

from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Inventory, Reading
from cotenant.domain.vendors import InventorySource
from cotenant.services.model import ContainerState
from cotenant.services.usage import measured_bytes

LLM, CLIP = "a1" * 32, "b2" * 32
CONTAINERS = (
    ContainerState("ai-llm", LLM, running=True),
    ContainerState("ai-clip", CLIP, running=True),
    ContainerState("ai-gone", "c3" * 32, running=False),
    ContainerState("ai-never", None),
)


def card(index: int, *processes: GpuProcess) -> tuple[Device, Reading]:
    device = Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, "card", index=index, total_bytes=1 << 34)
    return device, Reading(device_id=device.id, at=0.0, free_bytes=1, processes=processes)


def measured(
    proc: Path, groups: dict[int, str], *cards: tuple[Device, Reading]
) -> dict[str, dict[DeviceId, int]]:
    for pid, text in groups.items():
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(text)
    readings = {device.id: reading for device, reading in cards}
    inventory = Inventory(InventorySource.NVML, tuple(device for device, _ in cards), readings)
    return measured_bytes(inventory, CONTAINERS, proc)


def test_processes_of_a_container_are_added_by_gpu(tmp_path: Path):
    groups = {
        10: f"0::/system.slice/docker-{LLM}.scope\n",
        11: f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{LLM}.scope/container\n",
        12: f"12:memory:/docker/{CLIP}\n",
        13: "0::/user.slice/session-1.scope\n",
    }
    one = card(0, GpuProcess(10, "python", 5), GpuProcess(12, "python", 70), GpuProcess(13, "game", 900))
    other = card(1, GpuProcess(11, "python", 6), GpuProcess(99, "gone", 1000))
    found = measured(tmp_path, groups, one, other)
    assert found == {"ai-llm": {"GPU-0": 5, "GPU-1": 6}, "ai-clip": {"GPU-0": 70}}


def test_a_service_with_a_process_of_unknown_memory_is_not_measured(tmp_path: Path):
    groups = {10: f"0::/docker/{LLM}", 11: f"0::/docker/{LLM}"}
    one = card(0, GpuProcess(10, "python", 5), GpuProcess(11, "python", None))
    assert measured(tmp_path, groups, one) == {}
