"""What services hold on GPUs, measured: the driver's processes, by the container that each runs in."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Inventory
from cotenant.services.model import ContainerState

_PROC: Final = Path("/proc")


def measured_bytes(
    inventory: Inventory, containers: Iterable[ContainerState], proc: Path = _PROC
) -> dict[str, int]:
    """Return the bytes that the processes of each service hold on all GPUs together, by the service's name.

    A process belongs to the container whose id is in the path of its control group. Services are left out
    that have no process on a GPU, or one whose memory the driver does not report. It reads files.
    """
    ids = {each.container_id: each.service for each in containers if each.running and each.container_id}
    found: Counter[str] = Counter()
    unknown: set[str] = set()
    for reading in inventory.readings.values():
        for process in reading.processes or () if ids else ():
            groups = _groups(proc / str(process.pid) / "cgroup")
            service = next((name for id_, name in ids.items() if id_ in groups), None)
            if service is not None and process.used_bytes is not None:
                found[service] += process.used_bytes
            elif service is not None:
                unknown.add(service)
    return {name: count for name, count in found.items() if name not in unknown}


def _groups(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
