"""What may still be planned on a device: of the claims and the Reading, the worse counts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.residencies import ResidencyId
from cotenant.planning.compute_modes import Admission
from cotenant.planning.ledger import Claim, DeviceReading, Ledger

CARD = Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=100)


def ledger(reading: DeviceReading, *claims: Claim, reserve: int = 0) -> Ledger:
    made = Ledger(reserve)
    made.read([reading])
    for each in claims:
        made.claim(each.residency, each.bytes_by_device)
        if each.shown_at is not None:
            made.show(each.residency, each.shown_at)
    return made


def reading(free: int | None = 100, **facts: object) -> DeviceReading:
    return replace(DeviceReading(CARD, 5.0, 100, free), **facts)  # type: ignore[arg-type]


def claim(size: int, number: int = 1, shown_at: float | None = None) -> Claim:
    return Claim(ResidencyId(number), {CARD.id: size}, shown_at)


@pytest.mark.parametrize(
    ("seen", "claims", "available"),
    [
        (reading(), [], 90),
        (reading(), [claim(30)], 60),  # claimed, and not loaded yet
        (reading(70), [claim(30, shown_at=1.0)], 60),  # loaded before the Reading: counted once
        (reading(70), [claim(30, shown_at=9.0)], 30),  # loaded after it: what others hold and the claim
        (reading(70, foreign_bytes=30), [], 60),
        (reading(40, foreign_bytes=30), [claim(20, shown_at=1.0)], 30),  # the Reading is the worse
        (reading(100, live=False), [claim(30)], 60),  # a described card does not show engines
        (reading(None), [], 0),
        (reading(left_out="lost"), [], 0),
    ],
)
def test_available_bytes(seen: DeviceReading, claims: list[Claim], available: int) -> None:
    assert ledger(seen, *claims, reserve=10).available_bytes(CARD.id) == available


def test_others_that_grow_overcommit_a_device() -> None:
    over = ledger(reading(20, foreign_bytes=60), claim(50), reserve=10).overcommitted()
    assert dict(over) == {CARD.id: 20}


def test_a_device_that_admits_no_further_engine_is_left_out_with_the_reason() -> None:
    full = ledger(reading(admission=Admission(1, "one at a time")), claim(10))
    assert full.engines_to_remove(CARD.id) == 1
    assert [budget.left_out for budget in full.budgets()] == ["one at a time"]
    assert [budget.left_out for budget in full.budgets(leaving={CARD.id: 1})] == [None]
    assert full.budget(CARD.id, any_number=True).left_out is None
    assert list(full.crowded()) == []


def test_a_device_that_is_missing_from_the_readings_is_lost() -> None:
    assert ledger(reading()).read([]) == (CARD.id,)


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 100), st.booleans())
def test_what_is_available_never_exceeds_capacity_less_claims(
    sizes: list[int], free: int, live: bool
) -> None:
    claims = [claim(size, number) for number, size in enumerate(sizes)]
    made = ledger(reading(free, live=live), *claims, reserve=10)
    assert made.available_bytes(CARD.id) <= 90 - sum(sizes)
    (budget,) = made.budgets()
    assert budget.budget_bytes >= 0
