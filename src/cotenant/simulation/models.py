"""Requests with their outcomes, and simulated models: planned and actual memory, load times and speeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.residencies import RefusalCode
from cotenant.domain.units import format_bytes
from cotenant.planning.device_needs import Fit

_DECODE_EFFICIENCY: Final = 0.6
_PREFILL_PER_DECODE: Final = 30.0


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


class Outcome(StrEnum):
    """How a request ends."""

    SERVED = "served"
    BROKEN = "broken"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    LEFT = "left"


@dataclass(slots=True)
class Client:
    """A request and its outcome; instants are virtual time. `then` is what its sender does after it."""

    request: Request
    deadline: float
    then: Callable[[], None] = field(default=lambda: None, repr=False)
    granted_at: float | None = None
    outcome: Outcome | None = None
    refusal: RefusalCode | None = None
    retry_after_s: float | None = None


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile `share` of an ordered sequence; 0 for an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model; `pieces` are the planned bytes, one entry per device.

    `truth` is actual over planned memory. `load_s` is the median load time; rates are tokens per second of
    one request.
    """

    name: str
    pieces: tuple[int, ...]
    load_s: float
    prefill_per_s: float = 2000.0
    decode_per_s: float = 60.0
    slots: int = 4
    truth: float = 1.0

    @property
    def bytes(self) -> int:
        """The planned bytes on all devices."""
        return sum(self.pieces)

    def service_s(self, request: Request) -> float:
        """Return how long a request takes once granted: as measured, else computed from its tokens."""
        if request.service_s is not None:
            return request.service_s
        return request.prompt_tokens / self.prefill_per_s + request.output_tokens / self.decode_per_s


def speed_of(
    size: int, card_bytes_per_s: int | None = None, decode_per_s: float | None = None
) -> tuple[float, float]:
    """Estimate the tokens per second, of prompts and of answers, of one request to a model of this size.

    Every token reads the whole model once, at the card's bandwidth; an unknown one counts as 900 GB/s.
    Answers have at most 200 tokens per second.
    """
    if decode_per_s is None:
        read_per_s = _DECODE_EFFICIENCY * (card_bytes_per_s or 900e9)
        decode_per_s = min(200.0, read_per_s / max(1, size))
    return decode_per_s * _PREFILL_PER_DECODE, decode_per_s


def fit_size(name: str, size: int) -> Fit:
    """Return a plan by size alone: it fills each device before the next."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        shares: list[Share] = []
        left = size
        for budget in budgets:
            part = min(left, budget.budget_bytes) if budget.left_out is None else 0
            if part > 0:
                layer = len(shares)
                shares.append(Share(budget, layer, layer, 1, has_output=False, parts=Parts(weights=part)))
                left -= part
        if left:
            room = format_bytes(size - left)
            return Refusal(name, f"{name} needs {format_bytes(size)}, and there is room for {room}")
        return Placement(name, Recipe(), len(shares), len(shares), tuple(shares), host=Parts())

    return fit
