"""Decisions as they are told: JSON, server-sent events, and lines with the time of day."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from datetime import datetime
from typing import Any

from cotenant.clock import Clock
from cotenant.domain.decisions import Decision
from cotenant.gateway.http.asgi import encode_json


class DecisionFeed:
    """Tells decisions, whose instants are of the daemon's clock, in local time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def as_json(self, decision: Decision) -> dict[str, Any]:
        """Describe a decision; `time` is local, with its offset."""
        return {
            "number": decision.number,
            "at": decision.at,
            "time": self._local(decision).isoformat(timespec="milliseconds"),
            "kind": decision.kind,
            "model": decision.model,
            "text": decision.text,
            "cause": decision.cause,
            "facts": dict(decision.facts),
        }

    def as_text(self, decisions: Iterable[Decision]) -> str:
        """Render one line each: `10:02:11  evict  idle 312 s, …`; the date where it is not today's."""
        today = datetime.now().astimezone().date()
        lines = []
        for decision in decisions:
            when = self._local(decision)
            stamp = when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")
            lines.append(f"{stamp}  {decision.kind.replace('_', ' '):<13} {decision.text}\n")
        return "".join(lines)

    async def as_events(self, decisions: AsyncIterator[Decision]) -> AsyncGenerator[bytes, None]:
        """Render each decision as an event named after its kind, its number as the id."""
        try:
            async for decision in decisions:
                data = encode_json(self.as_json(decision))
                yield b"id: %d\nevent: %b\ndata: %b\n\n" % (decision.number, decision.kind.encode(), data)
        finally:
            close = getattr(decisions, "aclose", None)
            if close is not None:
                await close()

    def local_time(self, at: float) -> str:
        """Write an instant of the daemon's clock as local time, with its offset."""
        return self._as_local(at).isoformat(timespec="milliseconds")

    def _local(self, decision: Decision) -> datetime:
        return self._as_local(decision.at)

    def _as_local(self, at: float) -> datetime:
        return datetime.fromtimestamp(time.time() - (self._clock.now() - at)).astimezone()
