"""Requests for many models: a generator matched to the statistics of real traces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the instant it comes, in seconds from the start, and its tokens.

    `service_s` is how long it is served, None to reckon it from the tokens; it waits `patience_s` at most,
    None for as long as the world has it; `keep_alive_s` is its own word on how long the model stays, and
    `priority` on whom it goes before, None where it says nothing.
    `waited_s` is how long it did wait when it was recorded, None if that is not known.
    """

    at: float
    model: str
    prompt_tokens: int
    output_tokens: int
    priority: int | None = None
    service_s: float | None = None
    patience_s: float | None = None
    keep_alive_s: float | None = None
    waited_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A lognormal number of tokens, at most `most`."""

    median: float
    sigma: float
    most: int

    def draw(self, dice: Random) -> int:
        """Draw one; at least 1."""
        return max(1, min(self.most, round(dice.lognormvariate(math.log(self.median), self.sigma))))


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of traffic.

    The k-th model's share is proportional to `(k + shift) ** -exponent` (Zipf–Mandelbrot). Requests come in
    bursts for one model, of geometric length with mean `burst`, at lognormal gaps.
    """

    models: int
    requests: int
    seconds: float
    exponent: float
    shift: float
    burst: float
    gap_median_s: float
    gap_sigma: float
    prompt: Tokens
    output: Tokens

    def stretched(self, factor: float) -> Profile:
        """Return the same requests over `factor` times the time."""
        return replace(self, seconds=self.seconds * factor, gap_median_s=self.gap_median_s * factor)

    def names(self) -> tuple[str, ...]:
        """Name the models, the most popular first."""
        return tuple(f"m{number:02}" for number in range(self.models))

    def draw(self, dice: Random) -> tuple[Request, ...]:
        """Draw requests, in the order of their instants."""
        names = self.names()
        weights = [(number + 1 + self.shift) ** -self.exponent for number in range(self.models)]
        found: list[Request] = []
        while len(found) < self.requests:
            (model,) = dice.choices(names, weights)
            at = dice.uniform(0, self.seconds)
            while len(found) < self.requests:
                found.append(Request(at, model, self.prompt.draw(dice), self.output.draw(dice)))
                if dice.random() < 1 / self.burst:
                    break
                # Wrapping round keeps the rate even to the end of the span.
                gap = dice.lognormvariate(math.log(self.gap_median_s), self.gap_sigma)
                at = (at + gap) % self.seconds
        return tuple(sorted(found, key=lambda request: request.at))


@dataclass(frozen=True, slots=True)
class Statistics:
    """What traffic looks like: shares of all requests, and gaps between those for the same model."""

    top_1: float
    top_5: float
    switches: float
    gap_p50_s: float
    gap_p90_s: float
    gap_p99_s: float
    prompt_mean: float
    output_mean: float


def statistics(requests: Sequence[Request]) -> Statistics:
    """Describe a workload of at least two requests."""
    counts = [count for _, count in Counter(request.model for request in requests).most_common()]
    pairs = pairwise(requests)
    last: dict[str, float] = {}
    gaps = []
    for request in requests:
        if request.model in last:
            gaps.append(request.at - last[request.model])
        last[request.model] = request.at
    gaps.sort()
    return Statistics(
        top_1=counts[0] / len(requests),
        top_5=sum(counts[:5]) / len(requests),
        switches=sum(a.model != b.model for a, b in pairs) / (len(requests) - 1),
        gap_p50_s=quantile(gaps, 0.5),
        gap_p90_s=quantile(gaps, 0.9),
        gap_p99_s=quantile(gaps, 0.99),
        prompt_mean=sum(request.prompt_tokens for request in requests) / len(requests),
        output_mean=sum(request.output_tokens for request in requests) / len(requests),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which a share of an ordered sequence lies; 0 for an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


ARENA: Final = Profile(
    models=27,
    requests=1500,
    seconds=600,
    exponent=3.0,
    shift=8.0,
    burst=1.3,
    gap_median_s=1.0,
    gap_sigma=1.5,
    prompt=Tokens(40, 1.8, 1000),
    output=Tokens(211, 0.65, 1000),
)
"""Like a sample of the LMSYS Chatbot Arena's log, 27 models (Sheng et al., OSDI 2024), in 10 minutes."""

CLIENTS: Final = Profile(
    models=56,
    requests=37_100,
    seconds=86_400,
    exponent=0.4,
    shift=3.0,
    burst=200,
    gap_median_s=0.75,
    gap_sigma=2.25,
    prompt=Tokens(165, 1.54, 30_000),
    output=Tokens(243, 1.57, 30_000),
)
"""Like a day of 56 clients of ServeGen's pools (arXiv 2505.09999), each asking for a model of its own."""
