from dataclasses import replace

import pytest

from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
)
from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import MOST_LAYERS, Recipe, SplitMode
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.compute_modes import alone, default_mode_command, through_mps
from cotenant.planning.planner import PlanRequest, leave_to_engine, place
from tests.support.models.shapes import dense, gpu

RULES = BudgetRules(overhead_bytes=20 * MIB)
CARD = Device(DeviceId("GPU-0"), DeviceKind.GPU, "card", index=0, total_bytes=24 * GIB)


def left_out(mode: ComputeMode, *processes: GpuProcess) -> str | None:
    reading = Reading(CARD.id, 0.0, free_bytes=20 * GIB, compute_mode=mode, processes=processes)
    (budget,) = budgets(Inventory(InventorySource.NVML, (CARD,), {CARD.id: reading}), RULES)
    return budget.left_out


def test_a_prohibited_card_is_left_out_with_what_would_allow_it() -> None:
    assert left_out(ComputeMode.DEFAULT, GpuProcess(7, "game", None)) is None
    assert "`sudo nvidia-smi -i 0 -c DEFAULT`" in (left_out(ComputeMode.PROHIBITED) or "")


def test_an_exclusive_card_is_left_out_while_a_stranger_holds_it() -> None:
    assert left_out(ComputeMode.EXCLUSIVE_PROCESS) is None
    held = left_out(ComputeMode.EXCLUSIVE_PROCESS, GpuProcess(7, "python3", GIB)) or ""
    assert "process 7 (python3) holds it" in held


@pytest.mark.parametrize("name", ["nvidia-cuda-mps-server", "/usr/bin/nvidia-cuda-mps-server"])
def test_an_mps_server_is_there_to_be_shared(name: str) -> None:
    server, its_client = GpuProcess(7, name, 30 * MIB), GpuProcess(5, "python3", GIB)
    assert left_out(ComputeMode.EXCLUSIVE_PROCESS, server) is None
    assert left_out(ComputeMode.EXCLUSIVE_PROCESS, its_client, server) is None


def test_one_engine_alone_is_admitted_with_both_ways_out() -> None:
    admission = alone(CARD, "MPS is off", "set `devices.mps: auto`")
    assert admission.max_engines == 1
    for words in ("Exclusive_Process", "set `devices.mps: auto`", "`sudo nvidia-smi -i 0 -c DEFAULT`"):
        assert words in admission.why


def test_mps_takes_fewer_clients_on_cards_before_volta() -> None:
    assert through_mps(CARD, "g").max_engines == 48
    assert through_mps(replace(CARD, compute_capability=(9, 0)), "g").max_engines == 48
    assert through_mps(replace(CARD, compute_capability=(6, 1)), "g").max_engines == 16


def test_a_card_without_an_index_is_named_by_its_uuid() -> None:
    assert default_mode_command(replace(CARD, index=None)) == "sudo nvidia-smi -i GPU-0 -c DEFAULT"


def test_a_model_is_never_split_over_cards_that_one_process_cannot_see_together() -> None:
    cards = [gpu(0, 600 * MIB), gpu(1, 600 * MIB)]
    request = PlanRequest("m", dense(8, 100 * MIB), Recipe())
    together = place(request, cards, RULES)
    assert isinstance(together, Placement)
    assert len(together.used_shares) == 2
    apart = [replace(cards[0], group="mps"), cards[1]]
    assert isinstance(place(request, apart, RULES), Refusal)
    both = [replace(card, group="mps") for card in cards]
    assert isinstance(place(request, both, RULES), Placement)


def test_a_model_goes_to_the_group_that_can_bear_it() -> None:
    small, *large = gpu(0, 300 * MIB), gpu(1, 700 * MIB), gpu(2, 700 * MIB)
    budgets = [replace(small, group="mps"), *large]
    placed = place(PlanRequest("m", dense(8, 100 * MIB), Recipe()), budgets, RULES)
    assert isinstance(placed, Placement)
    assert {share.device.index for share in placed.used_shares} == {1, 2}


def test_an_engine_that_fits_itself_is_shown_one_group_only() -> None:
    budgets = [replace(gpu(0, 900 * MIB), group="mps"), gpu(1, 900 * MIB)]
    placed = leave_to_engine(
        PlanRequest("m", dense(8, 100 * MIB), Recipe(n_gpu_layers=MOST_LAYERS)), budgets, RULES
    )
    assert isinstance(placed, Placement)
    usable = [share.device.index for share in placed.shares if share.budget.left_out is None]
    assert usable == [0]


def test_an_engine_that_fits_itself_is_planned_within_the_cards_whatever_the_model_takes() -> None:
    cards = [gpu(0, 900 * MIB), gpu(1, 500 * MIB), gpu(2, 10 * MIB)]
    request = PlanRequest("m", dense(8, 1000 * MIB), Recipe())
    placed = leave_to_engine(request, cards, RULES)
    assert isinstance(placed, Placement)
    assert [share.parts.total for share in placed.used_shares] == pytest.approx(
        [card.budget_bytes for card in cards[:2]], abs=10
    )
    assert placed.shares[2].budget.left_out, "there is no room for anything"
    assert (placed.by_engine, placed.tensor_split) == (True, ())
    assert any("left to llama.cpp" in warning for warning in placed.warnings)
    small = leave_to_engine(replace(request, shape=dense(2, MIB)), cards[:1], RULES)
    assert isinstance(small, Placement)
    assert small.used_shares[0].parts.total < 100 * MIB
    assert isinstance(leave_to_engine(request, cards[2:], RULES), Refusal)


def test_what_leaves_the_layout_to_the_engine_does_not_set_it() -> None:
    for recipe, flag in (
        (Recipe(n_gpu_layers=4), "--n-gpu-layers sets"),
        (Recipe(tensor_split=(1, 1), split_mode=SplitMode.ROW), "--tensor-split and --split-mode set "),
        (Recipe(smart_split=False), "--no-smart-split"),
    ):
        with pytest.raises(BadRecipe, match=flag):
            leave_to_engine(PlanRequest("m", dense(8, MIB), recipe), [gpu(0, 900 * MIB)], RULES)


def test_described_cards_are_planned_as_ever_and_it_is_told() -> None:
    described = gpu(0, 900 * MIB)
    described = replace(described, device=replace(described.device, described=True))
    request = PlanRequest("m", dense(8, MIB), Recipe())
    placed = leave_to_engine(request, [described], RULES)
    assert isinstance(placed, Placement)
    assert placed.warnings[-1].startswith("--use-fit-params has no effect")
    assert replace(placed, warnings=()) == place(request, [described], RULES)


def test_where_no_card_can_be_used_the_refusal_says_why_of_each() -> None:
    budgets = [
        replace(gpu(0, 0), left_out="it is lost"),
        replace(gpu(1, 0), left_out="it is lost"),
        replace(gpu(2, 0), left_out="it is busy"),
    ]
    refusal = place(PlanRequest("m", dense(2, MIB), Recipe()), budgets, RULES)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.count("it is lost") == 1
    assert "it is busy" in refusal.reason
