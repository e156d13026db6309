"""CUDA's Multi-Process Service: whether it is there, runs, and can be used."""

from __future__ import annotations

from collections.abc import Iterator

from cotenant.doctor.findings import Area, Finding, ok, warning
from cotenant.doctor.host_context import Patient
from cotenant.domain.devices import ComputeMode
from cotenant.hardware.mps.control import find_program
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import find_daemons
from cotenant.hardware.mps.processes import is_of_mps


def control_daemons(patient: Patient) -> Iterator[Finding]:
    """Look for control daemons, and for what dead ones left behind."""
    inventory = patient.inventory()
    cards = patient.nvidia_cards()
    exclusive = [
        card for card in cards if inventory.reading(card).compute_mode is ComputeMode.EXCLUSIVE_PROCESS
    ]
    program = find_program(patient.environ)
    if program is None:
        if exclusive:
            yield warning(
                Area.SHARING,
                "the control program of MPS, nvidia-cuda-mps-control, is not installed",
                f"{', '.join(card.label for card in exclusive)} cannot be shared by several engines.",
                "Install the NVIDIA driver's compute tools (Debian, Ubuntu: nvidia-compute-utils-VERSION).",
            )
        return
    found = list(find_daemons(program, patient.state_dir, patient.environ))
    for daemon in found:
        where = f"an MPS daemon in {daemon.directories.pipe}"
        if daemon.problem is not None:
            yield warning(
                Area.SHARING,
                f"{where} cannot be used: {daemon.problem}",
                "Engines run without MPS, which a card in Exclusive_Process mode does not admit.",
                f"CUDA_MPS_PIPE_DIRECTORY={daemon.directories.pipe} nvidia-cuda-mps-control <<< quit",
            )
        else:
            serves = "every card" if daemon.cards is None else ", ".join(daemon.cards)
            yield ok(Area.SHARING, f"{where} serves {serves}")
    seeing = patient.path("/proc/self").exists()
    stale = [each for each in _known(patient) if seeing and _left_behind(each)]
    for directories in stale:
        yield warning(
            Area.SHARING,
            f"{directories.pipe} was left behind by an MPS daemon that is gone",
            "Programs that find it there wait for it or fail.",
            f"rm -r {directories.pipe}",
        )
    if not found and not stale and cards:
        yield ok(Area.SHARING, "MPS is installed and does not run" + ("" if exclusive else ", nor need it"))


def _known(patient: Patient) -> list[MpsDirectories]:
    return [*MpsDirectories.all_ours(patient.state_dir), MpsDirectories.by_default(patient.environ)]


def _left_behind(directories: MpsDirectories) -> bool:
    pid = directories.noted_pid()
    return pid is not None and not is_of_mps(pid)
