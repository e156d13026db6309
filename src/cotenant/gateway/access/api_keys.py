"""API keys."""

import hmac
from collections.abc import Sequence

from cotenant.asgi import Header
from cotenant.domain.errors import Unauthorized


class ApiKeys:
    """The API keys that the gateway accepts; without keys, everyone has access."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = tuple(key.encode() for key in keys)

    @property
    def needed(self) -> bool:
        """Whether there is any key."""
        return bool(self._keys)

    def has(self, offered: bytes) -> bool:
        """Whether `offered` is one of the keys."""
        # Every key is compared, so that the duration does not reveal which one is similar.
        return sum(hmac.compare_digest(key, offered) for key in self._keys) > 0

    def check(self, headers: Sequence[Header]) -> None:
        """Check the key in `Authorization: Bearer` or `x-api-key`. Raises Unauthorized."""
        if not self._keys:
            return
        offered = _offered_key(headers)
        if offered is None:
            raise Unauthorized(
                "the request has no API key",
                hint="Send it as `Authorization: Bearer KEY`, or set api_key in the openai client.",
            )
        if not self.has(offered):
            raise Unauthorized("the API key is wrong", hint="Use a key that the daemon was started with.")


def _offered_key(headers: Sequence[Header]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
        elif name == b"x-api-key":
            return value.strip()
    return None
