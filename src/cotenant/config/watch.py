"""Telling when the configuration or the model files change, by looking at them twice a second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.clock import Clock, SystemClock
from cotenant.config.models_dir import gguf_files

POLL_S: Final = 0.5
QUIET_S: Final = 1.0
"""How long a file must not change before it counts as complete."""

Mark = tuple[int, int, int]
"""Inode, size and modification time: plain values, since a hundred files are looked at twice a second."""
Snapshot = Mapping[str, Mark | None]


@dataclass(frozen=True, slots=True)
class Watched:
    """What to look at: files (the configuration's own), and the folder of models if there is one."""

    files: tuple[Path, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Something is new, gone or different. `unsettled` are files still being written, not to be read yet."""

    unsettled: frozenset[Path] = frozenset()


class _Observer:
    """Compares one look with the next."""

    def __init__(self) -> None:
        self._seen: Snapshot = {}
        self._touched: dict[str, float] = {}
        self._untold = False
        self._first = True

    def look(self, snapshot: Snapshot, now: float) -> Change | None:
        """Take in what is there at the instant `now`. Returns a Change once it is worth telling."""
        if self._first:
            # What was there before is as complete as it was when the configuration was read.
            self._first, self._seen = False, snapshot
            return Change()
        for path in self._seen.keys() - snapshot.keys():
            self._touched.pop(path, None)
            self._untold = True
        for path, seen in snapshot.items():
            if path not in self._seen or self._seen[path] != seen:
                self._touched[path] = now
        self._seen = snapshot
        settled = [path for path, at in self._touched.items() if now - at >= QUIET_S]
        for path in settled:
            del self._touched[path]
        if not settled and not self._untold:
            return None
        self._untold = False
        return Change(frozenset(Path(path) for path in self._touched))


async def watch(
    watched: Callable[[], Watched], clock: Clock | None = None, poll_s: float = POLL_S
) -> AsyncIterator[Change]:
    """Yield a Change within 2 s of each, for as long as it is iterated over.

    `watched` is asked before each look, so that it may follow the configuration. The first Change comes at
    once, whether anything happened or not, so that nothing is missed that happened between reading the
    configuration and watching it.
    """
    clock, observer = clock or SystemClock(), _Observer()
    while True:
        # Off the loop: a disk that sleeps or a network that hangs must not hold up requests.
        snapshot = await asyncio.to_thread(_snapshot, watched())
        change = observer.look(snapshot, clock.now())
        if change is not None:
            yield change
        await asyncio.sleep(poll_s)


def _snapshot(watched: Watched) -> Snapshot:
    found = {str(path): _mark(path) for path in watched.files}
    # Without the folder its models are gone, too, and the next reading of it will say why.
    with suppress(OSError):
        if watched.folder is not None:
            found |= {path: _mark(path) for path in gguf_files(str(watched.folder))}
    return found


def _mark(path: str | Path) -> Mark | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
