"""Which budgets stay, which are computed anew, and what the database says of a choice by hand."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.errors import BadAssignment
from cotenant.services.assign.fallback import fall_back
from cotenant.services.model import Assignment, AssignmentPlan, Strategy
from tests.services.assign.service_cases import A400, A5500, CLIP, ENRICHMENT, FIVE, LLM, gpu, on
from tests.services.test_operator import Setting, setting


def budget(plan: AssignmentPlan) -> float | None:
    return next(each.vram_budget_gb for each in plan.assignments if each.service == "ai-enrichment")


async def moved(at: Setting, service: str, gpu_index: int) -> AssignmentPlan:
    """Save what was shown, with one service on another GPU, as clients do that know no more than the API."""
    saved = (await at.services.view()).saved
    assert saved is not None
    shown = [
        Assignment(each.service, each.gpu_index, None, each.vram_budget_gb)
        for each in saved.assignments
        if each.service != service
    ]
    return await at.services.save(Strategy.MANUAL, [*shown, Assignment(service, gpu_index)])


async def test_an_automatic_budget_follows_what_is_on_its_gpu(tmp_path: Path):
    async with setting(tmp_path) as at:
        at.cards = "RTX A5500:24564,RTX A400:4094:329"
        await at.services.save(Strategy.MANUAL, [Assignment("ai-llm", 0), Assignment("ai-enrichment", 1)])
        assert budget(await moved(at, "ai-clip", 1)) == 2.3
        at.services = at.anew()
        assert budget(await moved(at, "ai-florence", 1)) == 0.8
        await moved(at, "ai-clip", 0)
        assert budget(await moved(at, "ai-florence", 0)) == 3.5
        assert budget(await moved(at, "ai-llm", 1)) is None


async def test_a_budget_by_hand_stays(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, [Assignment("ai-enrichment", 1, vram_budget_gb=3.4)])
        assert budget(await moved(at, "ai-clip", 1)) == 3.4


async def test_a_budget_that_nothing_could_pass_on_is_refused(tmp_path: Path):
    async with setting(tmp_path) as at:
        with pytest.raises(BadAssignment, match="ai-clip has no variable") as refused:
            await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", 0, vram_budget_gb=1.0)])
        assert refused.value.field == "assignments[0].vram_budget_override"


def test_a_fallback_keeps_the_budget_by_hand_and_computes_the_others_anew():
    by_hand, automatic = on(ENRICHMENT, A400, 2.5), replace(on(ENRICHMENT, A400, 3.5), budget_auto=True)
    tight = gpu(0, 24564, 22000)
    for before, after in ((by_hand, 2.5), (automatic, 2.3)):
        (found,), _ = fall_back([before], FIVE, [tight])
        assert (found.gpu_index, found.vram_budget_gb) == (0, after)
        (unpinned,), _ = fall_back([before], FIVE, [])
        assert unpinned.vram_budget_gb == (2.5 if before is by_hand else None)


def test_a_service_that_arrives_by_fallback_takes_from_the_automatic_budgets_there():
    there = replace(on(ENRICHMENT, A400, 3.5), budget_auto=True)
    found, _ = fall_back([there, on(CLIP, A5500)], FIVE, [A400])
    assert [each.vram_budget_gb for each in found] == [2.3, None]


@pytest.mark.parametrize("strategy", [each for each in Strategy if each is not Strategy.MANUAL])
async def test_a_strategy_saved_while_no_gpu_is_seen_keeps_the_pins(tmp_path: Path, strategy: Strategy):
    async with setting(tmp_path) as at:
        before = (await at.services.save(Strategy.VRAM_BASED, ())).assignments
        machine, at.cards = at.cards, None
        await at.services.save(strategy, ())
        at.cards = machine
        await at.services.detect()
        saved = (await at.services.view()).saved
        assert saved is not None
        assert saved.assignments == before


async def test_the_database_says_which_services_are_set_by_hand_and_what_the_strategy_is(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.VRAM_BASED, [Assignment("ai-clip", 1)])
        assert await at.store.services.settings() == {"gpu_assignment_strategy": {"default": "vram_based"}}
        with contextlib.closing(sqlite3.connect(tmp_path / "cotenant.db")) as database:
            stored = dict(database.execute("SELECT service_name, strategy FROM gpu_configurations"))
        assert stored.pop("ai-clip") == "manual"
        assert set(stored.values()) == {"vram_based"}
        assert LLM.name in stored
