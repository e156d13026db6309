"""Facts about this machine's processor that determine an engine's arguments."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
_CPUINFO: Final = Path("/proc/cpuinfo")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`cores`: physical cores that this process may use; `has_amx`: the processor advertises AMX."""

    cores: int
    has_amx: bool


def read_host_facts() -> HostFacts:
    """Measure this machine; what cannot be read counts as absent."""
    allowed = os.sched_getaffinity(0)
    cores = physical_cores(allowed)
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, max(1, math.floor(quota)))
    return HostFacts(cores=cores, has_amx=_has_amx())


def physical_cores(cpus: Iterable[int], root: Path = _CPUS) -> int:
    """Count the physical cores of logical CPUs: a second engine thread on the same core only spins."""
    lists = {_text(root / f"cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu) for cpu in cpus}
    return max(1, len(lists))


def cpu_quota(own: Path = _OWN_CGROUP, root: Path = _CGROUPS) -> float | None:
    """Return the CPUs that the control group (version 2) allows, the tightest of its ancestors; or None."""
    lines = _text(own).splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group = root / path.lstrip("/")
    quotas = [_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    try:
        quota, period = _text(folder / "cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _has_amx() -> bool:
    try:
        with _CPUINFO.open() as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return " amx_" in flags
