"""What each API key has used, and what is left of its quotas."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.domain.errors import QuotaExceeded
from cotenant.domain.keys import ApiKey, KeyUse

_WINDOW_S: Final = 61.0
"""A minute, and the second in which tokens are counted together."""
_ANSWER_TOKENS: Final = 1024
"""What is reserved for an answer whose request does not bound it."""
_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")


@dataclass(slots=True, eq=False)
class KeyUsage:
    """The requests of one key; `wait_s` is how long they have waited for their leases.

    `tokens_per_minute` bounds the last minute's tokens with those that requests in flight have reserved: it
    holds however many ask at once.
    """

    by_class: list[int] = field(default_factory=lambda: [0] * 6)
    in_flight: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wait_s: float = 0.0
    _taken: KeyUse = field(default_factory=KeyUse)
    _reserved: int = 0
    _by_second: deque[tuple[int, int]] = field(default_factory=deque)

    def admit(self, key: ApiKey, request: Mapping[str, Any], size: int, now: float, *, answers: bool) -> int:
        """Count a request as in flight; return the tokens that it reserves. Raises QuotaExceeded."""
        most, rate, tokens = key.requests_at_once, key.tokens_per_minute, 0
        if most is not None and self.in_flight >= most:
            self.refused += 1
            what = f"the API key {key.name!r} may have {most} requests at once"
            raise QuotaExceeded(what, hint="Wait for one to end.", retry_after_s=1.0)
        if rate is not None:
            while self._by_second and self._by_second[0][0] + _WINDOW_S <= now:
                self._by_second.popleft()
            tokens = _expected_tokens(request, size, answers=answers)
            used = self._reserved + sum(count for _, count in self._by_second)
            # One that is larger than the quota goes alone.
            if used and used + tokens > rate:
                self.refused += 1
                what = f"the API key {key.name!r} may use {rate} tokens a minute: {used} are used or reserved"
                wait_s = self._by_second[0][0] + _WINDOW_S - now if self._by_second else 1.0
                hint = f"This request may take {tokens}: wait, or bound its answer with `max_tokens`."
                raise QuotaExceeded(what, hint=hint, retry_after_s=wait_s)
        self.in_flight += 1
        self._reserved += tokens
        return tokens

    def take(self) -> KeyUse | None:
        """Return what was used since the last call, None for nothing."""
        now = KeyUse(sum(self.by_class), self.prompt_tokens, self.completion_tokens, self.wait_s)
        new, self._taken = now - self._taken, now
        return new if new.requests else None

    def end(
        self, status: int, used: tuple[int, int], reserved: int, now: float, *, wait_s: float, answered: bool
    ) -> None:
        """Count a request that has ended, and the tokens that it used; `status` is 0 if its client left.

        One that was `answered` without counts of tokens has used what it `reserved`.
        """
        self.in_flight -= 1
        self._reserved -= reserved
        self.by_class[min(status // 100, 5)] += 1
        self.prompt_tokens += used[0]
        self.completion_tokens += used[1]
        self.wait_s += wait_s
        counted = sum(used) or (reserved if answered else 0)
        if reserved and counted:
            second = math.floor(now)
            if self._by_second and self._by_second[-1][0] == second:
                counted += self._by_second.pop()[1]
            self._by_second.append((second, counted))


def _expected_tokens(request: Mapping[str, Any], size: int, *, answers: bool) -> int:
    """Return how many tokens a request may take: a quarter of its bytes, and its longest answer."""
    bounds = (request.get(name) for name in _BOUNDS if answers)
    bound = next((each for each in bounds if type(each) is int and each >= 0), _ANSWER_TOKENS * answers)
    return size // 4 + 1 + bound
