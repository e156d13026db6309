"""The logs of engines: one file per model, the same at every start, written by a child and rotated here."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotenant.domain.units import MIB

DEFAULT_MAX_BYTES: Final = 16 * MIB


class RotatingLog:
    """A file that a child writes to directly, so that no full pipe can block the child.

    When it exceeds `max_bytes` it is copied to `NAME.1` (older ones to `NAME.2` and so on, `kept` in all) and
    truncated; the child appends, so it continues at the start. What the child writes between the copy and the
    truncation, microseconds apart, is lost.
    """

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, kept: int = 2) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._kept = kept

    def open(self) -> int:
        """Rotate an earlier run's log and return a file descriptor to append to. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._shift()
            self.path.replace(self._older(1))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.path, flags, 0o640)

    @property
    def overgrown(self) -> bool:
        """Whether it is time to rotate."""
        try:
            return self.path.stat().st_size > self._max_bytes
        except FileNotFoundError:
            return False

    def rotate(self) -> None:
        """Copy and truncate. Raises OSError."""
        self._shift()
        with self.path.open("rb+") as source, self._older(1).open("wb") as target:
            shutil.copyfileobj(source, target, MIB)
            source.truncate(0)

    def read(self, limit_bytes: int, *, from_end: bool = False) -> str:
        """Read the start of the file, or its end; empty if there is none."""
        try:
            with self.path.open("rb") as file:
                if from_end:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
                return file.read(limit_bytes).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _older(self, age: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{age}")

    def _shift(self) -> None:
        for age in range(self._kept, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                self._older(age - 1).replace(self._older(age))


class LogFolder:
    """Hands out log files; no two running engines share one.

    A log larger than `max_bytes` is rotated; of each, two older ones are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._in_use: dict[Path, Callable[[], bool]] = {}

    def log(self, name: str, ended: Callable[[], bool]) -> RotatingLog:
        """Return a log for a model's engine; it is reserved until `ended` returns true."""
        self._in_use = {path: gone for path, gone in self._in_use.items() if not gone()}
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "model"
        path, number = self._path / f"{stem}.log", 1
        while path in self._in_use:
            number += 1
            path = self._path / f"{stem}.{number}.log"
        self._in_use[path] = ended
        return RotatingLog(path, max_bytes=self._max_bytes)
