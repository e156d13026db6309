"""Host RAM besides GPUs: what a model holds there is planned, claimed and refused."""

from dataclasses import replace

import pytest

from cotenant.domain.devices import HOST_ID, Device, DeviceKind, Inventory, Reading
from cotenant.domain.models import Recipe
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets, host_budget
from cotenant.planning.host_memory import held_bytes
from cotenant.planning.planner import PlanRequest
from tests.support.models.shapes import dense

CARD = Device("GPU-0", DeviceKind.GPU, "card", 0, total_bytes=24 * GIB)  # type: ignore[arg-type]
HOST = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=24 * GIB)
RULES = BudgetRules()


def machine() -> Inventory:
    def alone(device: Device) -> Inventory:
        reading = Reading(device.id, 0.0, free_bytes=device.total_bytes)
        return Inventory(InventorySource.NVML, (device,), {device.id: reading})

    return replace(alone(CARD), host=alone(HOST))


def planned(**recipe: object) -> Placement | Refusal:
    request = PlanRequest("m", dense(40, GIB), Recipe(**recipe))  # type: ignore[arg-type]
    return plan(request, budgets(machine(), RULES), RULES, host_budget(machine(), RULES))


@pytest.mark.parametrize("held", [{"mmap": False}, {"mlock": True}])
def test_what_is_held_in_host_ram_must_fit_there(held: dict[str, bool]) -> None:
    result = planned(n_gpu_layers=0, **held)
    assert isinstance(result, Refusal)
    assert "of host RAM and 23.0 GiB may be used" in result.reason
    assert [shortfall.device for shortfall in result.shortfalls] == [HOST]
    assert "leave --no-mmap and --mlock out" in result.remedies[0].text


def test_mapped_weights_may_exceed_it_with_a_warning_that_says_what_that_costs() -> None:
    result = planned(n_gpu_layers=0)
    assert isinstance(result, Placement)
    assert held_bytes(result) < GIB
    assert "of mapped weights are read from the disk again for every token" in result.warnings[-1]


def test_no_remedy_puts_more_into_host_ram_than_it_has() -> None:
    refused = planned()
    assert isinstance(refused, Refusal)
    assert any("--n-gpu-layers" in remedy.flags for remedy in refused.remedies)
    small = Budget(HOST, 8 * GIB, 7 * GIB)
    request = PlanRequest("m", dense(40, GIB), Recipe())
    refused = plan(request, budgets(machine(), RULES), RULES, small)
    assert isinstance(refused, Refusal)
    assert not any("--n-gpu-layers" in remedy.flags for remedy in refused.remedies)
