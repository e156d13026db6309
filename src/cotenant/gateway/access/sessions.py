"""Sessions of browsers that are signed in: a cookie, and a CSRF token that other sites cannot know."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

LIFETIME_S: Final = 12 * 3600.0
MAX_SESSIONS: Final = 64
_BYTES: Final = 32
_MAX_ATTEMPTS: Final = 5
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

    def begin(self, key: str = "") -> tuple[str, BrowserSession]:
        """Begin a session for who has this key; return the token for its cookie."""
        token = secrets.token_urlsafe(_BYTES)
        session = BrowserSession(secrets.token_urlsafe(_BYTES), self._now() + LIFETIME_S, _digest(key))
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

    def end_unless_of(self, keys: Iterable[str]) -> None:
        """End the sessions that began with a key that is none of these."""
        kept = set(map(_digest, keys))
        self._by_digest = {token: each for token, each in self._by_digest.items() if each.key_digest in kept}

    def end(self, token: str) -> None:
        """End a session, if there is one."""
        self._by_digest.pop(_digest(token), None)


class LoginAttempts:
    """Counts wrong keys by client: after five within a minute the client must wait, against guessing."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failed: dict[str, list[float]] = {}

    def wait_s(self, client: str) -> float | None:
        """Return the seconds that a client must wait before its next attempt; None if it need not wait."""
        recent = self._recent(client)
        return None if len(recent) < _MAX_ATTEMPTS else recent[0] + _WINDOW_S - self._now()

    def failed(self, client: str) -> None:
        """Count a wrong key."""
        recent = self._recent(client)
        self._failed.pop(client, None)
        self._failed[client] = [*recent, self._now()][-_MAX_ATTEMPTS:]
        while len(self._failed) > _MAX_CLIENTS:
            del self._failed[next(iter(self._failed))]

    def _recent(self, client: str) -> list[float]:
        since = self._now() - _WINDOW_S
        return [at for at in self._failed.get(client, ()) if at > since]


def same(one: str, other: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "replace"))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
