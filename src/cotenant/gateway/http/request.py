"""A request to the daemon's own API, in the form that handlers use."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from cotenant.asgi import Header, Receive, Scope, Send
from cotenant.domain.errors import BadRequest, CotenantError, Forbidden, UnsupportedMediaType
from cotenant.domain.keys import ApiKey, KeyScope
from cotenant.domain.units import MIB
from cotenant.gateway.http.codings import decoded
from cotenant.gateway.http.limits import Limits, whole_body

_LIMITS: Final = Limits(body_bytes=MIB)


class ApiRequest:
    """One request. `name` is the decoded name in its path, if the template has one.

    `client` is the address of the client, `caller` what is logged of who it is, `key` its key, None if it
    needs none. `ended` returns when a response without an end must end, with the reason.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        ended: Callable[[], Coroutine[Any, Any, CotenantError]],
        name: str = "",
        caller: str = "",
        key: ApiKey | None = None,
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.name = name
        self.receive = receive
        self.send = send
        self.ended = ended
        self.headers: Sequence[Header] = scope["headers"]
        self.client: str = (scope.get("client") or ("",))[0]
        self.caller = caller
        self.key = key
        self._scheme = str(scope.get("scheme", "http")).encode()
        self._headers: Mapping[bytes, bytes] = dict(self.headers)
        self._query: Mapping[str, list[str]] = parse_qs(
            scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True
        )

    @property
    def is_https(self) -> bool:
        """Whether the browser uses TLS, with the daemon or with a proxy that says so."""
        return b"https" in (self._headers.get(b"x-forwarded-proto"), self._scheme)

    @property
    def wants_text(self) -> bool:
        """Whether the client prefers plain text to JSON."""
        return self._headers.get(b"accept", b"").startswith(b"text/plain")

    def require(self, needed: KeyScope) -> None:
        """Raise Forbidden unless the request's key may do what needs this scope."""
        require(self.key, needed)

    def text(self, name: str) -> str | None:
        """Read `?name=TEXT`; None if it is not given."""
        given = self._query.get(name)
        return given[-1] if given else None

    def switch(self, name: str, default: bool) -> bool:
        """Read `?name=0` or `=1`. Raises BadRequest."""
        text = self.text(name)
        if text not in (None, "0", "1"):
            raise BadRequest(f"{name}={text[:40]!r} is not 0 or 1")
        return default if text is None else text == "1"

    def integer(self, name: str, default: int, maximum: int) -> int:
        """Read `?name=N`, at most `maximum`. Raises BadRequest."""
        text = self.text(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise BadRequest(f"{name}={text[:40]!r} is not a whole number")
        return min(int(text), maximum)

    async def body(self) -> bytes:
        """Read the body, which must be JSON or empty.

        Raises RequestTooLarge, UnsupportedMediaType, or BadRequest for a client that disconnects early.
        """
        body = await self.octets(_LIMITS)
        given = self._headers.get(b"content-type", b"application/json").decode("latin-1")
        if body and given.partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedMediaType(
                f"the body is {given[:80]!r}, not JSON", hint="Send it with Content-Type: application/json."
            )
        return body

    async def octets(self, limits: Limits) -> bytes:
        """Read the body as bytes. Raises RequestTooLarge, UnsupportedMediaType or BadRequest."""
        body = await whole_body(self.receive, limits)
        if body is None:
            raise BadRequest("the client disconnected before its request was complete")
        return decoded(body, self.headers, limits)

    def header(self, name: bytes) -> bytes | None:
        """Return a header, by its name in lower case."""
        return self._headers.get(name)


def require(key: ApiKey | None, needed: KeyScope) -> None:
    """Raise Forbidden unless a key may do what needs this scope; None may do everything."""
    if key is not None and not key.scope.includes(needed):
        raise Forbidden(
            f"the API key {key.name!r} has the scope {key.scope}, and this needs {needed}",
            hint="Use another key, or have the operator give this one more rights.",
        )
