"""The daemon's public HTTP API, called in process for the viewer of a page."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from cotenant.asgi import App, Header, Message, Scope

_CALLERS: Final = frozenset(
    {b"authorization", b"cookie", b"host", b"origin", b"x-api-key", b"x-cotenant-csrf", b"x-forwarded-proto"}
)

ResponseCache = dict[str, tuple[float, Any]]
"""Responses that are expensive for the daemon and may be some seconds old, with the time of each."""


class Refused(Exception):
    """The API refused a request: its status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class ApiFault(Refused):
    """The API refused a request, but not for want of a login."""


class SignedOut(Refused):
    """The caller must sign in first."""


@dataclass(slots=True)
class Reply:
    """A complete response."""

    status: int = 500
    headers: Sequence[Header] = ()
    body: bytes = b""

    def json(self) -> Any:
        """Return the JSON of the body. Raises ApiFault or SignedOut for an error, or invalid JSON."""
        try:
            found = json.loads(self.body) if self.body else None
        except ValueError:
            found = None
        if self.status < 400 and found is not None:
            return found
        kind = SignedOut if self.status == 401 else ApiFault
        error = found.get("error") if isinstance(found, dict) else None
        if not isinstance(error, dict):
            raise kind(self.status, "internal", f"the daemon answered with status {self.status}")
        raise kind(self.status, str(error.get("code")), str(error.get("message")))


@dataclass(frozen=True, slots=True)
class Api:
    """Calls the API with the caller's cookie or key, so that pages show only what the caller may see.

    All methods raise SignedOut if that is not enough.
    """

    app: App
    caller: Scope
    cache: ResponseCache

    async def get(self, path: str) -> Any:
        """Return the JSON at a path, its query included. Raises ApiFault."""
        return (await self.send("GET", path)).json()

    async def post(self, path: str, payload: object = None) -> Any:
        """Post a payload and return the JSON of the response. Raises ApiFault."""
        return (await self.send("POST", path, payload)).json()

    async def find(self, path: str, default: Any = None) -> Any:
        """Return the JSON at a path, or the default if it is refused."""
        try:
            return await self.get(path)
        except ApiFault:
            return default

    async def find_cached(self, path: str, max_age_s: float, default: Any = None) -> Any:
        """Do the same as `find`, but accept a response that is up to `max_age_s` seconds old.

        The response may be that of another caller: call this only after an uncached request has shown that
        this caller has access.
        """
        now = asyncio.get_running_loop().time()
        at, value = self.cache.get(path, (float("-inf"), None))
        if at + max_age_s < now:
            value = await self.find(path, default)
            self.cache[path] = now, value
        return value

    def forget(self, prefix: str) -> None:
        """Remove cached responses of paths with this prefix."""
        for path in [each for each in self.cache if each.startswith(prefix)]:
            del self.cache[path]

    async def send(
        self, method: str, path: str, payload: object = None, headers: Iterable[Header] = ()
    ) -> Reply:
        """Send one request and return the response, whatever its status."""
        # Calls in the same process never wait: let requests to models run in between.
        await asyncio.sleep(0)
        raw, _, query = path.partition("?")
        body = b"" if payload is None else json.dumps(payload).encode()
        own = [(name, value) for name, value in self.caller["headers"] if name in _CALLERS]
        own.append((b"accept", b"application/json"))
        if body:
            own += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope = {
            **self.caller,
            "method": method,
            "path": unquote(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [*own, *headers],
        }
        reply = Reply()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.Future[Message]()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status, reply.headers = message["status"], message.get("headers", ())
            else:
                reply.body += message.get("body", b"")

        await self.app(scope, receive, send)
        return reply
