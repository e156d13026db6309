"""Searches for settings under which recorded requests would have waited less, and tests the gain.

The search goes along one setting after the other, around the present: a number of replays that is known
beforehand, not every combination. What it finds is replayed anew with other draws of load times, and compared
with the present request by request.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from cotenant.simulation.models import Request
from cotenant.simulation.results import ReplayResult, summarize
from cotenant.simulation.variant import Variant

NEEDED_REQUESTS: Final = 200
"""Fewer requests are not enough to recommend anything."""
MOST_REQUESTS: Final = 10_000
"""Of a longer log the last requests are replayed."""
SEARCHED: Final = 4_000
"""The search replays the last of these only."""
DRAWS: Final = 3
"""Replays of what is compared at the end, each with other load times."""
WORSE: Final = 0.05
"""By what share a model's mean wait may rise; less than `_UNSEEN_S` does not count."""
_UNSEEN_S: Final = 0.05
_WORTHWHILE: Final = 0.01
_NEARLY: Final = 0.95
_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95

Key = tuple[str, ...]
"""A setting by its place in the configuration: a section and a name, or `models`, a model and a name."""

Choices = Mapping[Key, Any]
"""Settings that differ from the present."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A setting, its present value, and the others to try; of nearly equal ones the first is taken."""

    key: Key
    present: object
    values: Sequence[object]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference in seconds per request, and its 95 % interval; below 0 is an improvement."""

    mean_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A value of the search, with the mean wait; `hurt` is a model that would wait too much longer."""

    key: Key
    value: object
    mean_wait_s: float
    hurt: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """A setting to change. `gain` is the difference to everything else changed and this one not."""

    key: Key
    before: object
    after: object
    gain: Interval


