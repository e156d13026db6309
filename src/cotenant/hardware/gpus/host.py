"""The RAM of this machine as a device."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cotenant.clock import Clock
from cotenant.domain.devices import HOST_ID, Device, DeviceKind, Inventory, Reading
from cotenant.domain.vendors import InventorySource

HOST_NAME = "host RAM"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Total and available bytes of RAM, as this process may use them. Unknown is None."""

    total_bytes: int | None
    available_bytes: int | None


class HostProbe:
    """Describes a machine by its RAM alone.

    A process in a container or a systemd slice may use less than the machine has: the lowest limit of its
    control groups counts. `proc` and `cgroup` are the roots of those file systems.
    """

    def __init__(
        self, clock: Clock, *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._clock = clock
        self._proc = proc
        self._cgroup = cgroup

    def inventory(self, problems: tuple[str, ...] = ()) -> Inventory:
        """Measure the RAM now; `problems` says why there is no GPU, if something is wrong."""
        memory = self.memory()
        total, available = memory.total_bytes, memory.available_bytes
        device = Device(HOST_ID, DeviceKind.HOST, HOST_NAME, total_bytes=total)
        unknown = "the kernel does not report its memory in /proc/meminfo"
        reading = Reading(
            HOST_ID,
            at=self._clock.now(),
            used_bytes=None if total is None or available is None else total - available,
            free_bytes=available,
            problem=unknown if available is None else None,
        )
        return Inventory(InventorySource.HOST, (device,), {HOST_ID: reading}, problems=problems)

    def memory(self) -> HostMemory:
        """Return the least of what the machine and each control group above this process leave."""
        facts = _number_table(self._proc / "meminfo")
        total, available = (
            facts[name] * 1024 if name in facts else None for name in ("MemTotal", "MemAvailable")
        )
        for limit, room in self._cgroup_limits():
            total = limit if total is None else min(total, limit)
            available = room if available is None else min(available, room)
        return HostMemory(total, available)

    def _cgroup_limits(self) -> Iterator[tuple[int, int]]:
        """Yield the limit and the room of each group from this process's own up to the root."""
        for line in _text(self._proc / "self" / "cgroup").splitlines():
            hierarchy, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if hierarchy == "0" and not controllers:
                root = self._cgroup
                limit_name, usage_name, cache_key = "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                root = self._cgroup / "memory"
                limit_name, usage_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache_key = "total_inactive_file"
            else:
                continue
            # Inside a container the path may be the host's and absent here (version 1) or climb out of the
            # mount (`/../x`, version 2); the mount's root is then the container's own group.
            parts = [part for part in path.split("/") if part]
            depth = 0 if ".." in parts else len(parts)
            for kept in range(depth, -1, -1):
                folder = root.joinpath(*parts[:kept])
                limit, usage = _number(folder / limit_name), _number(folder / usage_name)
                if limit is None or usage is None:
                    continue
                # The usage counts the page cache, which a model file that was read once fills. The kernel
                # drops inactive pages before it refuses memory: they count as room, as for the kubelet.
                cache = _number_table(folder / "memory.stat").get(cache_key, 0)
                yield limit, max(0, limit - max(0, usage - cache))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _number_table(path: Path) -> dict[str, int]:
    """Read `name value` or `name: value unit` lines."""
    table = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdecimal():
            table[words[0]] = int(words[1])
    return table
