"""Plans for sparse models of real dimensions against what llama.cpp said of the same files."""

import pytest

from cotenant.analysis.footprint import Costs
from cotenant.domain.models import FlashAttention, Parts, Recipe, SplitPolicy
from cotenant.domain.placements import Placement
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest, place
from tests.support.models.draft_truth import DRAFT_TRUTH
from tests.support.models.draft_truth import Told as ToldOfDraft
from tests.support.models.engine_truth import ENGINE_TRUTH, N_CTX, N_UBATCH, Told
from tests.support.models.expert_truth import EXPERT_TRUTH
from tests.support.models.expert_truth import Told as ToldOfExperts
from tests.support.models.real_shapes import real_shape
from tests.support.models.shapes import gpu

_WHOLE_MIB_BOTH_CUT = 1.0
_COMPUTE_OFF_BY_AT_MOST = 0.3


def costs(name: str, setting: str) -> Costs:
    recipe = Recipe(
        n_ctx=N_CTX,
        n_ubatch=N_UBATCH,
        flash_attention=FlashAttention.ON,
        parallel=1 if setting == "one" else 4,
        kv_unified=setting != "four_split",
    )
    return Costs(real_shape(name), recipe)


@pytest.mark.parametrize("setting", ["one", "four_unified", "four_split"])
@pytest.mark.parametrize("name", ENGINE_TRUTH)
def test_a_plan_is_what_the_engine_will_take(name: str, setting: str) -> None:
    told: Told = getattr(ENGINE_TRUTH[name], setting)
    subject = costs(name, setting)
    device: Parts = subject.parts(0, subject.n_units, many=False)
    host = subject.host(many=False)
    assert device.weights // MIB == told.weights
    assert device.kv // MIB == told.kv
    assert host.weights // MIB == told.host_weights
    if subject.compute_estimated:
        off_by = device.compute / MIB - told.compute
        assert abs(off_by) <= max(_COMPUTE_OFF_BY_AT_MOST * told.compute, 8)
    else:
        assert 0 <= told.compute - device.compute / MIB < _WHOLE_MIB_BOTH_CUT
        assert 0 <= told.host_compute - host.compute / MIB < _WHOLE_MIB_BOTH_CUT


@pytest.mark.parametrize("told", EXPERT_TRUTH, ids=lambda t: f"{t.model} {t.n_cpu_moe} {len(t.devices)}")
def test_a_plan_with_experts_in_host_ram_is_what_the_engine_will_take(told: ToldOfExperts) -> None:
    recipe = Recipe(
        n_ctx=N_CTX,
        n_ubatch=N_UBATCH,
        flash_attention=FlashAttention.ON,
        parallel=1 if len(told.devices) == 1 else 4,
        n_cpu_moe=told.n_cpu_moe,
        split_policy=SplitPolicy.BALANCE if len(told.devices) > 1 else SplitPolicy.FILL,
        tensor_split=tuple(map(float, told.tensor_split)) if len(told.devices) > 1 else (),
    )
    cards = [gpu(index, 500 * GIB) for index in range(len(told.devices))]
    plan = place(PlanRequest("m", real_shape(told.model), recipe), cards, BudgetRules())
    assert isinstance(plan, Placement)
    assert plan.tensor_split == told.tensor_split
    found = tuple((share.parts.weights // MIB, share.parts.kv // MIB) for share in plan.shares)
    assert found == told.devices
    assert plan.host.weights // MIB == told.host_weights
    assert plan.host.kv == 0


@pytest.mark.parametrize(
    "told", DRAFT_TRUTH, ids=lambda t: f"{t.model} {t.draft} {t.n_ctx} {t.n_cpu_moe} {len(t.devices)}"
)
def test_a_plan_with_a_draft_is_what_the_engine_will_take(told: ToldOfDraft) -> None:
    recipe = Recipe(
        n_ctx=told.n_ctx,
        n_ubatch=N_UBATCH,
        flash_attention=FlashAttention.ON,
        parallel=told.parallel,
        kv_unified=told.kv_unified,
        n_cpu_moe=told.n_cpu_moe,
        tensor_split=tuple(map(float, told.tensor_split)) if len(told.devices) > 1 else (),
    )
    cards = [gpu(index, 500 * GIB) for index in range(len(told.devices))]
    shape, draft = real_shape(told.model), real_shape(told.draft)
    alone = place(PlanRequest("m", shape, recipe), cards, BudgetRules())
    both = place(PlanRequest("m", shape, recipe, draft=draft), cards, BudgetRules())
    assert isinstance(alone, Placement)
    assert isinstance(both, Placement)
    assert both.tensor_split == told.tensor_split
    found = tuple((share.parts.weights // MIB, share.parts.kv // MIB) for share in alone.shares)
    assert found == told.devices
    assert alone.host.weights // MIB == told.host_weights
    first, *others = both.shares
    before, *others_before = alone.shares
    taken = first.parts.weights - before.parts.weights, first.parts.kv - before.parts.kv
    assert tuple(count // MIB for count in taken) == told.draft_device
    assert [share.parts.weights for share in others] == [share.parts.weights for share in others_before]
    assert (both.host.weights - alone.host.weights) // MIB == told.draft_host_weights
