"""Access control: API keys, browser sessions, and checks of the headers Host and Origin."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from cotenant.asgi import Header, Scope, send_json
from cotenant.clock import Clock
from cotenant.domain import errors
from cotenant.domain.errors import ForeignPage, TooManyAttempts, Unauthorized
from cotenant.domain.keys import ApiKey, KeyScope
from cotenant.gateway.access.allowed_hosts import AllowedHosts
from cotenant.gateway.access.sessions import LIFETIME_S, BrowserSession, Sessions, WrongKeys, same
from cotenant.gateway.http.bodies import RequestModel, read_body
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Reply, Route
from cotenant.gateway.http.tunnel import tunnel_of

SESSION: Final = "/api/session"
_COOKIE: Final = "cotenant_session"
_LOG_EVERY_S: Final = 10.0
_MOST_USED: Final = 1024
_MOST_WRONG_KEYS: Final = 20
_MOST_SIGN_INS: Final = 5

_log = logging.getLogger("cotenant.gateway.access")


class SessionRequest(RequestModel):
    """The key to sign in with."""

    key: Annotated[str, Field(min_length=1, max_length=1024)]


class SessionResponse(BaseModel):
    """Whether a key is needed, and whether this browser is signed in.

    Requests that change something must send `csrf` in the header `X-Cotenant-CSRF`; null without a session.
    `scope` is what the session's key may do.
    """

    needed: bool
    signed_in: bool
    csrf: str | None
    scope: KeyScope | None = None


class AccessControl:
    """Checks every request before it is handled; without `keys`, everyone has access.

    `unix_now` is the time that keys expire by.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey],
        hosts: Iterable[str],
        clock: Clock,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._hosts = AllowedHosts(hosts)
        self._sessions = Sessions(clock.now)
        self._wrong = WrongKeys(clock.now)
        self._used: dict[tuple[str, bytes], ApiKey] = {}
        self._now = clock.now
        self._unix_now = unix_now
        self._to_log = 0
        self._log_at = 0.0
        self.set_keys(tuple(keys))

    def set_keys(self, keys: Sequence[ApiKey]) -> None:
        """Accept these keys from now on, and end the sessions of all others."""
        # Looked up by their digests, so that the duration does not reveal which key is similar.
        self._keys = {key.digest: key for key in keys}
        self._sessions.end_unless_of(self._keys)
        self._used.clear()

    def check(self, scope: Scope, *, is_open: bool) -> ApiKey | None:
        """Check a request, and return its key; `is_open` means that its path needs no key.

        None without keys, or on an open path: the request has all rights to what is there.
        Requests with a valid key skip the host and origin checks: a web page cannot know the key.
        Raises Unauthorized, TooManyAttempts, UntrustedHost or ForeignPage.
        """
        headers = scope["headers"]
        named = dict(headers)
        needs_key = bool(self._keys) and not is_open
        if needs_key and (b"authorization" in named or b"x-api-key" in named):
            return self._check_key(scope)
        host, origin = named.get(b"host"), named.get(b"origin")
        if host is not None:
            self._hosts.check_host(host)
        changes_state = scope["method"] not in frozenset({"GET", "HEAD", "OPTIONS"})
        # A browser opens a WebSocket for any page, and says only in `Origin` for which.
        if (changes_state or tunnel_of(scope) is not None) and origin is not None:
            self._hosts.check_origin(origin, host)
        if needs_key:
            session = self._sessions.find(_cookie(headers, host))
            if session is None:
                return self._check_key(scope)
            if changes_state and not same(session.csrf, named.get(b"x-cotenant-csrf", b"").decode("latin-1")):
                raise ForeignPage(
                    "the request lacks this session's token", hint="Reload the page and try again."
                )
            return self._unexpired(self._keys[session.key_digest])
        return None

    def _check_key(self, scope: Scope) -> ApiKey:
        """Check the key in `Authorization: Bearer` or `x-api-key`. Raises Unauthorized or TooManyAttempts.

        Who used a right key before goes on with it, whatever others behind the same address try.
        """
        offered = _offered_key(scope["headers"])
        if offered is None:
            raise Unauthorized(
                "the request has no API key",
                hint="Send it as `Authorization: Bearer KEY`, or set api_key in the openai client.",
            )
        known = _address(scope), offered
        key = self._used.get(known)
        if key is None:
            key = self._check_guess(*known, _MOST_WRONG_KEYS)
            if len(self._used) < _MOST_USED:
                self._used[known] = key
        return self._unexpired(key)

    def _unexpired(self, key: ApiKey) -> ApiKey:
        """Raise Unauthorized for a key that has expired."""
        if key.expires_at is not None and self._unix_now() >= key.expires_at:
            raise Unauthorized(f"the API key {key.name!r} has expired", hint="Ask the operator for another.")
        return key

    def _check_guess(self, client: str, offered: bytes, most: int) -> ApiKey:
        """Return a key. Raises Unauthorized, or TooManyAttempts after `most` wrong ones within a minute.

        Either is logged: one line for all of ten seconds.
        """
        wait_s = self._wrong.wait_s(client, most)
        key = self._keys.get(hashlib.sha256(offered).digest())
        if wait_s is None and key is not None:
            return key
        self._to_log += 1
        if self._now() >= self._log_at:
            _log.warning("wrong API keys: count=%d last_from=%s", self._to_log, client)
            self._to_log, self._log_at = 0, self._now() + _LOG_EVERY_S
        if wait_s is not None:
            hint = f"Wait {max(1, round(wait_s))} s."
            raise TooManyAttempts("too many wrong keys", hint=hint, retry_after_s=wait_s)
        self._wrong.add(client, offered)
        hint = "Use one of the daemon's keys; one that was taken out is void."
        raise Unauthorized("the API key is wrong", hint=hint)

    @Route(
        f"GET {SESSION}",
        "Return whether a key is needed and this browser is signed in; needs no key",
        Reply(SessionResponse, "the session"),
        scope=KeyScope.INFER,
    )
    async def _show(self, request: ApiRequest) -> None:
        session = self._sessions.find(_cookie(request.headers, request.header(b"host")))
        await self._send(request, session)

    @Route(
        f"POST {SESSION}",
        "Sign a browser in with an API key: sets a session cookie",
        Reply(SessionResponse, "the session that has begun"),
        (*BODY_ERRORS, errors.TooManyAttempts),
        body=Body(SessionRequest, required=True),
        changes=False,
        scope=KeyScope.INFER,
    )
    async def _begin(self, request: ApiRequest) -> None:
        """Check the key and set the cookie. Without API keys, any key is accepted and no cookie is set.

        Raises Unauthorized, BadRequest, BadAssignment or TooManyAttempts.
        """
        body = read_body(SessionRequest, await request.body() or b"{}")
        if not self._keys:
            await self._show(request)
            return
        offered = body.key.strip().encode("utf-8", "replace")
        key = self._unexpired(self._check_guess(request.client, offered, _MOST_SIGN_INS))
        token, session = self._sessions.begin(key.digest)
        _log.info("signed in: from=%s", described(request.client, key))
        await self._send(request, session, _set_cookie(request, token, int(LIFETIME_S)))

    @Route(
        "POST /api/session/end",
        "Sign a browser out",
        Reply(SessionResponse, "the session is ended"),
        scope=KeyScope.INFER,
    )
    async def _end(self, request: ApiRequest) -> None:
        """End the session and delete its cookie."""
        self._sessions.end(_cookie(request.headers, request.header(b"host")))
        await self._send(request, None, _set_cookie(request, "", 0))

    async def _send(self, request: ApiRequest, session: BrowserSession | None, *headers: Header) -> None:
        key = self._keys.get(session.key_digest) if session else None
        response = SessionResponse(
            needed=bool(self._keys),
            signed_in=session is not None,
            csrf=session.csrf if session else None,
            scope=key.scope if key else None,
        )
        await send_json(request.send, 200, response, ((b"cache-control", b"no-store"), *headers))


def _address(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def described(address: str, key: ApiKey | None) -> str:
    """Return what is logged of who sent a request: the address, and the name of the key."""
    return f"{address} key={key.name}" if key else address


def _offered_key(headers: Sequence[Header]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
        elif name == b"x-api-key":
            return value.strip()
    return None


def _set_cookie(request: ApiRequest, token: str, lifetime_s: int) -> Header:
    name = _cookie_name(request.header(b"host"))
    text = f"{name}={token}; Path=/; Max-Age={lifetime_s}; HttpOnly; SameSite=Strict"
    return (b"set-cookie", (text + ("; Secure" if request.is_https else "")).encode())


def _cookie_name(host: bytes | None) -> str:
    """Return a cookie name with the port in it: browsers share cookies between the ports of a host."""
    port = (host or b"").rpartition(b"]")[2].partition(b":")[2].decode("latin-1")
    return f"{_COOKIE}_{port}" if port.isdigit() else _COOKIE


def _cookie(headers: Sequence[Header], host: bytes | None) -> str:
    wanted = _cookie_name(host)
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, text = pair.strip().partition("=")
                if key == wanted:
                    return text
    return ""
