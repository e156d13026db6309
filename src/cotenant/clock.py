"""Time, injected."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never decrease; their origin is arbitrary."""

    def now(self) -> float:
        """Return the current instant in seconds."""


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()


class ManualClock:
    """A clock that changes only by `advance`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the instant last set."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward. Raises ValueError on a negative step."""
        if seconds < 0:
            raise ValueError("a clock does not run backwards")
        self._now += seconds
