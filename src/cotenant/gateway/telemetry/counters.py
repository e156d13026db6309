"""Counters of each model's requests: plain numbers without locks, since they are on the hot path."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.decisions import Decision, Histogram
from cotenant.interfaces import Router

TAIL_BYTES: Final = 2048
"""How many bytes at the end of a response are searched for token counts: llama.cpp writes them last."""

_USAGE_BYTES: Final = 512

_WAIT_BOUNDS_S: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FIRST_TOKEN_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SPEED_BOUNDS: Final = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
# Inside a generated text the quotes are escaped, so only the engine's own fields match.
# Servers in Python put a space after each colon.
_USAGE: Final = re.compile(
    rb'"usage": ?{\s*"(prompt|completion)_tokens": ?(\d+),\s*"(?:prompt|completion)_tokens": ?(\d+)'
)
_COUNTS: Final = re.compile(rb'"(\w+)": ?(\d+)')
_PROMPT_COUNTS: Final = (
    b"prompt_tokens",
    b"input_tokens",
    b"cache_read_input_tokens",
    b"cache_creation_input_tokens",
)
"""In Anthropic's usage, the input excludes cached tokens; OpenAI's responses have only the second field."""
_ANSWER_COUNTS: Final = (b"completion_tokens", b"output_tokens")
_TIMINGS: Final = re.compile(rb'"(cache_n|prompt_n|predicted_n|predicted_ms)":(\d+(?:\.\d+)?)')


@dataclass(slots=True)
class ModelCounters:
    """Counters of one model's requests.

    `by_class` counts ended requests by the first digit of their status, or at 0 if the client disconnected.
    """

    by_class: list[int] = field(default_factory=lambda: [0] * 6)
    in_flight: int = 0
    waiting: int = 0
    at_once: int = 0
    wait_s: Histogram = field(default_factory=lambda: Histogram(_WAIT_BOUNDS_S))
    first_token_s: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN_BOUNDS_S))
    tokens_per_s: Histogram = field(default_factory=lambda: Histogram(_SPEED_BOUNDS))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    generation_s: float = 0.0
    unloads: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)

    def read_tokens(self, answer_end: bytes) -> tuple[int, int]:
        """Count the tokens in `usage` and `timings` at the end of a response.

        Returns the tokens of the prompt and of the answer.
        """
        before = self.prompt_tokens, self.completion_tokens
        tail = answer_end[-TAIL_BYTES:]
        usage = max(tail.rfind(b'"usage":{'), tail.rfind(b'"usage": {'))
        counts = _USAGE.match(tail, usage) if usage >= 0 else None
        if counts:
            first, tokens, others = counts.groups()
            prompt, completion = (tokens, others) if first == b"prompt" else (others, tokens)
            self.prompt_tokens += int(prompt)
            self.completion_tokens += int(completion)
        elif usage >= 0:
            self._read_counts(tail[usage : usage + _USAGE_BYTES])
        timings = tail.rfind(b'"timings":{')
        if timings >= 0:
            self._read_timings(dict(_TIMINGS.findall(tail, timings)), counted=usage >= 0)
        return self._since(*before)

    def read_prompt(self, answer_start: bytes) -> tuple[int, int]:
        """Count the prompt tokens at the beginning of a stream in Anthropic's dialect.

        Returns the same as `read_tokens`.
        """
        before = self.prompt_tokens, self.completion_tokens
        usage = answer_start.find(b'"usage":{')
        if usage >= 0:
            self._read_counts(answer_start[usage : usage + _USAGE_BYTES])
        return self._since(*before)

    def _since(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        return self.prompt_tokens - prompt_tokens, self.completion_tokens - completion_tokens

    def _read_counts(self, usage: bytes) -> None:
        counts = dict(_COUNTS.findall(usage.partition(b"}")[0]))
        self.prompt_tokens += sum(int(counts.get(name, 0)) for name in _PROMPT_COUNTS)
        self.completion_tokens += sum(int(counts.get(name, 0)) for name in _ANSWER_COUNTS)

    def _read_timings(self, timings: Mapping[bytes, bytes], *, counted: bool) -> None:
        tokens, seconds = int(timings.get(b"predicted_n", 0)), float(timings.get(b"predicted_ms", 0)) / 1000
        if not counted:
            self.prompt_tokens += int(timings.get(b"prompt_n", 0)) + int(timings.get(b"cache_n", 0))
            self.completion_tokens += tokens
        if tokens and seconds:
            self.generation_s += seconds
            self.tokens_per_s.observe(tokens / seconds)


class RequestCounters:
    """The counters of each model, and those of requests without a served model."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._by_model: defaultdict[str, ModelCounters] = defaultdict(ModelCounters)
        self.nameless = ModelCounters()

    def of(self, model: str) -> ModelCounters:
        """Return the counters of a model, by its name (no alias)."""
        return self._by_model[model]

    def count(self, decision: Decision) -> None:
        """Count a model's unload under its reason, a failure under its cause, and the end of a move."""
        name = decision.model
        if name is None or not (name in self._by_model or name in self._router.names()):
            return
        if (cause := decision.facts.get("cause")) is not None:
            self.of(name).failures[str(cause)] += 1
        if (reason := decision.facts.get("reason")) is not None:
            self.of(name).unloads[str(reason)] += 1
        if (outcome := decision.facts.get("outcome")) is not None:
            self.of(name).moves[str(outcome)] += 1

    def all(self) -> Iterator[tuple[str, ModelCounters]]:
        """Yield the name and counters of each model; the name "" is for requests without a served model."""
        for name in self._router.names():
            self.of(name)
        yield from self._by_model.items()
        yield "", self.nameless
