"""Checks of CUDA's Multi-Process Service."""

from collections.abc import Iterator

from cotenant.doctor.findings import Observation, ok, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.devices import ComputeMode
from cotenant.hardware.mps.control import find_program
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import find_daemons
from cotenant.hardware.mps.processes import is_of_mps


def control_daemons(host: HostContext) -> Iterator[Observation]:
    """Check the control daemons, and for leftovers of dead ones."""
    inventory = host.inventory()
    cards = host.nvidia_cards()
    exclusive = [
        card for card in cards if inventory.reading(card).compute_mode is ComputeMode.EXCLUSIVE_PROCESS
    ]
    program = find_program(host.environ)
    if program is None:
        if exclusive:
            yield warning(
                "the control program of MPS, nvidia-cuda-mps-control, is not installed",
                f"{', '.join(card.label for card in exclusive)} cannot be shared by several engines.",
                "Install the NVIDIA driver's compute tools (Debian, Ubuntu: nvidia-compute-utils-VERSION).",
            )
        return
    found = list(find_daemons(program, host.state_dir, host.environ))
    for daemon in found:
        where = f"an MPS daemon in {daemon.directories.pipe}"
        if daemon.problem is not None:
            yield warning(
                f"{where} cannot be used: {daemon.problem}",
                "Engines run without MPS, which a card in Exclusive_Process mode does not admit.",
                f"CUDA_MPS_PIPE_DIRECTORY={daemon.directories.pipe} nvidia-cuda-mps-control <<< quit",
            )
        else:
            serves = "every card" if daemon.cards is None else ", ".join(daemon.cards)
            yield ok(f"{where} serves {serves}")
    known = [*MpsDirectories.all_ours(host.state_dir), MpsDirectories.by_default(host.environ)]
    stale = [each for each in known if (pid := each.recorded_pid()) is not None and not is_of_mps(pid)]
    if not host.path("/proc/self").exists():
        stale = []
    for directories in stale:
        yield warning(
            f"{directories.pipe} was left behind by an MPS daemon that no longer runs",
            "Programs that find it wait for the daemon or fail.",
            f"rm -r {directories.pipe}",
        )
    if not found and not stale and cards:
        yield ok("MPS is installed and does not run" + ("" if exclusive else "; it is not needed"))
