"""The rule by which services are told to use less."""

from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.memory import adjusted_budgets, needed_bytes
from cotenant.services.model import Service, ServiceDevice
from tests.services.assign.service_cases import (
    A400,
    A5500,
    CLIP,
    ENRICHMENT,
    LLM,
    gpu,
    gpus,
    needing,
    service_lists,
)


def test_the_reference_card_leaves_three_and_a_half() -> None:
    assert adjusted_budgets(A400, [(ENRICHMENT, None)]) == {"ai-enrichment": 3.5}


def test_other_services_are_taken_off() -> None:
    assert adjusted_budgets(A5500, [(LLM, None), (ENRICHMENT, None)]) == {"ai-enrichment": 2.1}


def test_what_fits_is_told_nothing() -> None:
    assert adjusted_budgets(A5500, [(ENRICHMENT, None), (CLIP, None)]) == {}


def test_a_given_budget_stands() -> None:
    assert adjusted_budgets(A400, [(ENRICHMENT, 6.8)]) == {}


def test_a_service_without_a_budget_variable_cannot_be_told() -> None:
    assert adjusted_budgets(A400, [(LLM, None)]) == {}


def test_less_than_a_tenth_is_no_budget() -> None:
    left = gpu(0, 4094, 4094 - 128 - 103)
    assert adjusted_budgets(left, [(ENRICHMENT, None)]) == {"ai-enrichment": 0.1}
    less = gpu(0, 4094, 4094 - 128 - 102)
    assert adjusted_budgets(less, [(ENRICHMENT, None)]) == {}


def test_two_services_are_cut_by_the_same_share() -> None:
    a, b = (needing(name, mib, budget_env="BUDGET") for name, mib in (("a", 8192), ("b", 4096)))
    found = adjusted_budgets(gpu(0, 9 * 1024 + 128), [(a, None), (b, None)])
    assert found == {"a": 6.0, "b": 3.0}


def test_a_service_that_needs_nothing_is_told_nothing_on_a_full_card() -> None:
    assert adjusted_budgets(gpu(0, 4094, 5000), [(needing("none", 0, budget_env="BUDGET"), None)]) == {}


@given(service_lists(enabled=True), gpus(most=1), st.data())
def test_budgets_never_exceed_what_is_there(
    services: tuple[Service, ...], devices: tuple[ServiceDevice, ...], data: st.DataObject
) -> None:
    (device,) = devices
    placed = [(service, data.draw(st.sampled_from([None, 0.5]))) for service in services]
    found = adjusted_budgets(device, placed)
    others = sum(
        needed_bytes(service, given)
        for service, given in placed
        if not (service.budget_env and given is None)
    )
    if found:
        told = sum(budget * GIB for budget in found.values())
        assert told + others + device.occupied_bytes + 128 * MIB <= device.total_bytes
