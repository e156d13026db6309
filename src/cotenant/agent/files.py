"""Which model files an agent's machine has, and how fast they are to read."""

import asyncio
import contextlib
import glob
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from cotenant.agent.events import EventLog
from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.nodes import FileState
from cotenant.hardware.model_cache.page_cache import resident_bytes
from cotenant.nodes.file_messages import FileStatus
from cotenant.nodes.messages import FilesSeen

STAGING: Final = ".pulls"
"""The folder, next to a file, that has what has come of it so far."""
_WARM_SHARE: Final = 0.9
_CHANGE_SHARE: Final = 0.1
_EVERY_S: Final = 10.0
_AT_MOST: Final = 0.005
"""The share of a core that looking at files may take: of large ones the page cache takes milliseconds."""
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
        return FileStatus(path, FileState.ABSENT, room_bytes=_room_bytes(path))
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


def _room_bytes(path: Path) -> int | None:
    """Return what is free for a file on the disk that would have it, with what came of it before."""
    for folder in path.parents:
        with contextlib.suppress(OSError):
            parts = (path.parent / STAGING).glob(f"{glob.escape(path.name)}.*.part")
            return shutil.disk_usage(folder).free + sum(part.stat().st_size for part in parts)
    return None


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


@dataclass(eq=False)
class FileWatch:
    """Reports the watched files in `events` when one is no longer as it was: absent, or less of it in RAM.

    They are looked at every `every_s`, and at once when something has happened that changes them.
    """

    clock: Clock
    events: EventLog
    every_s: float = _EVERY_S
    _paths: tuple[Path, ...] = ()
    _reported: dict[Path, FileStatus] = field(default_factory=dict)
    _again: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, paths: Sequence[Path]) -> None:
        """Report these files from now on, all of them once."""
        self._paths, self._reported = tuple(paths), {}
        self._again.set()

    def changed(self) -> None:
        """Look soon: an engine has read files, or some were fetched."""
        self._again.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._again.clear()
            paths, began = self._paths, self.clock.now()
            found = await run_in_detached_thread(partial(statuses, paths)) if paths else ()
            if paths is self._paths:
                self._report(found)
            took_s = self.clock.now() - began
            # However often something happens.
            await asyncio.sleep(took_s / _AT_MOST)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.every_s):
                    await self._again.wait()

    def _report(self, found: Sequence[FileStatus]) -> None:
        new = tuple(each for each in found if _differ(self._reported.get(each.path), each))
        self._reported |= {each.path: each for each in new}
        if new:
            self.events.add(FilesSeen(new))


def _differ(before: FileStatus | None, now: FileStatus) -> bool:
    if before is None or (before.state, before.size_bytes) != (now.state, now.size_bytes):
        return True
    moved = abs((before.warm_bytes or 0) - (now.warm_bytes or 0)) > _CHANGE_SHARE * (now.size_bytes or 0)
    return moved or abs((before.room_bytes or 0) - (now.room_bytes or 0)) > _CHANGE_SHARE * (
        now.room_bytes or 0
    )
