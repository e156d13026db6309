"""Checks of RAM, disks, limits and the clock."""

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.clock import SystemClock
from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.units import GIB, MIB, format_bytes
from cotenant.hardware.gpus.host import HostProbe

_LITTLE_RAM: Final = 2 * GIB
_LITTLE_DISK: Final = GIB
_MODEL_DISK: Final = 10 * GIB
_FEW_FILES: Final = 4096
_EARLIEST: Final = 1_735_689_600
"""1 January 2025: before it no version of this program existed."""
_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512


def memory(host: HostContext) -> Iterator[Observation]:
    """Check whether RAM is large enough."""
    probe = HostProbe(SystemClock(), proc=host.path("/proc"), cgroup=host.path("/sys/fs/cgroup"))
    ram = probe.memory()
    if ram.total_bytes is None or ram.available_bytes is None:
        yield unknown(
            "memory could not be checked: /proc/meminfo does not show it",
            "Nothing is planned in host RAM.",
            "Mount /proc in the container.",
        )
        return
    total, free = ram.total_bytes, ram.available_bytes
    text = f"{format_bytes(free)} of {format_bytes(total)} of RAM are available"
    wanted = host.settings.warm_ram_bytes
    if wanted is not None and wanted > total:
        yield problem(
            f"the warm tier should hold {format_bytes(wanted)} of model files, but {text}",
            "Files would evict each other before they are used.",
            "Lower `warm.ram` in the configuration.",
        )
    elif free < _LITTLE_RAM or (wanted is not None and wanted > free):
        yield warning(
            text + (f"; the warm tier wants {format_bytes(wanted)}" if wanted else ""),
            "Model files that are not kept in RAM load at the disk's speed.",
            "ps aux --sort=-rss | head",
        )
    else:
        yield ok(text)


def disks(host: HostContext) -> Iterator[Observation]:
    """Check the free space for models and state."""
    folder = host.settings.models_dir
    if folder is not None:
        yield from _disk(folder, "models", _MODEL_DISK, "The next model may not fit on the disk.")
    yield from _disk(
        host.state_dir, "state and logs", _LITTLE_DISK, "Logs and the database cannot grow on a full disk."
    )


def limits(host: HostContext) -> Iterator[Observation]:
    """Check how many files may be open and how much memory may be locked."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the daemon raises the soft limit to the hard one
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield warning(
            f"{files} files may be open at once",
            "A client needs two: about half as many can be served at a time.",
            "echo '* - nofile 65536' | sudo tee /etc/security/limits.d/cotenant.conf",
        )
    else:
        yield ok(f"{'any number of' if files < 0 else files} files may be open at once")
    names = [entry.name for entry in host.settings.models if entry.recipe.mlock]
    most, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if names and most != resource.RLIM_INFINITY:
        yield warning(
            f"{format_bytes(most)} may be locked in RAM, and {', '.join(names)} ask for `mlock`",
            "Their weights may still be swapped out.",
            "ulimit -l unlimited   # in a systemd unit: LimitMEMLOCK=infinity",
        )


def clock(host: HostContext) -> Iterator[Observation]:
    """Check whether the clock can be right."""
    now_s = time.time()
    if now_s < _EARLIEST:
        yield problem(
            f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime(now_s))}",
            "Certificates are rejected, and the history of loads is useless.",
            "sudo timedatectl set-ntp true",
        )
        return
    state = _kernel_clock()
    if state is None:
        yield unknown("whether the clock is set by the network could not be checked")
    elif state == _TIME_ERROR:
        yield warning(
            "the clock is not set by the network (NTP)",
            "It drifts: times in logs and in the history of decisions cannot be compared between machines.",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield ok("the clock is set by the network")


def _disk(folder: Path, what: str, little: int, matters: str) -> Iterator[Observation]:
    existing = next((each for each in (folder, *folder.parents) if each.exists()), None)
    if existing is None:
        yield unknown(f"the disk for {what}, {folder}, could not be checked")
        return
    usage = shutil.disk_usage(existing)
    text = f"{format_bytes(usage.free)} are free for {what} in {folder}"
    if usage.free < MIB:
        yield problem(text, "Nothing more can be written.", f"df -h {existing}")
    elif usage.free < little:
        yield warning(text, matters, f"df -h {existing}")
    else:
        yield ok(text)
    if os.statvfs(existing).f_favail == 0 and os.statvfs(existing).f_files:
        yield problem(f"no inode is left in {existing}", "No file can be created.", f"df -i {existing}")


def _kernel_clock() -> int | None:
    """Return the state of the kernel's clock; 5 is not synchronized. Needs no privilege."""
    try:
        # `modes` 0, at the start of the structure, changes nothing.
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state
