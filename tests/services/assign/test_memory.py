"""What services need, and what others occupy."""

from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.memory import GpuUse, RunningService, needed_bytes, occupied
from tests.services.assign.service_cases import CLIP, ENRICHMENT, FIVE, LLM, needing


def test_a_budget_replaces_the_need_where_it_can_be_told() -> None:
    assert needed_bytes(ENRICHMENT) == 6963 * MIB
    assert needed_bytes(ENRICHMENT, 3.5) == 3.5 * GIB
    assert needed_bytes(CLIP, 0.5) == 1229 * MIB
    assert needed_bytes(needing("unknown", None)) == 0


def test_on_the_reference_hardware_nothing_on_the_large_card_is_foreign() -> None:
    gpus = [GpuUse(0, 19304 * MIB), GpuUse(1, 329 * MIB)]
    assert occupied(gpus, [RunningService(service) for service in FIVE]) == {0: 0, 1: 329 * MIB}


def test_what_services_cannot_account_for_is_foreign() -> None:
    gpus = [GpuUse(0, 24000 * MIB), GpuUse(1, 329 * MIB)]
    assert occupied(gpus, [RunningService(LLM, 0)])[0] == (24000 - 22221) * MIB


def test_the_schedulers_claims_are_occupied_and_not_the_services() -> None:
    gpu = GpuUse(0, 10000 * MIB, claimed_bytes=8000 * MIB)
    assert occupied([gpu], [RunningService(CLIP, 0)]) == {0: (8000 + 2000 - 1229) * MIB}


def test_claims_count_before_they_are_used_and_where_use_is_unknown() -> None:
    assert occupied([GpuUse(0, 100 * MIB, 8000 * MIB)], []) == {0: 8000 * MIB}
    assert occupied([GpuUse(0, None, 8000 * MIB)], []) == {0: 8000 * MIB}


def test_a_running_budget_bounds_what_is_the_services_own() -> None:
    gpus = [GpuUse(0, 0), GpuUse(1, 3900 * MIB)]
    assert occupied(gpus, [RunningService(ENRICHMENT, 1, 3.5)])[1] == (3900 - 3584) * MIB


def test_no_gpus_are_no_trouble() -> None:
    assert occupied([], [RunningService(CLIP)]) == {}


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 24000)), st.integers(0, 24000)), min_size=1, max_size=4
    ),
    st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=5),
)
def test_occupied_lies_between_the_claims_and_what_is_in_use(
    uses: list[tuple[int | None, int]], pins: list[int | None]
) -> None:
    gpus = [GpuUse(index, used, claimed) for index, (used, claimed) in enumerate(uses)]
    running = [RunningService(service, pin) for service, pin in zip(FIVE, pins, strict=False)]
    found = occupied(gpus, running)
    for gpu in gpus:
        assert gpu.claimed_bytes <= found[gpu.index] <= max(gpu.claimed_bytes, gpu.used_bytes or 0)
