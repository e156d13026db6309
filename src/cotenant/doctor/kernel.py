"""What the kernel's log tells of the cards since the machine was started."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Area, Finding, ok, problem, unknown, warning
from cotenant.doctor.host_context import Patient

_XID: Final = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")
_LOST: Final = re.compile(r"NVRM: .*fallen off the bus")
_KILLED: Final = re.compile(r"[Oo]ut of memory(?: \([^)]*\))?: Killed process (\d+) \(([^)]*)\)")
_RECORD_BYTES: Final = 8192
_MOST_RECORDS: Final = 200_000
_JOURNAL_WITHIN_S: Final = 3.0

_OF_HARDWARE: Final = {
    48: "a memory error that ECC could not correct",
    63: "damaged memory is to be mapped away",
    64: "damaged memory could not be mapped away",
    74: "an NVLink error",
    79: "the card has fallen off the bus",
    92: "many memory errors that ECC corrected",
    94: "a memory error confined to one program",
    95: "a memory error that may have reached others",
    119: "the card's own processor does not answer",
    120: "the card's own processor failed",
}
"""Xids that point to the card rather than to a program (NVIDIA, "XID Errors")."""


def faults(patient: Patient) -> Iterator[Finding]:
    """Look for Xid errors and for engines that the kernel killed."""
    lines, reason = _kernel_log(patient)
    if lines is None:
        yield unknown(
            Area.CARDS,
            f"the kernel's log could not be checked for faults of cards (Xid): {reason}",
            "A card that fails is often seen there first.",
            "sudo dmesg | grep -E 'Xid|Out of memory'",
        )
        return
    seen = Counter((match[1], int(match[2])) for line in lines if (match := _XID.search(line)))
    lost = any(_LOST.search(line) for line in lines)
    for (address, number), count in sorted(seen.items()):
        yield _xid(address, number, count)
    if lost and not any(number == 79 for _, number in seen):
        yield problem(
            Area.CARDS,
            "a card has fallen off the bus",
            "It is gone until the machine is restarted.",
            "sudo reboot",
        )
    if not seen and not lost:
        yield ok(Area.CARDS, "no fault of a card (Xid) in the kernel's log")
    killed = Counter(match[2] for line in lines if (match := _KILLED.search(line)))
    if killed:
        names = ", ".join(f"{name} ({count}×)" for name, count in killed.most_common(3))
        yield warning(
            Area.MACHINE,
            f"the kernel has killed processes for lack of memory: {names}",
            "An engine among them died in the middle of its answers.",
            "Free RAM, add swap, or keep fewer models in host RAM.",
        )


def _xid(address: str, number: int, count: int) -> Finding:
    times = "" if count == 1 else f", {count} times"
    if number in _OF_HARDWARE:
        return problem(
            Area.CARDS,
            f"Xid {number} on PCI {address}{times}: {_OF_HARDWARE[number]}",
            "Engines on that card die or compute wrongly.",
            "sudo nvidia-smi -r   # or reboot; have the card replaced if it comes back",
        )
    return warning(
        Area.CARDS,
        f"Xid {number} on PCI {address}{times}",
        "A program on that card failed; this kind is mostly the program's or the driver's fault.",
        "sudo dmesg | grep Xid",
    )


def _kernel_log(patient: Patient) -> tuple[list[str] | None, str]:
    """Return the lines, or None and why they cannot be read."""
    try:
        return _read_kmsg(patient), ""
    except OSError as error:
        reason = "only root may read it" if error.errno == errno.EPERM else str(error.strerror)
    if patient.find("journalctl") is not None:
        answer = patient.run(
            ("journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat"), _JOURNAL_WITHIN_S
        )
        # A user who may not read the kernel's log gets an empty one, and no error.
        if answer.worked and answer.output.count("\n") > 1:
            return answer.output.splitlines(), ""
    return None, reason


def _read_kmsg(patient: Patient) -> list[str]:
    path = patient.path("/dev/kmsg")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    lines = []
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(descriptor, _RECORD_BYTES)
            except BrokenPipeError:
                # Some were overwritten before they were read; the next read gives the oldest that is left.
                continue
            if not record:
                break
            lines.extend(record.decode("utf-8", "replace").splitlines())
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    return lines
