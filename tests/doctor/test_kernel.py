import errno
import os
from pathlib import Path

import pytest

from cotenant.doctor import machine as checks
from cotenant.doctor.findings import Level
from tests.doctor.support import levels, machine, only, program, write

FALLEN = "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus"
PAGE_FAULT = "NVRM: Xid (PCI:0000:01:00): 31, pid=4242, Ch 00000008, intr 00000000. MMU Fault"
KILLED = "Out of memory: Killed process 4242 (llama-server) total-vm:8388608kB, anon-rss:7340032kB"


@pytest.mark.parametrize("source", ["kmsg", "journal"])
def test_faults_of_the_hardware_are_problems_and_those_of_programs_warnings(
    tmp_path: Path, source: str
) -> None:
    log = f"6,1,1,-;fine\n4,2,2,-;{PAGE_FAULT}\n4,2,3,-;{PAGE_FAULT}\n4,3,4,-;{FALLEN}\n4,4,5,-;{KILLED}\n"
    host = machine(tmp_path)
    if source == "kmsg":
        write(tmp_path, "/dev/kmsg", log)
    else:
        (tmp_path / "log").write_text(log)
        program(tmp_path, "journalctl", f"cat {tmp_path / 'log'}")

    found = [*checks.faults(host), *checks.killed_processes(host)]
    assert "Xid 79 on PCI 0000:44:00" in only(found, Level.PROBLEM).seen
    assert [each.seen for each in found if each.level is Level.WARNING] == [
        "Xid 31 on PCI 0000:01:00, 2 times",
        "the kernel has killed processes for lack of memory: llama-server (1×)",
    ]


def test_a_loss_that_the_newer_driver_tells_in_two_lines_is_seen(tmp_path: Path) -> None:
    write(
        tmp_path,
        "/dev/kmsg",
        "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: fallen off the bus and is not responding\n",
    )

    assert "fallen off the bus" in only(checks.faults(machine(tmp_path)), Level.PROBLEM).seen


@pytest.mark.parametrize(
    "begins", ["Memory cgroup out of memory", "Out of memory (oom_kill_allocating_task)"]
)
def test_a_kill_within_a_limit_of_memory_counts_as_one_of_the_machine(tmp_path: Path, begins: str) -> None:
    write(tmp_path, "/dev/kmsg", KILLED.replace("Out of memory", begins) + "\n")

    assert "llama-server (1×)" in only(checks.killed_processes(machine(tmp_path)), Level.WARNING).seen


def test_records_that_are_overwritten_while_being_read_do_not_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "/dev/kmsg", f"{FALLEN}\n")
    real, faults = os.read, iter([BrokenPipeError(errno.EPIPE, "overwritten")])

    def read(descriptor: int, count: int) -> bytes:
        for fault in faults:
            raise fault
        return real(descriptor, count)

    monkeypatch.setattr(os, "read", read)
    assert "Xid 79" in only(checks.faults(machine(tmp_path)), Level.PROBLEM).seen


def test_a_quiet_log_is_well(tmp_path: Path) -> None:
    write(tmp_path, "/dev/kmsg", "6,1,1,-;fine\n")

    assert levels(checks.faults(machine(tmp_path))) == [Level.OK]


@pytest.mark.parametrize("journal", [None, "exit 1", "echo '-- No entries --'"])
def test_a_log_that_may_not_be_read_is_said_to_be_unseen(tmp_path: Path, journal: str | None) -> None:
    host = machine(tmp_path)
    if journal is not None:
        program(tmp_path, "journalctl", journal)

    (found,) = checks.faults(host)
    assert found.level is Level.UNKNOWN
    assert "sudo dmesg" in found.fix
