"""Which model files an agent's machine has, and how fast they are to read."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cotenant.hardware.model_cache.page_cache import resident_bytes
from cotenant.nodes.file_messages import FileState, FileStatus

_WARM_SHARE: Final = 0.9
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "beegfs", "glusterfs", "gpfs", "afs"}
)
_NETWORK_FUSE: Final = (
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.juicefs",
    "fuse.ceph",
)


def statuses(paths: Sequence[Path]) -> tuple[FileStatus, ...]:
    """Return where each file is.

    It reads nothing of them, but the file system of a network may hang: call it in a thread.
    """
    mounts = _mounts()
    return tuple(_status(path, mounts) for path in paths)


def _status(path: Path, mounts: dict[int, str]) -> FileStatus:
    try:
        found = path.stat()
    except OSError:
        # Also where a server of files has forgotten it (ESTALE), or no answer comes from it.
        return FileStatus(path, FileState.ABSENT)
    if stat.S_ISDIR(found.st_mode):  # a model in a folder of files
        return FileStatus(path, FileState.LOCAL)
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.R_OK):
        return FileStatus(path, FileState.ABSENT)
    warm = resident_bytes(path)
    if warm is not None and found.st_size and warm >= _WARM_SHARE * found.st_size:
        state = FileState.WARM
    else:
        kind = mounts.get(found.st_dev, "")
        state = FileState.SHARED if kind in _NETWORK or kind.startswith(_NETWORK_FUSE) else FileState.LOCAL
    return FileStatus(path, state, found.st_size, warm)


def _mounts() -> dict[int, str]:
    """Return the kind of the file system of each device number, from /proc/self/mountinfo."""
    found = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return {}
    for fields in lines:
        major, _, minor = fields[2].partition(":")
        found[os.makedev(int(major), int(minor))] = fields[fields.index("-") + 1]
    return found
