"""Models as the simulator knows them: what is planned for them, and what is true of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.units import format_bytes
from cotenant.planning.device_choice import Fit
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.simulation.workload import Request

_GB: Final = 10**9
_SIZES_GB: Final = (1.4, 2.4, 3.5, 5.6, 6.1, 8.6, 9.8, 13.5, 18.5, 21.5)
"""1B to 32B parameters at 4 to 8 bits, with a context of some thousand tokens."""
_CARD_BYTES_PER_S: Final = 900e9
_DECODE_EFFICIENCY: Final = 0.6
_FASTEST_PER_S: Final = 200.0
_PREFILL_PER_DECODE: Final = 30.0
_START_S: Final = 2.0
_SLOTS: Final = 16


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model: `pieces` are the bytes planned, one entry per device that it lies on.

    `truth` is what it takes over what is planned. `load_s` is the median load time; rates are tokens per
    second of one request.
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
        """What is planned for it on all devices."""
        return sum(self.pieces)

    def service_s(self, request: Request) -> float:
        """Return how long a request takes once it is granted: as was measured, else by its tokens."""
        if request.service_s is not None:
            return request.service_s
        return request.prompt_tokens / self.prefill_per_s + request.output_tokens / self.decode_per_s

    def spec(
        self, *, keep_alive_s: float | None = None, pinned: bool = False, whole_card: bool = False
    ) -> ModelSpec:
        """Return it as the scheduler sees it; with `whole_card` it shares its card with nobody."""
        fit = fit_whole_card(self.name, self.pieces[0]) if whole_card else fit_pieces(self.name, self.pieces)
        return ModelSpec(
            self.name, fit, slots=self.slots, keep_alive_s=keep_alive_s, pinned=pinned, load_s=self.load_s
        )


def draw_models(names: Sequence[str], dice: Random, *, largest_bytes: int) -> tuple[SimulatedModel, ...]:
    """Draw sizes and load times: the file is read at 0.5 to 3 GB/s, and an engine starts in two seconds.

    Decoding is bound by the bandwidth of a card of 900 GB/s, as single streams are.
    """
    sizes = [size for size in _SIZES_GB if size * _GB <= largest_bytes]
    models = []
    for name in names:
        size = round(dice.choice(sizes) * dice.uniform(0.85, 1.15) * _GB)
        size = min(size, largest_bytes)
        read_per_s = math.exp(dice.uniform(math.log(0.5e9), math.log(3e9)))
        speed = speed_of(size)
        models.append(
            SimulatedModel(
                name,
                (size,),
                load_s=_START_S + size / read_per_s,
                prefill_per_s=speed.prefill_per_s,
                decode_per_s=speed.decode_per_s,
                slots=_SLOTS,
            )
        )
    return tuple(models)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one request."""

    prefill_per_s: float
    decode_per_s: float


def speed_of(size: int, card_bytes_per_s: int | None = None, decode_per_s: float | None = None) -> Speed:
    """Reckon how fast a model of so many bytes is on a card whose memory is so fast.

    Every token reads the whole model once. What is not known is that of a card of 900 GB/s.
    """
    if decode_per_s is None:
        read_per_s = _DECODE_EFFICIENCY * (card_bytes_per_s or _CARD_BYTES_PER_S)
        decode_per_s = min(_FASTEST_PER_S, read_per_s / max(1, size))
    return Speed(decode_per_s * _PREFILL_PER_DECODE, decode_per_s)


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


def fit_size(name: str, size: int) -> Fit:
    """Lay a model of which only the size is known over the devices given, each filled before the next."""

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
