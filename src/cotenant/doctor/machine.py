"""Checks of RAM, disks, limits, the clock, and the kernel's log since the machine was started."""

import ctypes
import errno
import os
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.clock import SystemClock
from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.units import GIB, MIB, format_bytes
from cotenant.hardware.gpus.host import HostProbe

_LITTLE_RAM: Final = 2 * GIB
_XID: Final = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")
_LOST: Final = re.compile(r"NVRM: .*fallen off the bus")
_KILLED: Final = re.compile(r"[Oo]ut of memory(?: \([^)]*\))?: Killed process (\d+) \(([^)]*)\)")
_MOST_RECORDS: Final = 200_000
_OF_HARDWARE: Final = {
    48: "a memory error that ECC could not correct",
    63: "damaged memory will be remapped",
    64: "damaged memory could not be remapped",
    74: "an NVLink error",
    79: "the card has fallen off the bus",
    92: "many memory errors that ECC corrected",
    94: "a memory error confined to one program",
    95: "a memory error that may have affected other programs",
    119: "the card's own processor does not answer",
    120: "the card's own processor failed",
}
"""Xids that point to the card rather than to a program (NVIDIA, "XID Errors")."""


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
    wanted = host.settings.warm_ram_bytes or None
    if wanted is not None and wanted > total:
        yield problem(
            f"the warm tier should hold {format_bytes(wanted)} of model files, but {text}",
            "No more is kept than memory is available for.",
            "Lower `warm.ram_mib` in the configuration.",
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
        yield from _disk(folder, "models", 10 * GIB, "The next model may not fit on the disk.")
    full = "Logs and the database cannot grow on a full disk."
    yield from _disk(host.state_dir, "state and logs", GIB, full)


def limits(host: HostContext) -> Iterator[Observation]:
    """Check how many files may be open and how much memory may be locked."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the daemon raises the soft limit to the hard one
    if files != resource.RLIM_INFINITY and files < 4096:
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
    # 1 January 2025: before it no version of this program existed.
    if now_s < 1_735_689_600:
        yield problem(
            f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime(now_s))}",
            "Certificates are rejected, and the history of loads is useless.",
            "sudo timedatectl set-ntp true",
        )
        return
    state = _kernel_clock()
    if state is None:
        yield unknown("whether the clock is set by the network could not be checked")
    elif state == 5:  # TIME_ERROR
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
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state


def faults(host: HostContext) -> Iterator[Observation]:
    """Check for Xid errors of cards."""
    lines, reason = _kernel_log(host)
    if lines is None:
        yield unknown(
            f"the kernel's log could not be checked for GPU errors (Xid): {reason}",
            "Errors of a failing card often appear there first.",
            "sudo dmesg | grep -E 'Xid|Out of memory'",
        )
        return
    seen = Counter((match[1], int(match[2])) for line in lines if (match := _XID.search(line)))
    lost = any(_LOST.search(line) for line in lines)
    for (address, number), count in sorted(seen.items()):
        what = f"Xid {number} on PCI {address}{'' if count == 1 else f', {count} times'}"
        if number in _OF_HARDWARE:
            yield problem(
                f"{what}: {_OF_HARDWARE[number]}",
                "Engines on that card crash or compute wrong results.",
                "sudo nvidia-smi -r   # or reboot; have the card replaced if it comes back",
            )
        else:
            yield warning(
                what,
                "A program on that card failed; this is mostly the program's or the driver's fault.",
                "sudo dmesg | grep Xid",
            )
    if lost and not any(number == 79 for _, number in seen):
        yield problem(
            "a card has fallen off the bus", "It is unusable until the machine is restarted.", "sudo reboot"
        )
    if not seen and not lost:
        yield ok("no GPU error (Xid) in the kernel's log")


def killed_processes(host: HostContext) -> Iterator[Observation]:
    """Check for processes that the kernel killed for lack of memory."""
    lines, _ = _kernel_log(host)
    killed = Counter(match[2] for line in lines or () if (match := _KILLED.search(line)))
    if killed:
        names = ", ".join(f"{name} ({count}×)" for name, count in killed.most_common(3))
        yield warning(
            f"the kernel has killed processes for lack of memory: {names}",
            "An engine among them stopped in the middle of its answers.",
            "Free RAM, add swap, or keep fewer models in host RAM.",
        )


def _kernel_log(host: HostContext) -> tuple[list[str] | None, str]:
    """Return the lines, or None and why they cannot be read."""
    try:
        return _read_kmsg(host), ""
    except OSError as error:
        reason = "only root may read it" if error.errno == errno.EPERM else str(error.strerror)
    if host.find("journalctl") is not None:
        answer = host.run(("journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat"), 3.0)
        # A user without permission to read the kernel's log gets an empty one and no error.
        if answer.ok and answer.output.count("\n") > 1:
            return answer.output.splitlines(), ""
    return None, reason


def _read_kmsg(host: HostContext) -> list[str]:
    path = host.path("/dev/kmsg")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    lines = []
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:
                # Some records were overwritten before they were read; the next read returns the oldest left.
                continue
            if not record:
                break
            lines.extend(record.decode("utf-8", "replace").splitlines())
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    return lines
