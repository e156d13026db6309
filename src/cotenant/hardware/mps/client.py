"""The variables that make an engine run under MPS, within its limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.units import MIB
from cotenant.hardware.mps.directories import PIPE_VARIABLE, MpsDirectories

MODEL_VARIABLE: Final = "COTENANT_MODEL"
"""Shows `cotenant mps status` which model a client runs."""
MEMORY_VARIABLE: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
THREADS_VARIABLE: Final = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


@dataclass(frozen=True, slots=True)
class ClientShare:
    """What one client may take: bytes on each device in the order in which it sees them, and of the SMs.

    Without `memory_bytes` or `threads_percent` MPS sets no limit of that kind.
    """

    model: str
    memory_bytes: Sequence[int] = ()
    threads_percent: int | None = None


def client_environment(directories: MpsDirectories, share: ClientShare) -> dict[str, str]:
    """Return the variables of a client (NVIDIA's MPS documentation, "Environment Variables")."""
    variables = {PIPE_VARIABLE: str(directories.pipe), MODEL_VARIABLE: share.model}
    if share.memory_bytes:
        limits = (f"{number}={-(-count // MIB)}M" for number, count in enumerate(share.memory_bytes))
        variables[MEMORY_VARIABLE] = ",".join(limits)
    if share.threads_percent is not None:
        variables[THREADS_VARIABLE] = str(share.threads_percent)
    return variables
