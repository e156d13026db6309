"""The daemon's public HTTP API, called in process on behalf of whoever looks at a page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.console.responses import App, Header, Message, Scope

_CALLERS: Final = frozenset(
    {b"authorization", b"cookie", b"host", b"origin", b"x-api-key", b"x-cotenant-csrf", b"x-forwarded-proto"}
)
_NOT_SIGNED_IN: Final = 401


class ApiFault(Exception):
    """What the API refuses: its status, its code, and its sentences, which say what to do as well."""

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
    """A whole answer."""

    status: int = 500
    headers: Sequence[Header] = ()
    body: bytes = b""

    def json(self) -> Any:
        """Return the body's JSON. Raises ApiFault for what is an error or no JSON."""
        try:
            told = json.loads(self.body) if self.body else None
        except ValueError:
            told = None
        if self.status < 400 and told is not None:
            return told
        error = told.get("error") if isinstance(told, dict) else None
        if not isinstance(error, dict):
            raise ApiFault(self.status, "internal", f"the daemon answered with status {self.status}")
        raise ApiFault(self.status, str(error.get("code")), str(error.get("message")))


@dataclass(slots=True)
class _Kept:
    at: float
    told: Any


@dataclass(slots=True)
class Shelf:
    """Answers that cost the daemon more and may be some seconds old."""

    kept: dict[str, _Kept] = field(default_factory=dict)


class Api:
    """Speaks to the API with the caller's own cookie or key: pages show nobody more than that opens."""

    def __init__(self, app: App, caller: Scope, shelf: Shelf) -> None:
        self._app = app
        self._caller = caller
        self._shelf = shelf

    async def get(self, path: str) -> Any:
        """Return the JSON at a path, its query included. Raises ApiFault."""
        return (await self.ask("GET", path)).json()

    async def find(self, path: str, default: Any = None) -> Any:
        """Return the JSON at a path, or the default where the daemon has nothing to say. Raises ApiFault."""
        try:
            return await self.get(path)
        except ApiFault as fault:
            if fault.needs_login:
                raise
            return default

    async def find_lately(self, path: str, for_s: float, default: Any = None) -> Any:
        """Do as `find`, but take an answer up to `for_s` old.

        It may be another caller's: only after a fresh answer has shown that this one may ask.
        """
        now = asyncio.get_running_loop().time()
        kept = self._shelf.kept.get(path)
        if kept is None or kept.at + for_s < now:
            kept = self._shelf.kept[path] = _Kept(now, await self.find(path, default))
        return kept.told

    def forget(self, prefix: str) -> None:
        """Drop what is kept of paths that begin so: it has changed."""
        for path in [each for each in self._shelf.kept if each.startswith(prefix)]:
            del self._shelf.kept[path]

    async def text(self, path: str) -> str:
        """Return the plain text at a path. Raises ApiFault."""
        reply = await self.ask("GET", path, accept=b"text/plain")
        if reply.status >= 400:
            reply.json()
        return reply.body.decode("utf-8", "replace")

    async def ask(
        self,
        method: str,
        path: str,
        payload: object = None,
        *,
        accept: bytes = b"application/json",
        headers: Iterable[Header] = (),
    ) -> Reply:
        """Make one request and return the answer, refusals too."""
        # In process nothing ever waits by itself: between two answers, requests to models have their turn.
        await asyncio.sleep(0)
        body = b"" if payload is None else json.dumps(payload).encode()
        scope = self._scope(method, path, accept, body, headers)
        reply = Reply()
        pieces: list[bytes] = []
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
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
            "path": _decoded(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [*own, *headers],
        }


def _decoded(raw: str) -> str:
    from urllib.parse import unquote

    return unquote(raw)
