"""A request of a log or of a generator."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its arrival `at`, in seconds from the start, and its tokens.

    `service_s` is its service time, None to compute it from the tokens. `patience_s` is its longest wait,
    None for the default; `keep_alive_s` and `priority` are its own settings, None if it has none.
    `waited_s` is how long it waited when it was recorded, None if unknown.
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


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile `share` of an ordered sequence; 0 for an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
