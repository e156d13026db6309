"""Requests and models drawn to match the statistics of real traces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Final

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.planning.device_needs import Fit
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.simulation.models import Request, SimulatedModel, quantile, speed_of

_GB: Final = 10**9
_SIZES_GB: Final = (1.4, 2.4, 3.5, 5.6, 6.1, 8.6, 9.8, 13.5, 18.5, 21.5)
"""1B to 32B parameters at 4 to 8 bits, with a context of some thousand tokens."""
_START_S: Final = 2.0
_SLOTS: Final = 16


def draw_models(names: Sequence[str], rng: Random, *, largest_bytes: int) -> tuple[SimulatedModel, ...]:
    """Draw sizes and load times: the file is read at 0.5 to 3 GB/s, and an engine starts in two seconds.

    Decoding is bound by the bandwidth of a card of 900 GB/s, as single streams are.
    """
    sizes = [size for size in _SIZES_GB if size * _GB <= largest_bytes]
    models = []
    for name in names:
        size = round(rng.choice(sizes) * rng.uniform(0.85, 1.15) * _GB)
        size = min(size, largest_bytes)
        read_per_s = math.exp(rng.uniform(math.log(0.5e9), math.log(3e9)))
        prefill_per_s, decode_per_s = speed_of(size)
        models.append(
            SimulatedModel(
                name,
                (size,),
                load_s=_START_S + size / read_per_s,
                prefill_per_s=prefill_per_s,
                decode_per_s=decode_per_s,
                slots=_SLOTS,
            )
        )
    return tuple(models)


def spec_of(
    model: SimulatedModel,
    *,
    keep_alive_s: float | None = None,
    pinned: bool = False,
    whole_card: bool = False,
) -> ModelSpec:
    """Return a model as the scheduler sees it; with `whole_card` it shares its card with no other."""
    fit = fit_whole_card(model.name, model.bytes) if whole_card else fit_pieces(model.name, model.pieces)
    return ModelSpec(
        model.name, fit, slots=model.slots, keep_alive_s=keep_alive_s, pinned=pinned, load_s=model.load_s
    )


def fit_pieces(name: str, pieces: Sequence[int]) -> Fit:
    """Lay a model over as many devices as it has pieces, the first that fit."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        shares: list[Share] = []
        for budget in budgets:
            index = len(shares)
            if budget.left_out is None and budget.budget_bytes >= pieces[index]:
                parts = Parts(weights=pieces[index])
                shares.append(Share(budget, index, index, 1, has_output=False, parts=parts))
                if len(shares) == len(pieces):
                    return Placement(name, Recipe(), len(pieces), len(pieces), tuple(shares), host=Parts())
        return Refusal(
            name, f"{name} needs {' + '.join(map(str, pieces))} bytes, each on a device of its own"
        )

    return fit


def fit_whole_card(name: str, size: int) -> Fit:
    """Lay a model over one card, all of which it claims."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        for budget in budgets:
            total = budget.device.total_bytes or 0
            if budget.left_out is None and budget.budget_bytes >= total >= size:
                share = Share(budget, 0, 0, 1, has_output=True, parts=Parts(weights=total))
                return Placement(name, Recipe(), 1, 1, (share,), host=Parts())
        return Refusal(name, f"{name} needs a card for itself")

    return fit


@dataclass(frozen=True, slots=True)
class Tokens:
    """A lognormal number of tokens, at most `most`."""

    median: float
    sigma: float
    most: int

    def draw(self, rng: Random) -> int:
        """Draw one; at least 1."""
        return max(1, min(self.most, round(rng.lognormvariate(math.log(self.median), self.sigma))))


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

    def draw(self, rng: Random) -> tuple[Request, ...]:
        """Draw requests, in the order of their instants."""
        names = self.names()
        weights = [(number + 1 + self.shift) ** -self.exponent for number in range(self.models)]
        found: list[Request] = []
        while len(found) < self.requests:
            (model,) = rng.choices(names, weights)
            at = rng.uniform(0, self.seconds)
            while len(found) < self.requests:
                found.append(Request(at, model, self.prompt.draw(rng), self.output.draw(rng)))
                if rng.random() < 1 / self.burst:
                    break
                # Wrapping round keeps the rate even to the end of the span.
                gap = rng.lognormvariate(math.log(self.gap_median_s), self.gap_sigma)
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
