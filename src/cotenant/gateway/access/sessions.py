"""Sessions of browsers that are signed in: a cookie, and a CSRF token that other sites cannot know."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final

LIFETIME_S: Final = 12 * 3600.0
MAX_SESSIONS: Final = 64
_BYTES: Final = 32
_MAX_KEYS: Final = 20
_WINDOW_S: Final = 60.0
_MAX_CLIENTS: Final = 1024


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """One browser's session; requests that change something must send `csrf` as well as the cookie.

    It ends with the key that it began with, whose digest is `key_digest`.
    """

    csrf: str
    ends_at: float
    key_digest: bytes = b""


class Sessions:
    """Sessions in memory, with a limited lifetime and number: the oldest is dropped. A restart ends all.

    Only digests of the cookies' tokens are stored.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._by_digest: dict[bytes, BrowserSession] = {}

    def begin(self, key_digest: bytes = b"") -> tuple[str, BrowserSession]:
        """Begin a session for who has this key; return the token for its cookie."""
        token = secrets.token_urlsafe(_BYTES)
        session = BrowserSession(secrets.token_urlsafe(_BYTES), self._now() + LIFETIME_S, key_digest)
        self._by_digest[_digest(token)] = session
        while len(self._by_digest) > MAX_SESSIONS:
            del self._by_digest[next(iter(self._by_digest))]
        return token, session

    def find(self, token: str) -> BrowserSession | None:
        """Return the session of a cookie, None if it has ended."""
        session = self._by_digest.get(_digest(token))
        if session is not None and session.ends_at <= self._now():
            self.end(token)
            return None
        return session

    def end_unless_of(self, digests: Collection[bytes]) -> None:
        """End the sessions that began with a key that has none of these digests."""
        kept = [(token, each) for token, each in self._by_digest.items() if each.key_digest in digests]
        self._by_digest = dict(kept)

    def end(self, token: str) -> None:
        """End a session, if there is one."""
        self._by_digest.pop(_digest(token), None)


class WrongKeys:
    """Counts wrong keys by client, against guessing: after some within a minute the client must wait.

    The same key counts once, since a program with an old one repeats it. Of IPv6 a client is its /64.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offered: dict[str, dict[bytes, float]] = {}

    def wait_s(self, client: str, most: int) -> float | None:
        """Return the seconds that a client must wait which offered `most` wrong keys; None if it need not."""
        offered = self._offered.get(_network(client)) if self._offered else None
        if offered is None or len(offered) < most:
            return None
        left_s = list(offered.values())[-most] + _WINDOW_S - self._now()
        return left_s if left_s > 0 else None

    def add(self, client: str, key: bytes) -> None:
        """Count a wrong key."""
        offered = self._offered.pop(_network(client), {})
        if len(offered) >= _MAX_KEYS:
            del offered[next(iter(offered))]
        offered.setdefault(hashlib.sha256(key).digest(), self._now())
        self._offered[_network(client)] = offered
        if len(self._offered) > _MAX_CLIENTS:
            del self._offered[next(iter(self._offered))]


def _network(client: str) -> str:
    try:
        address = IPv6Address(client)
    except AddressValueError:
        return client
    return str(address.ipv4_mapped or int(address) >> 64)


def same(one: str, other: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "replace"))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
