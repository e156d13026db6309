"""Alerts as they are told: a list, and a feed of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from cotenant.domain.alerts import Alert
from cotenant.gateway.http.asgi import encode_json, send_json
from cotenant.gateway.http.request import ApiRequest, Routes
from cotenant.gateway.operator.decisions import DecisionFeed
from cotenant.interfaces import AlertBook


class AlertRoutes:
    """Answers under /api/alerts; without a book there is nothing wrong."""

    def __init__(self, book: AlertBook | None, story: DecisionFeed) -> None:
        self._book = book
        self._story = story

    @property
    def routes(self) -> Routes:
        """What is answered here."""
        return {"/api/alerts": {"GET": self._list}}

    async def _list(self, request: ApiRequest) -> None:
        active = self._book.active() if self._book else ()
        recent = self._book.recent() if self._book else ()
        told = {"active": [self._as_json(a) for a in active], "recent": [self._as_json(a) for a in recent]}
        await send_json(request.send, 200, told)

    def _as_json(self, alert: Alert) -> dict[str, Any]:
        return {
            "alert": alert.kind,
            "subject": alert.subject,
            "active": alert.active,
            "at": alert.at,
            "time": self._story.local_time(alert.at),
            "text": alert.text,
        }

    async def as_events(self, alerts: AsyncIterator[Alert]) -> AsyncGenerator[bytes, None]:
        """Render each alert as an event named `alert`."""
        try:
            async for alert in alerts:
                yield b"event: alert\ndata: %b\n\n" % encode_json(self._as_json(alert))
        finally:
            close = getattr(alerts, "aclose", None)
            if close is not None:
                await close()
