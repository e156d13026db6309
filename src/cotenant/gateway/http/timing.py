"""Intervals of the gateway, and conversion of the daemon's clock to local time."""

import time
from dataclasses import dataclass
from datetime import datetime

from cotenant.clock import Clock


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds: between comments to a waiting client, heartbeats of a feed, and reads of a log.

    `notice_s` is how long the gateway waits for the daemon to notice that an engine is dead.
    """

    comment_s: float = 5.0
    heartbeat_s: float = 15.0
    log_poll_s: float = 0.25
    notice_s: float = 1.0


class LocalTime:
    """Converts instants of the daemon's clock, in seconds, to local time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def of(self, at: float) -> datetime:
        """Return an instant as local time."""
        return datetime.fromtimestamp(time.time() - (self._clock.now() - at)).astimezone()

    def text(self, at: float) -> str:
        """Return an instant as ISO 8601 with its offset, to the millisecond."""
        return self.of(at).isoformat(timespec="milliseconds")
