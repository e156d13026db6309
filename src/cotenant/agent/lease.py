"""Until when engines may run without a daemon, and which daemon commands this machine."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotenant.atomic_files import write_durably
from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import LeaseOver, StaleEpoch
from cotenant.domain.units import format_duration

_NS: Final = 1_000_000_000


def boottime() -> float:
    """Return CLOCK_BOOTTIME in seconds: it counts the time in which the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease of an agent, in a file that the guards of its engines read (`engines.process.guard`).

    It lasts `lease_s` from a stamp: the agent's own clock when it sent what the daemon has answered. So a
    delay on either way can only shorten it. It begins as over.
    """

    def __init__(self, path: Path, now: Callable[[], float] = boottime) -> None:
        self.path = path
        self.lease_s = 0.0
        self._now = now
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._due = 0.0
        self._write(0.0)

    @property
    def left_s(self) -> float:
        """What is left of it; 0 once it is over."""
        return max(0.0, self._due - self._now())

    def stamp(self) -> float:
        """Return what a daemon sends back to renew it."""
        return self._now()

    def renew(self, stamp: float) -> None:
        """Extend it to `lease_s` after `stamp`. Raises LeaseOver for a stamp that this clock never showed."""
        if stamp > self._now():
            raise LeaseOver("a stamp is of another boot, or of another machine", hint="Say hello again.")
        self._write(max(self._due, stamp + self.lease_s))

    def end(self) -> None:
        """End it now."""
        self._write(0.0)

    def check(self) -> None:
        """Raise LeaseOver if it is over."""
        if not self.left_s:
            raise LeaseOver(
                f"no daemon has renewed the lease of {format_duration(self.lease_s)}",
                hint="It is renewed by the next heartbeat.",
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, due: float) -> None:
        self._due = due
        os.pwrite(self._fd, int(due * _NS).to_bytes(8, "little"), 0)


class Epoch:
    """The highest number of a daemon that this machine has seen, also before the agent was restarted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.highest = 0
        with contextlib.suppress(OSError, ValueError):
            self.highest = int(path.read_text(encoding="ascii"))

    def obey(self, epoch: int) -> None:
        """Accept the orders of a daemon. Raises StaleEpoch if one that began later was seen."""
        if epoch < self.highest:
            raise StaleEpoch(
                f"this machine obeys daemon {self.highest} of the fleet, and this is daemon {epoch}",
                hint="Another daemon of the same fleet was started since; only one may run.",
            )
        if epoch > self.highest:
            try:
                write_durably(self._path, str(epoch).encode(), 0o600)
            except OSError as error:
                raise CotenantError(
                    f"the agent cannot remember which daemon it obeys: {self._path}: {error.strerror}"
                ) from error
            self.highest = epoch
