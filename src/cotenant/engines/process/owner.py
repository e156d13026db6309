"""The owner of a container or an engine: the daemon that started it, identified without ambiguity."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD: Final = 19
"""`starttime` of proc(5), counted from the state, which follows the name."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its boot and namespace, its id there, and its start in clock ticks since boot."""

    boot: str
    namespace: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> Self:
        """Name this process."""
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
        return cls(_BOOT_ID.read_text().strip(), namespace, os.getpid(), _started(os.getpid()) or 0)

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """Read a label; None if it is not one of an owner."""
        with contextlib.suppress(ValueError):
            boot, namespace, pid, started = label.split("/")
            return cls(boot, namespace, int(pid), int(started))
        return None

    @property
    def label(self) -> str:
        """The owner as text for a container's label."""
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether that process runs in this namespace, where its id means it."""
        here = Owner.here()
        return (self.boot, self.namespace, self.started) == (here.boot, here.namespace, _started(self.pid))

    @property
    def another_boot(self) -> bool:
        """Whether it ran before this boot, or on another machine."""
        return self.boot != Owner.here().boot

    @property
    def gone(self) -> bool:
        """Whether that process has certainly ended, though another may have its id by now."""
        if self.another_boot or self.namespace != Owner.here().namespace:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        started = _started(self.pid)
        return started is not None and started != self.started


def _started(pid: int) -> int | None:
    """Return when a process started; None if it has ended or the system does not report it."""
    try:
        # The name may have any characters; the fields follow it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return None
