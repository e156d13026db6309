"""What services hold on GPUs, measured: the driver's processes, by the container that each runs in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cotenant.domain.devices import DeviceId, Inventory
from cotenant.services.model import ContainerState

_PROC: Final = Path("/proc")


def measured_bytes(
    inventory: Inventory, containers: Iterable[ContainerState], proc: Path = _PROC
) -> dict[str, dict[DeviceId, int]]:
    """Return the bytes that the processes of each service hold, by the service's name and by GPU.

    A process belongs to the container whose id is in the path of its control group. Services are left out
    that have no process on a GPU, or one whose memory the driver does not report. It reads files.
    """
    ids = {each.container_id: each.service for each in containers if each.running and each.container_id}
    found: dict[str, dict[DeviceId, int]] = {}
    unknown: set[str] = set()
    for device, reading in inventory.readings.items():
        for process in reading.processes or () if ids else ():
            groups = _groups(proc / str(process.pid) / "cgroup")
            service = next((name for id_, name in ids.items() if id_ in groups), None)
            if service is not None and process.used_bytes is not None:
                here = found.setdefault(service, {})
                here[device] = here.get(device, 0) + process.used_bytes
            elif service is not None:
                unknown.add(service)
    return {name: by_device for name, by_device in found.items() if name not in unknown}


def _groups(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
