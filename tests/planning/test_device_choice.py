"""Which device a model goes to, among those that it fits on."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.planning.device_choice import choose_devices
from tests.support.models.shapes import gpu


def fit_of(size: int):
    """Lay a model of one piece on the first device with room, or over all if none has."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        usable = [budget for budget in budgets if budget.left_out is None]
        one = next(([budget] for budget in usable if budget.budget_bytes >= size), None)
        chosen = one or (usable if sum(budget.budget_bytes for budget in usable) >= size else [])
        if not chosen:
            return Refusal("model", "it does not fit")
        shares = tuple(Share(b, 0, 0, 1, has_output=True, parts=Parts(weights=size)) for b in chosen)
        return Placement("model", Recipe(), 1, 1, shares, host=Parts())

    return fit


def chosen(size: int, budgets: Sequence[Budget], used: Sequence[int] = (), **how: bool) -> list[int]:
    placed = choose_devices(fit_of(size), budgets, [budgets[index].device.id for index in used], **how)
    return [share.device.index or 0 for share in placed.used_shares] if isinstance(placed, Placement) else []


@pytest.mark.parametrize(
    ("size", "rooms", "used", "devices"),
    [
        (5, [8, 9], [], [0]),  # the first of the unused
        (5, [8, 9], [0], [1]),  # an unused one before a used one
        (5, [8, 6], [0, 1], [1]),  # else the fullest that fits
        (7, [8, 6], [0, 1], [0]),
        (5, [4, 9], [1], [1]),  # an unused one that is too small is passed over
        (10, [8, 9], [], [0, 1]),  # several only where no single one fits
        (20, [8, 9], [], []),
    ],
)
def test_one_device_and_the_best_of_them(
    size: int, rooms: list[int], used: list[int], devices: list[int]
) -> None:
    assert chosen(size, [gpu(i, room) for i, room in enumerate(rooms)], used) == devices


def test_a_model_that_is_better_spread_is_laid_over_all_at_once() -> None:
    calls: list[int] = []

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        calls.append(len(budgets))
        return fit_of(1)(budgets)

    choose_devices(fit, [gpu(0, 8), gpu(1, 8)], (), together=True)
    assert calls == [2]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(1, 20), st.data())
def test_a_left_out_device_is_never_chosen(rooms: list[int], size: int, data: st.DataObject) -> None:
    out = data.draw(st.integers(0, len(rooms) - 1))
    budgets = [gpu(index, room) for index, room in enumerate(rooms)]
    budgets[out] = replace(budgets[out], left_out="lost")
    assert out not in chosen(size, budgets)
