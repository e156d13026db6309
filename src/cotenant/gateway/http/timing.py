"""How often the gateway looks, and how long it gives others to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds: between comments to a waiting client, heartbeats of a feed, looks at a log.

    `notice_s` is what the daemon gets to notice that an engine which was lost is dead.
    """

    comment_s: float = 5.0
    heartbeat_s: float = 15.0
    log_poll_s: float = 0.25
    notice_s: float = 1.0
