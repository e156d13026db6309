"""Posts alerts to a URL that the operator configures."""

import asyncio
import http.client
import json
import logging
import socket
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from cotenant.domain.alerts import Alert

_LOG = logging.getLogger("cotenant.alerts")
_TIMEOUT_S: Final = 5.0
_WAITING: Final = 64


class Webhook:
    """Posts each alert as JSON, one after another, in a thread: nothing waits for it.

    A post that fails is repeated after each of `pauses_s`, then given up. While the receiver is down, at
    most 64 alerts wait; the oldest are dropped.
    """

    def __init__(self, url: str, *, pauses_s: Sequence[float] = (1.0, 5.0, 25.0)) -> None:
        self._url = url
        self._pauses_s = pauses_s
        self._host = socket.gethostname()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)

    def post(self, alert: Alert) -> None:
        """Queue an alert to be posted."""
        body = {
            "alert": alert.kind,
            "state": "active" if alert.active else "over",
            "subject": alert.subject,
            "text": alert.text,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "host": self._host,
        }
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(json.dumps(body, ensure_ascii=False).encode())

    async def run(self) -> None:
        """Post queued alerts until cancelled."""
        while True:
            await self._deliver(await self._queue.get())

    async def _deliver(self, body: bytes) -> None:
        for pause_s in (*self._pauses_s, None):
            problem = await asyncio.to_thread(self._send, body)
            if problem is None:
                return
            if pause_s is None:
                # The URL itself may contain a secret.
                host = urlsplit(self._url).hostname
                _LOG.warning("an alert could not be posted to the webhook at %s: %s", host, problem)
                return
            await asyncio.sleep(pause_s)

    def _send(self, body: bytes) -> str | None:
        """Return None, or what went wrong."""
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                return None
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
