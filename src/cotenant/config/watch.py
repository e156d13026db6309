"""Detects changes of the configuration and the model files by polling them twice a second."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.clock import Clock, SystemClock
from cotenant.config.configuration import FileSignature
from cotenant.config.model_file_cache import signature
from cotenant.config.models_dir import gguf_files

POLL_S: Final = 0.5
QUIET_S: Final = 1.0
"""How long a file must not change before it counts as complete."""

Snapshot = Mapping[str, FileSignature | None]


@dataclass(frozen=True, slots=True)
class Watched:
    """What to watch: the configuration files, and the folder of models if there is one."""

    files: tuple[Path, ...] = ()
    folder: Path | None = None
    served: frozenset[str] = frozenset()
    """Files in the folder that are served: the last reading saw them, maybe no snapshot did."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file was added, removed or changed. `unsettled` files are still being written: do not read them."""

    unsettled: frozenset[Path] = frozenset()


class _Observer:
    """Compares each snapshot with the one before."""

    def __init__(self) -> None:
        self._seen: Snapshot | None = None
        self._touched: dict[str, float] = {}
        self._missing: frozenset[str] = frozenset()

    def look(self, snapshot: Snapshot, served: frozenset[str], now: float) -> Change | None:
        """Compare the snapshot at time `now`. Returns a Change when one must be reported."""
        before, self._seen = self._seen, snapshot
        if before is None:
            # Files that exist at the start are as complete as when the configuration was read.
            return Change()
        missing = frozenset((before.keys() | served) - snapshot.keys())
        removed, self._missing = missing - self._missing, missing
        for path in removed:
            self._touched.pop(path, None)
        for path, seen in snapshot.items():
            if path not in before or before[path] != seen:
                self._touched[path] = now
        settled = [path for path, at in self._touched.items() if now - at >= QUIET_S]
        for path in settled:
            del self._touched[path]
        return Change(frozenset(map(Path, self._touched))) if settled or removed else None


async def watch(
    watched: Callable[[], Watched], clock: Clock | None = None, poll_s: float = POLL_S
) -> AsyncIterator[Change]:
    """Yield a Change within 2 s of each change, as long as it is iterated over.

    `watched` is called before each poll, so that it can follow the configuration. The first Change comes
    immediately, even if nothing changed, so that no change between reading the configuration and watching it
    is missed.
    """
    clock, observer = clock or SystemClock(), _Observer()
    while True:
        # In a thread: a sleeping disk or a hanging network must not delay requests.
        targets = watched()
        snapshot = await asyncio.to_thread(_snapshot, targets)
        change = observer.look(snapshot, targets.served, clock.now())
        if change is not None:
            yield change
        await asyncio.sleep(poll_s)


def _snapshot(watched: Watched) -> Snapshot:
    found = {str(path): signature(path) for path in watched.files}
    # If the folder is missing, its models count as removed; the next reading reports why.
    with suppress(OSError):
        if watched.folder is not None:
            found |= {path: signature(path) for path in gguf_files(str(watched.folder))}
    return found
