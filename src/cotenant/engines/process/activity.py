"""What a process and those below it have done so far."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cotenant.engines.process.guard import descendants


@dataclass(frozen=True, slots=True)
class Activity:
    """The CPU seconds that processes have used, and their states (`R`, `S`, `T`, `D`)."""

    cpu_s: float
    states: frozenset[str]

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return what a process and its descendants have done."""
        ticks, states = 0, set()
        for each in (pid, *descendants(pid)):
            try:
                # The name may have any characters; the state follows it.
                fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            states.add(fields[0])
            ticks += int(fields[11]) + int(fields[12])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), frozenset(states))