@dataclass(frozen=True, slots=True)
class Advice:
    """What to change, nothing if the present is as good, or the log has fewer than NEEDED_REQUESTS.

    `waits` has the mean waits of each model in seconds, present and proposed, over all draws. The results
    are those of the first draw, `proposed` is None without changes, both are None without enough requests.
    """

    requests: int
    span_s: float
    seed: int
    replays: int = 0
    changes: tuple[Change, ...] = ()
    gain: Interval | None = None
    present: ReplayResult | None = None
    proposed: ReplayResult | None = None
    waits: Mapping[str, tuple[float, float]] | None = None
    tried: tuple[Tried, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the log has enough requests."""
        return self.requests >= NEEDED_REQUESTS


@dataclass(frozen=True, slots=True)
class _Trial:
    """One or more replays: the seconds until each request was answered, and each model's mean wait.

    A request that is refused counts as one that waited as long as it would.
    """

    response_s: Sequence[float]
    waits_s: Mapping[str, float]
    mean_wait_s: float
    result: ReplayResult

    def hurts(self, before: "_Trial") -> str | None:
        """Return a model whose mean wait is worse than before by more than it may be."""
        for model, wait_s in self.waits_s.items():
            if wait_s > before.waits_s[model] * (1 + WORSE) + _UNSEEN_S:
                return model
        return None


@dataclass(slots=True)
class _Replays:
    """Replays choices; the same ones with the same seed once."""

    build: Callable[[Choices], Variant]
    requests: Sequence[Request]
    on_replay: Callable[[], None]
    known: dict[tuple[int, frozenset[tuple[Key, object]]], _Trial] = field(default_factory=dict)

    def trial(self, choices: Choices, seed: int) -> _Trial:
        """Replay once."""
        key = seed, frozenset(choices.items())
        if key not in self.known:
            self.on_replay()
            self.known[key] = self._replayed(choices, seed)
        return self.known[key]

    def draws(self, choices: Choices, seed: int) -> _Trial:
        """Replay DRAWS times, by seeds from `seed` on, and average."""
        each = [self.trial(choices, seed + n) for n in range(DRAWS)]
        return _Trial(
            [sum(of) / DRAWS for of in zip(*(one.response_s for one in each), strict=True)],
            {model: sum(one.waits_s[model] for one in each) / DRAWS for model in each[0].waits_s},
            sum(one.mean_wait_s for one in each) / DRAWS,
            each[0].result,
        )

    def _replayed(self, choices: Choices, seed: int) -> _Trial:
        world = self.build(choices).replay(self.requests, seed=seed)
        waits: dict[str, list[float]] = {}
        response_s = []
        for client in world.clients.values():
            request = client.request
            until = client.deadline if client.granted_at is None else client.granted_at
            waits.setdefault(request.model, []).append(until - request.at)
            response_s.append(until - request.at + world.models[request.model].service_s(request))
        means = {model: sum(own) / len(own) for model, own in waits.items()}
        mean_s = sum(map(sum, waits.values())) / max(1, len(response_s))
        return _Trial(response_s, means, mean_s, summarize(world))


def advise(
    build: Callable[[Choices], Variant],
    dimensions: Callable[[Sequence[str]], Sequence[Dimension]],
    requests: Sequence[Request],
    *,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Advice:
    """Return the settings to change, of those that `build` makes variants of.

    `dimensions` are tried in their order, given the models that wait, the longest in sum first. A change
    stays if without it requests are answered later: the 95 % interval of the paired differences is above 0.
    All together must do the same against the present, by 1 % of the mean wait at least, and no model's mean
    wait may rise by more than WORSE. `progress` is called before each replay. The same requests,
    settings and seed give the same advice.
    """
    requests = requests[-MOST_REQUESTS:]
    span_s = requests[-1].at - requests[0].at if requests else 0.0
    if len(requests) < NEEDED_REQUESTS:
        return Advice(len(requests), span_s, seed)
    replays, searching = (
        _Replays(build, [replace(each, at=each.at - some[0].at) for each in some], progress)
        for some in (requests, requests[-SEARCHED:])
    )
    present = searching.trial({}, seed)
    counts = Counter(request.model for request in searching.requests)
    waited = {model: present.waits_s[model] * count for model, count in counts.items()}
    order = sorted((m for m in waited if waited[m] > 0), key=lambda model: (-waited[model], model))
    found = dimensions(order) if order else ()
    chosen, tried = _search(searching, found, present, seed)
    chosen = _pruned(replays, chosen, seed + 1)
    before, after = replays.draws({}, seed + 1), replays.draws(chosen, seed + 1)
    named = {each.key: each.present for each in found}
    return Advice(
        len(requests),
        span_s,
        seed,
        len(searching.known) + len(replays.known),
        tuple(
            Change(key, named[key], value, _gain(replays, chosen, key, seed + 1))
            for key, value in chosen.items()
        ),
        interval(_differences(after, before), seed + 1) if chosen else None,
        before.result,
        after.result if chosen else None,
        {model: (before.waits_s[model], after.waits_s[model]) for model in before.waits_s},
        tuple(tried),
    )


def _search(
    replays: _Replays, dimensions: Sequence[Dimension], present: _Trial, seed: int
) -> tuple[dict[Key, object], list[Tried]]:
    """Go along each dimension from what is best so far; take the first value that gains nearly the most."""
    chosen: dict[Key, object] = {}
    tried = []
    best, least_s = present, _WORTHWHILE * present.mean_wait_s
    for dimension in dimensions:
        able = []
        for value in dimension.values:
            trial = replays.trial({**chosen, dimension.key: value}, seed)
            hurt = trial.hurts(present)
            tried.append(Tried(dimension.key, value, trial.mean_wait_s, hurt))
            gain_s = (sum(best.response_s) - sum(trial.response_s)) / len(trial.response_s)
            if hurt is None and gain_s >= least_s:
                able.append((gain_s, value, trial))
        if able:
            most_s = max(gain_s for gain_s, _, _ in able)
            _, chosen[dimension.key], best = next(each for each in able if each[0] >= _NEARLY * most_s)
    return chosen, tried


def _pruned(replays: _Replays, chosen: Mapping[Key, object], seed: int) -> dict[Key, object]:
    """Return the changes without those that gain nothing for sure; none if all together do not."""
    kept = dict(chosen)
    for key in reversed([*chosen]):
        if _gain(replays, kept, key, seed).high_s >= 0:
            del kept[key]
    present = replays.draws({}, seed)
    while kept:
        proposed = replays.draws(kept, seed)
        gain = interval(_differences(proposed, present), seed)
        if (
            gain.high_s < 0
            and -gain.mean_s >= _WORTHWHILE * present.mean_wait_s
            and not proposed.hurts(present)
        ):
            break
        kept.popitem()
    return kept


def _gain(replays: _Replays, chosen: Mapping[Key, object], key: Key, seed: int) -> Interval:
    without = {each: value for each, value in chosen.items() if each != key}
    return interval(_differences(replays.draws(chosen, seed), replays.draws(without, seed)), seed)


def _differences(after: _Trial, before: _Trial) -> list[float]:
    return [late - early for late, early in zip(after.response_s, before.response_s, strict=True)]


def interval(differences: Sequence[float], seed: int) -> Interval:
    """Return the mean of paired differences with its 95 % percentile interval.

    It is a block bootstrap (Carlstein 1986): requests near each other wait for the same loads, so that about
    √n blocks of consecutive ones are drawn, not single ones.
    """
    size = max(1, math.isqrt(len(differences)))
    blocks = [differences[start : start + size] for start in range(0, len(differences), size)]
    sums = [(sum(block), len(block)) for block in blocks]
    rng = Random(seed)
    means = []
    for _ in range(_RESAMPLES):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    cut = round((1 - _CONFIDENCE) / 2 * _RESAMPLES)
    return Interval(sum(differences) / len(differences), means[cut], means[-1 - cut])
