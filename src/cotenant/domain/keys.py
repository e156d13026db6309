"""API keys: who may do what, on which models, and how much of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cotenant.domain.errors import BadSetting
from cotenant.domain.settings import setting


class KeyScope(StrEnum):
    """What a key may do; each scope includes those before it.

    `infer`: requests to models. `operate`: load, unload, pin, move, drain, and read the daemon's state.
    `admin`: pull, reload, pin services, manage keys.
    """

    INFER = "infer"
    OPERATE = "operate"
    ADMIN = "admin"

    def includes(self, needed: KeyScope) -> bool:
        """Whether a key of this scope may do what needs another one."""
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER: Final = tuple(KeyScope)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, known by the SHA-256 of its text. It may use all `models` if none is named.

    `expires_at` is in Unix seconds.
    """

    name: str
    digest: bytes
    scope: KeyScope = setting(
        KeyScope.INFER, "what it may do: infer, operate or admin", flag=None, metavar="SCOPE"
    )
    models: tuple[str, ...] = setting(
        (),
        "models that it may use, by names or aliases; only with `scope: infer`",
        flag=None,
        reads="name",
        metavar="NAME[,NAME…]",
        shown="all",
    )
    expires_at: float | None = setting(
        None,
        "a day or an instant, such as 2030-12-31 (UTC)",
        key="expires",
        flag=None,
        reads="instant",
        metavar="TIME",
    )
    requests_at_once: int | None = setting(
        None, "its requests at the same time, waiting ones included", flag=None, least=1
    )
    tokens_per_minute: int | None = setting(
        None, "tokens of its requests and their answers within a minute", flag=None, least=1
    )
    priority: int | None = setting(
        None,
        "priority of its requests, in place of the models'; their header can only lower it",
        flag=None,
        least=-10,
        most=10,
    )


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What requests of a key have used: tokens that engines counted, and seconds of waits for models."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wait_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of requests and answers."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: KeyUse) -> KeyUse:
        return KeyUse(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.wait_s + other.wait_s,
        )

    def __sub__(self, other: KeyUse) -> KeyUse:
        return KeyUse(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
            self.wait_s - other.wait_s,
        )


@dataclass(frozen=True, slots=True)
class KeyUses:
    """What a key has used: on one day, and since it is counted."""

    day: KeyUse = KeyUse()
    total: KeyUse = KeyUse()


def flat_key(text: str) -> ApiKey:
    """Return the key of `api_keys` with this text: it has all rights, and is named by its digest."""
    digest = key_digest(text)
    return ApiKey(digest.hex()[:8], digest, KeyScope.ADMIN)


def key_digest(text: str) -> bytes:
    """Return what a key is known by. It is not salted: generated keys are random, so none is guessed."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def check_name(name: str) -> str:
    """Return a key's name. Raises BadSetting for one that cannot be one."""
    if not _NAME.fullmatch(name):
        raise BadSetting(
            f"{name[:80]!r} cannot be the name of a key",
            hint="Use at most 64 letters, digits and . _ -, beginning with a letter or a digit.",
        )
    return name


def check_keys(keys: Sequence[ApiKey]) -> None:
    """Raise BadSetting for keys that cannot be told apart, or that restrict an operator to some models."""
    by_name: dict[str, ApiKey] = {}
    by_digest: dict[bytes, ApiKey] = {}
    for key in keys:
        if by_name.setdefault(key.name, key) != key:
            raise BadSetting(f"two API keys are named {key.name!r}", hint="Give each a name of its own.")
        same = by_digest.setdefault(key.digest, key)
        if same != key:
            what = f"the API keys {same.name!r} and {key.name!r} are the same"
            raise BadSetting(what, hint="Keep one of them, or take another text.")
        if key.models and key.scope is not KeyScope.INFER:
            raise BadSetting(
                f"the API key {key.name!r} has both models and the scope {key.scope}",
                hint="Who operates does so for all models: leave out one of them.",
            )
