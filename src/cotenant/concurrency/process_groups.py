"""Process groups of this machine."""

import os


def group_of(pid: int) -> int | None:
    """Return the process group of a process; None if the process does not exist or is not visible."""
    try:
        return os.getpgid(pid)
    except (OSError, OverflowError):
        return None
