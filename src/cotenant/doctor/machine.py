"""RAM, disks, limits and the clock."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.clock import SystemClock
from cotenant.doctor.findings import Area, Finding, ok, problem, unknown, warning
from cotenant.doctor.host_context import Patient
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


def memory(patient: Patient) -> Iterator[Finding]:
    """Look whether RAM holds what is to be kept in it."""
    probe = HostProbe(SystemClock(), proc=patient.path("/proc"), cgroup=patient.path("/sys/fs/cgroup"))
    host = probe.memory()
    if host.total_bytes is None or host.available_bytes is None:
        yield unknown(
            Area.MACHINE,
            "memory could not be checked: the kernel does not tell it in /proc/meminfo",
            "Nothing is planned in host RAM then.",
            "Mount /proc in the container.",
        )
        return
    total, free = host.total_bytes, host.available_bytes
    told = f"{format_bytes(free)} of {format_bytes(total)} of RAM are available"
    wanted = patient.configuration.warm_ram_bytes if patient.configuration is not None else None
    if wanted is not None and wanted > total:
        yield problem(
            Area.MACHINE,
            f"the warm tier is to hold {format_bytes(wanted)} of model files, and {told}",
            "Files would push each other out before they are used.",
            "Lower `warm.ram` in the configuration.",
        )
    elif free < _LITTLE_RAM or (wanted is not None and wanted > free):
        yield warning(
            Area.MACHINE,
            told + (f"; the warm tier wants {format_bytes(wanted)}" if wanted else ""),
            "Model files that are not kept in RAM load at the disk's speed.",
            "ps aux --sort=-rss | head",
        )
    else:
        yield ok(Area.MACHINE, told)


def disks(patient: Patient) -> Iterator[Finding]:
    """Look for room where models and state are kept."""
    configuration = patient.configuration
    folder = configuration.models_dir if configuration is not None else None
    if folder is not None:
        yield from _disk(folder, "models", _MODEL_DISK, "The next model may not fit on the disk.")
    yield from _disk(
        patient.state_dir, "state and logs", _LITTLE_DISK, "Logs and the database cannot grow on a full disk."
    )


def limits(patient: Patient) -> Iterator[Finding]:
    """Look at how many files may be open, and how much memory may be locked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        enough = hard == resource.RLIM_INFINITY or hard >= _FEW_FILES
        yield warning(
            Area.MACHINE,
            f"{soft} files may be open at once",
            "A client costs two: about half as many can be served at a time.",
            "ulimit -n 65536   # in a systemd unit: LimitNOFILE=65536"
            if enough
            else "echo '* - nofile 65536' | sudo tee /etc/security/limits.d/cotenant.conf",
        )
    else:
        yield ok(Area.MACHINE, f"{'any number of' if soft < 0 else soft} files may be open at once")
    locked = [] if patient.configuration is None else patient.configuration.models
    names = [entry.name for entry in locked if entry.recipe.mlock]
    most, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if names and most != resource.RLIM_INFINITY:
        yield warning(
            Area.MACHINE,
            f"{format_bytes(most)} may be locked in RAM, and {', '.join(names)} ask for `mlock`",
            "Their weights may be swapped out all the same.",
            "ulimit -l unlimited   # in a systemd unit: LimitMEMLOCK=infinity",
        )


def clock(patient: Patient) -> Iterator[Finding]:
    """Look whether the time of day can be right."""
    now_s = time.time()
    if now_s < _EARLIEST:
        yield problem(
            Area.MACHINE,
            f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime(now_s))}",
            "Certificates are refused, and the history of loads is worthless.",
            "sudo timedatectl set-ntp true",
        )
        return
    state = _kernel_clock()
    if state is None:
        yield unknown(Area.MACHINE, "whether the clock is set by the network could not be checked")
    elif state == _TIME_ERROR:
        yield warning(
            Area.MACHINE,
            "the clock is not set by the network (NTP)",
            "It drifts: times in logs and in the history of decisions cannot be compared between machines.",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield ok(Area.MACHINE, "the clock is kept right by the network")


def _disk(folder: Path, what: str, little: int, matters: str) -> Iterator[Finding]:
    existing = next((each for each in (folder, *folder.parents) if each.exists()), None)
    if existing is None:
        yield unknown(Area.MACHINE, f"the disk for {what}, {folder}, could not be checked")
        return
    usage = shutil.disk_usage(existing)
    told = f"{format_bytes(usage.free)} are free for {what} in {folder}"
    if usage.free < MIB:
        yield problem(Area.MACHINE, told, "Nothing more can be written.", f"df -h {existing}")
    elif usage.free < little:
        yield warning(Area.MACHINE, told, matters, f"df -h {existing}")
    else:
        yield ok(Area.MACHINE, told)
    if os.statvfs(existing).f_favail == 0 and os.statvfs(existing).f_files:
        yield problem(
            Area.MACHINE, f"no inode is left in {existing}", "No file can be made.", f"df -i {existing}"
        )


def _kernel_clock() -> int | None:
    """Ask the kernel how sure it is of the time; 5 is that nobody disciplines it. Needs no privilege."""
    try:
        # `modes` 0, at the start of the structure, changes nothing.
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state
