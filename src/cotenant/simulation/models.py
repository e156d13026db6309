"""Simulated models: planned and actual memory, load times and speeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.units import format_bytes
from cotenant.planning.device_choice import Fit
from cotenant.simulation.workload import Request

_CARD_BYTES_PER_S: Final = 900e9
_DECODE_EFFICIENCY: Final = 0.6
_FASTEST_PER_S: Final = 200.0
_PREFILL_PER_DECODE: Final = 30.0


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


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one request."""

    prefill_per_s: float
    decode_per_s: float


def speed_of(size: int, card_bytes_per_s: int | None = None, decode_per_s: float | None = None) -> Speed:
    """Estimate the speed of a model of this size on a card of this memory bandwidth.

    Every token reads the whole model once. An unknown bandwidth counts as 900 GB/s.
    """
    if decode_per_s is None:
        read_per_s = _DECODE_EFFICIENCY * (card_bytes_per_s or _CARD_BYTES_PER_S)
        decode_per_s = min(_FASTEST_PER_S, read_per_s / max(1, size))
    return Speed(decode_per_s * _PREFILL_PER_DECODE, decode_per_s)


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
