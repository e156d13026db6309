"""The daemon's public HTTP API, called in process for the viewer of a page."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from cotenant.asgi import App, Header, Message, Scope

_CALLERS: Final = frozenset(
    {b"authorization", b"cookie", b"host", b"origin", b"x-api-key", b"x-cotenant-csrf", b"x-forwarded-proto"}
)
_NOT_SIGNED_IN: Final = 401


class ApiFault(Exception):
    """The API refused a request: its status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @property
    def needs_login(self) -> bool:
        """Whether the caller must sign in first."""
        return self.status == _NOT_SIGNED_IN


@dataclass(slots=True)
class Reply:
    """A complete response."""

    status: int = 500
    headers: Sequence[Header] = ()
    body: bytes = b""

    def json(self) -> Any:
        """Return the JSON of the body. Raises ApiFault for an error, or invalid JSON."""
        try:
            found = json.loads(self.body) if self.body else None
        except ValueError:
            found = None
        if self.status < 400 and found is not None:
            return found
        error = found.get("error") if isinstance(found, dict) else None
        if not isinstance(error, dict):
            raise ApiFault(self.status, "internal", f"the daemon answered with status {self.status}")
        raise ApiFault(self.status, str(error.get("code")), str(error.get("message")))


@dataclass(slots=True)
class _CachedResponse:
    at: float
    value: Any


@dataclass(slots=True)
class ResponseCache:
    """Cached responses that are expensive for the daemon and may be some seconds old."""

    entries: dict[str, _CachedResponse] = field(default_factory=dict)


class Api:
    """Calls the API with the caller's cookie or key, so that pages show only what the caller may see."""

    def __init__(self, app: App, caller: Scope, cache: ResponseCache) -> None:
        self._app = app
        self._caller = caller
        self._cache = cache

    async def get(self, path: str) -> Any:
        """Return the JSON at a path, its query included. Raises ApiFault."""
        return (await self.send("GET", path)).json()

    async def find(self, path: str, default: Any = None) -> Any:
        """Return the JSON at a path, or the default if it is refused. Raises ApiFault if signed out."""
        try:
            return await self.get(path)
        except ApiFault as fault:
            if fault.needs_login:
                raise
            return default

    async def find_cached(self, path: str, max_age_s: float, default: Any = None) -> Any:
        """Do the same as `find`, but accept a response that is up to `max_age_s` seconds old.

        The response may be that of another caller: call this only after an uncached request has shown that
        this caller has access.
        """
        now = asyncio.get_running_loop().time()
        cached = self._cache.entries.get(path)
        if cached is None or cached.at + max_age_s < now:
            cached = self._cache.entries[path] = _CachedResponse(now, await self.find(path, default))
        return cached.value

    def forget(self, prefix: str) -> None:
        """Remove cached responses of paths with this prefix."""
        for path in [each for each in self._cache.entries if each.startswith(prefix)]:
            del self._cache.entries[path]

    async def text(self, path: str) -> str:
        """Return the plain text at a path. Raises ApiFault."""
        reply = await self.send("GET", path, accept=b"text/plain")
        if reply.status >= 400:
            reply.json()
        return reply.body.decode("utf-8", "replace")

    async def send(
        self,
        method: str,
        path: str,
        payload: object = None,
        *,
        accept: bytes = b"application/json",
        headers: Iterable[Header] = (),
    ) -> Reply:
        """Send one request and return the response, whatever its status."""
        # Calls in the same process never wait: let requests to models run in between.
        await asyncio.sleep(0)
        body = b"" if payload is None else json.dumps(payload).encode()
        scope = self._scope(method, path, accept, body, headers)
        reply = Reply()
        pieces: list[bytes] = []
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status, reply.headers = message["status"], message.get("headers", ())
            else:
                pieces.append(message.get("body", b""))

        await self._app(scope, receive, send)
        reply.body = b"".join(pieces)
        return reply

    def _scope(self, method: str, path: str, accept: bytes, body: bytes, headers: Iterable[Header]) -> Scope:
        raw, _, query = path.partition("?")
        own = [(name, value) for name, value in self._caller["headers"] if name in _CALLERS]
        own.append((b"accept", accept))
        if body:
            own += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": self._caller.get("scheme", "http"),
            "server": self._caller.get("server"),
            "client": self._caller.get("client"),
            "method": method,
            "path": unquote(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [*own, *headers],
        }
