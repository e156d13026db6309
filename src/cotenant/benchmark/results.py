"""What was measured. Times are seconds, instants seconds since the benchmark began."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of every model: how much at once, how often, and how long prompts and answers are.

    `exact` asks the server to ignore a model's end of text, so that answers have all `max_tokens`.
    """

    concurrency: int = 1
    requests: int = 8
    prompt_tokens: int = 128
    max_tokens: int = 128
    exact: bool = False
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: when it was asked for, when each piece of its text came, and how many tokens it had.

    `usage` is False where the server did not count, and pieces of the stream stand for tokens.
    """

    sent_at: float
    arrivals: tuple[float, ...]
    ended_at: float
    tokens: int
    usage: bool
    prompt_tokens: int | None = None

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.arrivals[0] - self.sent_at

    @property
    def total_s(self) -> float:
        """Time to the last."""
        return self.ended_at - self.sent_at

    @property
    def per_token_s(self) -> float | None:
        """Mean time between tokens after the first; None for an answer of one."""
        if self.tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the slow end of a list of times."""

    p50_s: float
    p95_s: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Spread | None:
        """Return it by the nearest rank; None for no times."""
        if not times_s:
            return None
        ordered = sorted(times_s)
        return cls(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.95)))


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model in one phase.

    `tokens_per_s` is over the whole phase, what others' answers took included; `share_kept` is that beside
    the rate of the same model alone, None in its own phase.
    """

    model: str
    tokens_per_s: float
    requests: int
    failures: int
    first_token: Spread | None = None
    per_token: Spread | None = None
    total: Spread | None = None
    share_kept: float | None = None
    usage: bool = True
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """Some models under load at the same time. `note` says what makes the figures doubtful."""

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
    """How long a first token took of a model that had to be loaded.

    In place of `instead_of`, whose unloading is part of the wait; None where there was room.
    """

    model: str
    seconds: float
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Bytes that each model held at an instant."""

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
