"""Access control: API keys, browser sessions, and checks of the headers Host and Origin."""

import hashlib
import hmac
import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from cotenant.asgi import Header, Scope, send_json
from cotenant.clock import Clock
from cotenant.domain import errors
from cotenant.domain.errors import ForeignPage, TooManyAttempts, Unauthorized
from cotenant.gateway.access.allowed_hosts import AllowedHosts
from cotenant.gateway.access.sessions import LIFETIME_S, BrowserSession, Sessions, WrongKeys, same
from cotenant.gateway.http.bodies import RequestModel, read_body
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Reply, Route

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
    """

    needed: bool
    signed_in: bool
    csrf: str | None


class AccessControl:
    """Checks every request before it is handled; without `keys`, everyone has access."""

    def __init__(self, keys: Iterable[str], hosts: Iterable[str], clock: Clock) -> None:
        self._hosts = AllowedHosts(hosts)
        self._sessions = Sessions(clock.now)
        self._wrong = WrongKeys(clock.now)
        self._used: set[tuple[str, bytes]] = set()
        self._now = clock.now
        self._to_log = 0
        self._log_at = 0.0
        self.set_keys(tuple(keys))

    def set_keys(self, keys: Sequence[str]) -> None:
        """Accept these keys from now on, and end the sessions of all others."""
        self._keys = tuple(key.encode() for key in keys)
        self._sessions.end_unless_of(keys)
        self._used.clear()

    def check(self, scope: Scope, *, is_open: bool) -> None:
        """Check a request; `is_open` means that its path needs no key.

        Requests with a valid key skip the host and origin checks: a web page cannot know the key.
        Raises Unauthorized, TooManyAttempts, UntrustedHost or ForeignPage.
        """
        headers = scope["headers"]
        named = dict(headers)
        needs_key = bool(self._keys) and not is_open
        if needs_key and (b"authorization" in named or b"x-api-key" in named):
            self._check_key(scope)
            return
        host, origin = named.get(b"host"), named.get(b"origin")
        if host is not None:
            self._hosts.check_host(host)
        changes_state = scope["method"] not in frozenset({"GET", "HEAD", "OPTIONS"})
        if changes_state and origin is not None:
            self._hosts.check_origin(origin, host)
        if needs_key:
            session = self._sessions.find(_cookie(headers, host))
            if session is None:
                self._check_key(scope)
            elif changes_state and not same(
                session.csrf, named.get(b"x-cotenant-csrf", b"").decode("latin-1")
            ):
                raise ForeignPage(
                    "the request lacks this session's token", hint="Reload the page and try again."
                )

    def caller(self, scope: Scope) -> str:
        """Return what is logged of who sent a request: the address, and the start of its key's SHA-256."""
        headers = scope["headers"]
        offered = _offered_key(headers) if self._keys else b""
        digest = hashlib.sha256(offered).digest() if offered else b""
        if offered is None:
            session = self._sessions.find(_cookie(headers, dict(headers).get(b"host")))
            digest = session.key_digest if session is not None else b""
        return _described(_address(scope), digest)

    def _check_key(self, scope: Scope) -> None:
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
        if known not in self._used:
            self._check_guess(*known, _MOST_WRONG_KEYS)
            if len(self._used) < _MOST_USED:
                self._used.add(known)

    def _check_guess(self, client: str, key: bytes, most: int) -> None:
        """Check a key. Raises Unauthorized, or TooManyAttempts after `most` wrong ones within a minute.

        Either is logged: one line for all of ten seconds.
        """
        wait_s = self._wrong.wait_s(client, most)
        if wait_s is None and self._is_key(key):
            return
        self._to_log += 1
        if self._now() >= self._log_at:
            _log.warning("wrong API keys: count=%d last_from=%s", self._to_log, client)
            self._to_log, self._log_at = 0, self._now() + _LOG_EVERY_S
        if wait_s is not None:
            hint = f"Wait {max(1, round(wait_s))} s."
            raise TooManyAttempts("too many wrong keys", hint=hint, retry_after_s=wait_s)
        self._wrong.add(client, key)
        hint = "Use one of the daemon's keys; one that was taken out is void."
        raise Unauthorized("the API key is wrong", hint=hint)

    def _is_key(self, offered: bytes) -> bool:
        # Every key is compared, so that the duration does not reveal which one is similar.
        return sum(hmac.compare_digest(key, offered) for key in self._keys) > 0

    @Route(
        f"GET {SESSION}",
        "Return whether a key is needed and this browser is signed in; needs no key",
        Reply(SessionResponse, "the session"),
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
    )
    async def _begin(self, request: ApiRequest) -> None:
        """Check the key and set the cookie. Without API keys, any key is accepted and no cookie is set.

        Raises Unauthorized, BadRequest, BadAssignment or TooManyAttempts.
        """
        body = read_body(SessionRequest, await request.body() or b"{}")
        if not self._keys:
            await self._show(request)
            return
        key = body.key.strip()
        self._check_guess(request.client, key.encode("utf-8", "replace"), _MOST_SIGN_INS)
        token, session = self._sessions.begin(key)
        _log.info("signed in: from=%s", _described(request.client, session.key_digest))
        await self._send(request, session, _set_cookie(request, token, int(LIFETIME_S)))

    @Route("POST /api/session/end", "Sign a browser out", Reply(SessionResponse, "the session is ended"))
    async def _end(self, request: ApiRequest) -> None:
        """End the session and delete its cookie."""
        self._sessions.end(_cookie(request.headers, request.header(b"host")))
        await self._send(request, None, _set_cookie(request, "", 0))

    async def _send(self, request: ApiRequest, session: BrowserSession | None, *headers: Header) -> None:
        csrf = session.csrf if session else None
        response = SessionResponse(needed=bool(self._keys), signed_in=session is not None, csrf=csrf)
        await send_json(request.send, 200, response, ((b"cache-control", b"no-store"), *headers))


def _address(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def _described(address: str, key_digest: bytes) -> str:
    return f"{address} key={key_digest.hex()[:8]}" if key_digest else address


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
