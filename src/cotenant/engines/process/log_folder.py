"""The folder of engines' logs: one file per model, the same at every start."""

import re
from collections.abc import Callable
from pathlib import Path

from cotenant.engines.process.rotating_log import DEFAULT_MAX_BYTES, RotatingLog


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
