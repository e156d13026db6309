"""ASGI middleware for vLLM: every route needs the key.

vLLM asks for its own key below `/v1` only: `/invocations` generates and `/sleep` stops without one.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_EXPECTED: Final = f"Bearer {os.environ.get('VLLM_API_KEY', '')}".encode()


class RequireKey:
    """Answers 401 to a request without the key that `VLLM_API_KEY` has."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on a request that has the key."""
        given = next((value for name, value in scope.get("headers", ()) if name == b"authorization"), b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, _EXPECTED):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})
