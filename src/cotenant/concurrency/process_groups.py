"""Process groups and families of this machine."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

_DEEPEST: Final = 64


def group_of(pid: int) -> int | None:
    """Return the process group of a process; None if the process does not exist or is not visible."""
    try:
        return os.getpgid(pid)
    except (OSError, OverflowError):
        return None


def leader_of(pid: int, leaders: Collection[int]) -> int | None:
    """Return the one of `leaders` whose process group a process is in, or else that it descends from."""
    group = group_of(pid)
    if group is not None and group in leaders:
        return group
    for _ in range(_DEEPEST if leaders else 0):
        try:
            status = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # The name, in parentheses, may hold anything.
        pid = int(status.rpartition(b")")[2].split()[1])
        if pid in leaders:
            return pid
        if pid <= 1:
            return None
    return None
