"""Files of saved slots: the KV caches of conversations whose engine has ended, kept in host RAM.

They are private to this process: a folder that only its account may enter, erased at the end. One that a
killed daemon left is erased by the next: nobody holds its lock then.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cotenant.domain.decisions import SlotStatus

_MOUNTS: Final = Path("/proc/mounts")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  a folder of its own is made in it
_PREFIX: Final = "cotenant-slots-"
_LOCK: Final = "lock"
_BYTES_PER_S: Final = 1e9
"""How fast files in RAM are written and read, until one was."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """One conversation's cache: `tokens` that took `prefill_s` to compute, in a file of `size` bytes.

    It fits only into an engine whose `key` is the same. The later its `number`, the later it was saved.
    """

    key: str
    path: Path
    tokens: int
    size: int
    prefill_s: float
    number: int

    @property
    def is_whole(self) -> bool:
        """Whether its file has all that was written."""
        try:
            return self.path.stat().st_size == self.size
        except OSError:
            return False

    @property
    def value(self) -> tuple[float, int]:
        """What orders slots: the prefill time that a byte of it spares; of equals, the later counts more."""
        return self.prefill_s / max(1, self.size), self.number


@dataclass(slots=True)
class SlotStore:
    """What is saved, within `most_bytes` and what `room` says that host RAM has left, None if unknown.

    It only keeps the books: whoever gets slots to drop erases their files, which may take long.
    `seconds_per_token` is how long engines of a key computed prompts, `bytes_per_s` how fast files are
    written.
    """

    folder: Path
    most_bytes: int
    room: Callable[[], int | None] = lambda: None
    slots: dict[Path, SavedSlot] = field(default_factory=dict)
    seconds_per_token: dict[str, float] = field(default_factory=dict)
    bytes_per_s: float = _BYTES_PER_S
    saved_total: int = 0
    restored_total: int = 0
    restored_tokens_total: int = 0
    _number: int = 0
    _lock: int | None = None

    @classmethod
    def open(cls, parent: Path, most_bytes: int) -> "SlotStore":
        """Create an empty store in a folder of its own. Raises OSError."""
        parent.mkdir(parents=True, exist_ok=True)
        _erase_left_over(parent)
        # Nobody but this account may enter it.
        store = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)), most_bytes)
        store._lock = os.open(store.folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(store._lock, fcntl.LOCK_EX)
        return store

    @property
    def used_bytes(self) -> int:
        """The size of all that is saved."""
        return sum(slot.size for slot in self.slots.values())

    def folder_of(self, key: str) -> Path:
        """Return the folder of the slots of a key; it exists. Raises OSError."""
        folder = self.folder / key
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def next_name(self) -> str:
        """Return the name of a file that no other slot has."""
        self._number += 1
        return f"{self._number}.slot"

    def make_room(self, size: int, prefill_s: float) -> Sequence[SavedSlot] | None:
        """Return which slots to drop for one of `size` bytes; None if more valuable ones fill it."""
        return self._dropped(self._limit() - size, below=prefill_s / max(1, size))

    def shrink(self) -> Sequence[SavedSlot]:
        """Return which slots to drop since host RAM is short."""
        return (self.slots and self._dropped(max(0, self._limit()))) or ()

    def add(self, key: str, path: Path, tokens: int, size: int, prefill_s: float) -> None:
        """Keep a slot that was saved."""
        self.saved_total += 1
        self.slots[path] = SavedSlot(key, path, tokens, size, prefill_s, int(path.stem))

    def restored(self, slots: Iterable[SavedSlot]) -> None:
        """Count slots that were restored."""
        for slot in slots:
            self.restored_total += 1
            self.restored_tokens_total += slot.tokens

    def status(self) -> SlotStatus:
        """Return what is saved, and what came of it."""
        return SlotStatus(
            self.most_bytes,
            len(self.slots),
            self.used_bytes,
            self.saved_total,
            self.restored_total,
            self.restored_tokens_total,
        )

    def take(self, key: str, most: int) -> Sequence[SavedSlot]:
        """Take out the slots of a key that were saved last, `most` at most."""
        found = sorted((s for s in self.slots.values() if s.key == key), key=lambda slot: -slot.number)[:most]
        for slot in found:
            del self.slots[slot.path]
        return found

    def clear(self) -> Sequence[SavedSlot]:
        """Return all slots, to be dropped."""
        dropped = tuple(self.slots.values())
        self.slots.clear()
        return dropped

    def close(self) -> None:
        """Erase everything, and keep nothing from now on."""
        self.most_bytes = 0
        self.slots.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _limit(self) -> int:
        try:
            room = shutil.disk_usage(self.folder).free
        except OSError:
            return 0
        known = self.room()
        return min(self.most_bytes, self.used_bytes + (room if known is None else min(room, known)))

    def _dropped(self, most_bytes: int, below: float = float("inf")) -> Sequence[SavedSlot] | None:
        """Take out the least valuable slots, down to `most_bytes`; None if it takes any above `below`."""
        dropped, used = [], self.used_bytes
        for slot in sorted(self.slots.values(), key=lambda slot: slot.value):
            if used <= most_bytes or slot.value[0] > below:
                break
            dropped.append(slot)
            used -= slot.size
        if used > most_bytes:
            return None
        for slot in dropped:
            del self.slots[slot.path]
        return dropped


def erase(paths: Iterable[Path]) -> None:
    """Erase files; a thread does it, since the kernel takes a while to free what is large."""
    for path in paths:
        path.unlink(missing_ok=True)


def memory_folder(mounts: Path = _MOUNTS, folder: Path = _SHARED_MEMORY) -> Path | None:
    """Return a folder whose files are in RAM; None if there is none that may be written."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    is_memory = any(line.split()[1:3] == [str(folder), "tmpfs"] for line in lines)
    return folder if is_memory and os.access(folder, os.W_OK | os.X_OK) else None


def _erase_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or folder.is_symlink():
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                _log.info("saved slots that a daemon left in %s are erased", folder)
        except OSError:
            continue  # it is in use, or just being made
