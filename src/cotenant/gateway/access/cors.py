"""Pages of other origins that may ask models: CORS, as the Fetch standard has it."""

from collections.abc import Collection
from typing import Final

from cotenant.asgi import Header, Message, Scope, Send

ANY: Final = "*"
_METHODS: Final = b"GET, HEAD, POST"
_MAX_AGE: Final = b"600"
_EXPOSED: Final = b"retry-after, x-should-retry, allow"
_ASKED_METHOD: Final = b"access-control-request-method"
_ASKED_HEADERS: Final = b"access-control-request-headers"
_ASKED_NETWORK: Final = b"access-control-request-private-network"
_OF_BROWSERS: Final = frozenset({b"origin", b"cookie"})


class Cors:
    """Lets pages of some origins call the paths of clients, with a key or where none is needed.

    Never with a cookie: a session is the console's, and a page of another origin must not act for its user.
    `origins` are `https://chat.example.com` and the like, or `*` for any.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self._any = ANY.encode() in self._origins

    def admit(self, scope: Scope, send: Send) -> Send | None:
        """Return a Send for a page that may call; it adds the headers by which its browser lets it read.

        What the page's origin and cookies would mean elsewhere is taken out of the request. None for a
        request that no such page made.
        """
        headers: list[Header] = list(scope["headers"])
        named = dict(headers)
        origin = named.get(b"origin")
        if origin is None or not (self._any or origin.lower() in self._origins):
            return None
        if named.get(b"sec-fetch-site") == b"same-origin" or origin.partition(b"://")[2] == named.get(
            b"host"
        ):
            return None  # the console's own page, which comes with its cookie
        scope["headers"] = [header for header in headers if header[0] not in _OF_BROWSERS]
        own = [
            (b"access-control-allow-origin", ANY.encode() if self._any else origin),
            (b"access-control-expose-headers", _EXPOSED),
            *(() if self._any else ((b"vary", b"origin"),)),
        ]

        async def send_with_leave(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        return send_with_leave


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a page may do, which it does without the page's key."""
    return scope["method"] == "OPTIONS" and any(name == _ASKED_METHOD for name, _ in scope["headers"])


async def answer_preflight(scope: Scope, send: Send) -> None:
    """Say what a page may send: any header but cookies, which are never allowed."""
    asked = dict(scope["headers"])
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", _MAX_AGE),
        (b"vary", b"access-control-request-headers"),
    ]
    if _ASKED_HEADERS in asked:
        headers.append((b"access-control-allow-headers", asked[_ASKED_HEADERS]))
    if asked.get(_ASKED_NETWORK) == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
