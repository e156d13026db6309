from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.devices import HOST_ID, DeviceKind
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.host import HostMemory, HostProbe

MEMINFO = "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   40960000 kB\n"
TOTAL, AVAILABLE = 65536000 * 1024, 40960000 * 1024
GB = 10**9


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    return tmp_path / "proc"


def group(path: Path, **files: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(f"{content}\n")


def memory(proc: Path) -> HostMemory:
    return HostProbe(ManualClock(), proc=proc, cgroup=proc.parent / "cgroup").memory()


def test_without_limits_the_kernels_numbers_count(proc: Path) -> None:
    assert memory(proc) == HostMemory(TOTAL, AVAILABLE)


def test_a_limit_of_a_group_bounds_total_and_available(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/user.slice/job.scope\n")
    group(proc.parent / "cgroup/user.slice/job.scope", memory__max=8 * GB, memory__current=3 * GB)

    assert memory(proc) == HostMemory(8 * GB, 5 * GB)


def test_the_tightest_group_on_the_way_to_the_root_counts(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/user.slice/job.scope\n")
    group(proc.parent / "cgroup/user.slice", memory__max=10 * GB, memory__current=9 * GB)
    group(proc.parent / "cgroup/user.slice/job.scope", memory__max=8 * GB, memory__current=3 * GB)

    assert memory(proc) == HostMemory(8 * GB, 1 * GB)


def test_inactive_page_cache_counts_as_room(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    stat = f"anon 5\nactive_file 7\ninactive_file {4 * GB}"
    group(proc.parent / "cgroup", memory__max=8 * GB, memory__current=6 * GB, memory__stat=stat)

    assert memory(proc) == HostMemory(8 * GB, 6 * GB)


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../../elsewhere"])
def test_a_container_finds_its_own_group_at_the_root_of_the_mount(proc: Path, path: str) -> None:
    (proc / "self" / "cgroup").write_text(f"0::{path}\n")
    group(proc.parent / "cgroup", memory__max=8 * GB, memory__current=GB)

    assert memory(proc) == HostMemory(8 * GB, 7 * GB)


def test_version_one_groups_count_too(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:cpu,memory:/job\n1:name=systemd:/job\n0::/\n")
    folder = proc.parent / "cgroup" / "memory"
    group(folder, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    stat = f"inactive_file 1\ntotal_inactive_file {GB}"
    group(folder / "job", memory__limit_in_bytes=4 * GB, memory__usage_in_bytes=2 * GB, memory__stat=stat)

    assert memory(proc) == HostMemory(4 * GB, 3 * GB)


def test_a_group_without_a_limit_or_without_its_files_bounds_nothing(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/user.slice/job.scope\n")
    group(proc.parent / "cgroup/user.slice", memory__max="max", memory__current=9 * GB)

    assert memory(proc) == HostMemory(TOTAL, AVAILABLE)


def test_a_group_over_its_limit_leaves_nothing_and_no_less(proc: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    group(proc.parent / "cgroup", memory__max=2 * GB, memory__current=3 * GB)

    assert memory(proc).available_bytes == 0


def test_the_inventory_is_one_device_with_its_reading(proc: Path) -> None:
    found = HostProbe(ManualClock(3.0), proc=proc, cgroup=proc.parent / "none").inventory(("why",))

    (device,) = found.devices
    assert (device.id, device.kind, device.label) == (HOST_ID, DeviceKind.HOST, "host RAM")
    assert (found.source, found.problems, found.has_gpus) == (InventorySource.HOST, ("why",), False)
    reading = found.reading(device)
    assert (device.total_bytes, reading.free_bytes) == (TOTAL, AVAILABLE)
    assert (reading.used_bytes, reading.at, reading.problem) == (TOTAL - AVAILABLE, 3.0, None)


def test_a_kernel_that_tells_nothing_leaves_the_memory_unknown_with_the_reason(tmp_path: Path) -> None:
    found = HostProbe(ManualClock(), proc=tmp_path, cgroup=tmp_path).inventory()

    reading = found.reading(found.devices[0])
    assert (found.devices[0].total_bytes, reading.used_bytes, reading.free_bytes) == (None, None, None)
    assert reading.problem == "the kernel does not report its memory in /proc/meminfo"


def test_this_machine_is_read() -> None:
    memory = HostProbe(ManualClock()).memory()

    assert memory.total_bytes is not None
    assert memory.available_bytes is not None
    assert 0 < memory.available_bytes <= memory.total_bytes
