"""How many engines a GPU admits at once: its compute mode, and MPS.

In Exclusive_Process a second process dies with CUDA error 46 (NVIDIA's Multi-Process Service documentation,
"GPU Compute Modes"); with an MPS daemon, only MPS's own server counts as a process.
"""

from dataclasses import dataclass
from typing import Final

from cotenant.domain.devices import ComputeMode, Device, GpuProcess, Reading

MPS_SERVER: Final = "nvidia-cuda-mps-server"
"""The program that holds a card for its clients."""
_CLIENTS: Final = 48
_CLIENTS_BEFORE_VOLTA: Final = 16
_VOLTA: Final = (7, 0)


@dataclass(frozen=True, slots=True)
class Admission:
    """How many engines a device admits at once, None for any number; `why` says in one clause why no more.

    An engine on a device of a `group` can use only devices of the same group.
    """

    max_engines: int | None = None
    why: str = ""
    group: str | None = None


ANY_NUMBER: Final = Admission()


def alone(device: Device, why_not_shared: str, way_out: str) -> Admission:
    """Admit one engine to an Exclusive_Process device; `why` says both ways to allow more."""
    return Admission(
        1,
        f"its compute mode is Exclusive_Process, which admits one engine at a time, and {why_not_shared}: "
        f"{way_out}, or have an administrator run `{default_mode_command(device)}`",
    )


def through_mps(device: Device, group: str) -> Admission:
    """Admit as many engines as an MPS server takes clients on a device."""
    capability = device.compute_capability
    old = capability is not None and capability < _VOLTA
    most = _CLIENTS_BEFORE_VOLTA if old else _CLIENTS
    return Admission(most, f"MPS takes at most {most} clients there", group)


def left_out_by_mode(device: Device, reading: Reading, others: tuple[GpuProcess, ...]) -> str | None:
    """Return why the compute mode of a device excludes our engines; None if it does not.

    `others` are the processes on it that are not ours. If one is an MPS server, the others are its clients
    and the device can be shared.
    """
    if reading.compute_mode is ComputeMode.PROHIBITED:
        return (
            "its compute mode is Prohibited: an administrator can lift that with "
            f"`{default_mode_command(device)}`"
        )
    if reading.compute_mode is not ComputeMode.EXCLUSIVE_PROCESS:
        return None
    if not others or any(is_mps_server(process) for process in others):
        return None
    holder = others[0]
    name = f" ({holder.name})" if holder.name else ""
    return (
        f"its compute mode is Exclusive_Process and process {holder.pid}{name} holds it: end that process, "
        f"or have an administrator run `{default_mode_command(device)}`"
    )


def is_mps_server(process: GpuProcess) -> bool:
    """Whether a process holds a card for the clients of an MPS daemon."""
    return (process.name or "").split(" ")[0].rpartition("/")[2] == MPS_SERVER


def default_mode_command(device: Device) -> str:
    """Return the command with which root allows any number of processes on a device."""
    card = device.parent_id or device.id
    return f"sudo nvidia-smi -i {card if device.index is None else device.index} -c DEFAULT"
