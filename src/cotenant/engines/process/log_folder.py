"""The logs of engines: one file per model, the same at every start, written by a child and rotated here."""

import atexit
import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotenant.domain.units import MIB

DEFAULT_MAX_BYTES: Final = 16 * MIB
_MODE: Final = 0o640
_SOONEST_LOOK_S: Final = 0.01
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  a folder of its own is made in it

_log = logging.getLogger(__name__)


class RotatingLog:
    """A file that a child writes to directly, so that no full pipe can block the child.

    When it exceeds `max_bytes` its last `max_bytes`, or a MiB, go to `NAME.1` (older ones to `NAME.2` and so
    on, `kept` in all) and it is truncated; the child appends, so it continues at the start. What the child
    writes between the copy and the truncation, microseconds apart, is lost. On a full disk nothing is copied.
    `machine` is where it is, if that is not the daemon's.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, kept: int = 2, machine: str | None = None
    ) -> None:
        self.path = path
        self.machine = machine
        self._max_bytes = max_bytes
        self._kept = kept
        self._rotated = False
        self._lock = threading.Lock()
        self._seen_bytes = 0
        self._header = b""

    def open(self, header: bytes = b"") -> int:
        """Rotate an earlier run's log and return a file descriptor to append to. Raises OSError.

        `header` is the file's first line, also after a rotation.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._shift()
            self.path.replace(self._older(1))
        output = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT, _MODE)
        self._header = header
        self.add(header)
        return output

    def add(self, line: bytes) -> None:
        """Append a line of ours; on a full disk nothing."""
        with contextlib.suppress(OSError), self.path.open("ab", buffering=0) as file:
            file.write(line)

    @property
    def overgrown(self) -> bool:
        """Whether it is time to rotate."""
        return self._bytes() > self._max_bytes

    def next_look_s(self, since_s: float, at_most_s: float) -> float:
        """Return when to look again, by what was written in the `since_s` since the last call: in time.

        An engine that writes a gigabyte a second would fill a disk between looks a second apart.
        """
        size = self._bytes()
        written, self._seen_bytes = max(0, size - self._seen_bytes), size
        if not written:
            return at_most_s
        left = max(self._max_bytes - size, self._max_bytes // 4)
        return min(at_most_s, max(_SOONEST_LOOK_S, left * since_s / written))

    def rotate(self) -> None:
        """Copy and truncate. Raises OSError; it is truncated also if the copy fails."""
        with self._lock, self.path.open("rb+") as source:
            try:
                self._shift()
                mib = -(-self._max_bytes // MIB)
                source.seek(max(0, source.seek(0, os.SEEK_END) - mib * MIB))
                target = os.open(self._older(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
                with open(target, "wb") as older:
                    # By its length: a child that writes as fast as this reads would never let it end.
                    for _ in range(mib):
                        older.write(source.read(MIB))
                self._rotated = True
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._older(1).unlink()
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            finally:
                source.truncate(0)
                self.add(self._header)
                self._seen_bytes = 0

    def read(self, limit_bytes: int, *, from_end: bool = False) -> str:
        """Read the start of the file, or the end of what this run wrote; empty if there is none."""
        with self._lock:
            found = _part(self.path, limit_bytes, from_end)
            if from_end and self._rotated and len(found) < limit_bytes:
                found = _part(self._older(1), limit_bytes - len(found), from_end) + found
        return found.decode("utf-8", "replace")

    def _bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _older(self, age: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{age}")

    def _shift(self) -> None:
        for age in range(self._kept, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                self._older(age - 1).replace(self._older(age))


def _part(path: Path, limit_bytes: int, from_end: bool) -> bytes:
    try:
        with path.open("rb") as file:
            if from_end:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""


class LogFolder:
    """Hands out log files; no two running engines share one.

    A log larger than `max_bytes` is rotated; of each, two older ones are kept. While nothing can be written
    in the folder, logs go to host RAM, until the daemon ends. `machine` is that of an agent.
    """

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, machine: str | None = None) -> None:
        self._path = path
        self._machine = machine
        self._max_bytes = max_bytes
        self._in_use: dict[Path, Callable[[], bool]] = {}
        self._latest = {log.stem: log for log in path.glob("*.log")}
        self._spare: Path | None = None

    def log(self, name: str, ended: Callable[[], bool]) -> RotatingLog:
        """Return a log for a model's engine; it is reserved until `ended` returns true. Raises OSError."""
        self._in_use = {path: gone for path, gone in self._in_use.items() if not gone()}
        stem, folder = log_stem(name), self._folder()
        path, number = folder / f"{stem}.log", 1
        while path in self._in_use:
            number += 1
            path = folder / f"{stem}.{number}.log"
        self._in_use[path] = ended
        self._latest[stem] = path
        return RotatingLog(path, max_bytes=self._max_bytes, machine=self._machine)

    def latest(self, name: str) -> Path | None:
        """Return the log of a model's last engine, also of an earlier run of the daemon's."""
        return self._latest.get(log_stem(name))

    def found(self) -> dict[str, float]:
        """Return when each model's last log was written, in Unix seconds, by `log_stem`."""
        written = {}
        for stem, path in self._latest.items():
            with contextlib.suppress(OSError):
                written[stem] = path.stat().st_mtime
        return written

    def _folder(self) -> Path:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(buffering=0, dir=self._path) as probe:
                probe.write(b"x")
        except OSError as error:
            if self._spare is None:
                where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
                self._spare = Path(tempfile.mkdtemp(prefix="cotenant-logs-", dir=where))
                atexit.register(shutil.rmtree, self._spare, ignore_errors=True)
                what = "logs of engines cannot be written to %s (%s) and go to %s instead"
                _log.warning(what, self._path, error.strerror, self._spare)
            return self._spare
        return self._path


def log_stem(name: str) -> str:
    """Return a file's name for a model, of which no other model has the same."""
    return re.sub(r"^\.|[^\w.:@+-]", lambda match: f"%{ord(match[0]):02X}", name)
