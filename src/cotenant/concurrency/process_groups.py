"""Process groups of this machine."""

from __future__ import annotations

import os


def group_of(pid: int) -> int | None:
    """Return the group of a process of this machine; None if there is none that can be seen."""
    try:
        return os.getpgid(pid)
    except (OSError, OverflowError):
        return None
