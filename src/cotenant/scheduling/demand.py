"""How often a model is requested, and how soon the next request is likely."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_BUCKETS: Final = 24
_RATE_MEMORY_S: Final = 300.0
_HORIZON_S: Final = 300.0
_PSEUDO_COUNTS: Final = 4.0
_MINUTE_S: Final = 60
_IDLE_TIMES: Final = 8


@dataclass(slots=True)
class GapHistogram:
    """Gaps between requests, by powers of two of seconds from 1/8 s on."""

    counts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)

    def add(self, gap_s: float) -> None:
        """Count one gap."""
        self.counts[_bucket(gap_s)] += 1.0

    def beyond(self, age_s: float) -> tuple[float, float]:
        """Return how many gaps were longer than `age_s`, and how many of these ended within the horizon."""
        first, last = _bucket(age_s), _bucket(age_s + _HORIZON_S)
        return sum(self.counts[first:]), sum(self.counts[first : last + 1])


@dataclass(slots=True)
class Demand:
    """One model's requests: how many in the last minute, a rate for decisions, and their gaps.

    `idle_times` are the last times that nobody used it, each until the next request, infinite if it is
    unknown. Times are the scheduler's.
    """

    gaps: GapHistogram = field(default_factory=GapHistogram)
    last_at: float | None = None
    requests: int = 0
    idle_times: deque[float] = field(default_factory=lambda: deque(maxlen=_IDLE_TIMES))
    _rate: float = 0.0
    _by_second: deque[list[int]] = field(default_factory=deque)
    """The seconds of the last minute that had requests, oldest first, each with their number."""

    def arrive(self, at: float, all_gaps: GapHistogram) -> None:
        """Count a request; its gap goes into the model's own histogram and `all_gaps`."""
        self.requests += 1
        if self.last_at is not None:
            gap = max(0.0, at - self.last_at)
            self.gaps.add(gap)
            all_gaps.add(gap)
            self._rate *= math.exp(-gap / _RATE_MEMORY_S)
        self._rate += 1 / _RATE_MEMORY_S
        self.last_at = at
        second = int(at)
        if self._by_second and self._by_second[-1][0] == second:
            self._by_second[-1][1] += 1
            return
        self._by_second.append([second, 1])
        while self._by_second[0][0] <= second - _MINUTE_S:
            self._by_second.popleft()

    def rate(self, now: float) -> float:
        """Return the requests per second to expect: the past ones, weighted by recency over five minutes.

        After a minute without any, it is at most one in the time since the last: a model that was busy long
        ago is not kept for one that is used less, but now.
        """
        if self.last_at is None:
            return 0.0
        idle = max(0.0, now - self.last_at)
        decayed = self._rate * math.exp(-idle / _RATE_MEMORY_S)
        return min(decayed, 1 / idle) if idle >= _MINUTE_S else decayed

    def last_minute_rate(self, now: float) -> float:
        """Return requests per second over the last 60 seconds."""
        return sum(count for second, count in self._by_second if second > now - _MINUTE_S) / _MINUTE_S

    def idle_s(self, now: float) -> float:
        """Return seconds since the last request; infinite if there was none."""
        return math.inf if self.last_at is None else max(0.0, now - self.last_at)

    def chance_soon(self, now: float, all_gaps: GapHistogram) -> float:
        """Return the chance of a request within five minutes, given the time since the last one.

        The model's own gaps, shrunk towards those of all models by four pseudo-counts ("Serverless in the
        Wild", Shahrad et al., ATC 2020, uses such histograms for keep-alive).
        """
        if self.last_at is None:
            return 0.0
        idle = self.idle_s(now)
        outlasted, soon = self.gaps.beyond(idle)
        all_outlasted, all_soon = all_gaps.beyond(idle)
        prior = all_soon / all_outlasted if all_outlasted else 0.0
        return (soon + _PSEUDO_COUNTS * prior) / (outlasted + _PSEUDO_COUNTS)


def _bucket(seconds: float) -> int:
    if seconds <= 0.125:
        return 0
    return min(_BUCKETS - 1, int(math.log2(seconds * 8)))
