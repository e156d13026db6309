"""Results of a benchmark. Times are seconds, instants seconds since its start."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Load:
    """The load on every model: concurrency, number of requests, lengths of prompts and answers.

    `exact` asks the server to ignore a model's end of text, so that answers have all `max_tokens`.
    """

    concurrency: int = 1
    requests: int = 8
    prompt_tokens: int = 128
    max_tokens: int = 128
    exact: bool = False
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: when it was requested, when each chunk arrived, and its number of tokens.

    `usage` is False if the server did not count tokens; chunks are counted instead.
    """

    sent_at: float
    arrivals: tuple[float, ...]
    tokens: int
    usage: bool
    prompt_tokens: int | None = None

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.arrivals[0] - self.sent_at

    @property
    def total_s(self) -> float:
        """Time to the last token."""
        return self.arrivals[-1] - self.sent_at

    @property
    def per_token_s(self) -> float | None:
        """Mean time between tokens after the first; None for an answer of one."""
        if self.tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The median and the 95th percentile of times."""

    p50_s: float
    p95_s: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Self | None:
        """Return the percentiles by nearest rank; None without times."""
        if not times_s:
            return None
        ordered = sorted(times_s)
        return cls(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.95)))


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model in one phase.

    `tokens_per_s` is over the whole phase; `share_kept` is its ratio to the rate of the model alone, None in
    the phase that measures that rate.
    """

    model: str
    tokens_per_s: float
    requests: int
    failures: int
    first_token: Percentiles | None = None
    per_token: Percentiles | None = None
    total: Percentiles | None = None
    share_kept: float | None = None
    usage: bool = True
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """Some models under load at the same time. `note` says why the figures are doubtful, if they are."""

    models: tuple[str, ...]
    begun_at: float
    ended_at: float
    results: tuple[ModelResult, ...]
    note: str | None = None

    @property
    def tokens_per_s(self) -> float:
        """The rate of all its models together."""
        return sum(result.tokens_per_s for result in self.results)


@dataclass(frozen=True, slots=True)
class Wait:
    """Time to the first token of a model that had to be loaded.

    `instead_of` was unloaded first, which is part of the wait; None if there was room.
    """

    model: str
    seconds: float
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The bytes that each model held at an instant."""

    at: float
    bytes_by_model: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark. `left_out` says what was not measured and why."""

    address: str
    load: Load
    phases: tuple[Phase, ...]
    waits: tuple[Wait, ...]
    memory: tuple[MemorySample, ...]
    tokens: Mapping[str, tuple[tuple[float, float], ...]]
    left_out: tuple[str, ...] = ()
    capacity_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values: seconds, bytes and tokens, null for unknown."""
        return {
            "address": self.address,
            "load": asdict(self.load),
            "phases": [
                {
                    "models": list(phase.models),
                    "begun_at_s": phase.begun_at,
                    "ended_at_s": phase.ended_at,
                    "tokens_per_s": phase.tokens_per_s,
                    "note": phase.note,
                    "results": [asdict(result) for result in phase.results],
                }
                for phase in self.phases
            ],
            "waits": [asdict(wait) for wait in self.waits],
            "memory": [asdict(sample) for sample in self.memory],
            "capacity_bytes": self.capacity_bytes,
            "left_out": list(self.left_out),
        }
