"""Checks of the kernel's log since the machine was started."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext

_XID: Final = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")
_LOST: Final = re.compile(r"NVRM: .*fallen off the bus")
_KILLED: Final = re.compile(r"[Oo]ut of memory(?: \([^)]*\))?: Killed process (\d+) \(([^)]*)\)")
_RECORD_BYTES: Final = 8192
_MOST_RECORDS: Final = 200_000
_JOURNAL_WITHIN_S: Final = 3.0

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
        answer = host.run(
            ("journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat"), _JOURNAL_WITHIN_S
        )
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
                record = os.read(descriptor, _RECORD_BYTES)
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
