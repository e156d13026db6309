"""Plans on described GPUs, carried out by a machine that has none of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cotenant.clock import SystemClock
from cotenant.domain.models import EngineKind
from cotenant.domain.placements import Placement, Refusal
from cotenant.hardware.gpus.host import HostProbe
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.planner import PlanRequest

_UNLIMITED: Final = 1 << 60


def place_on_this_machine(
    request: PlanRequest, placement: Placement, rules: BudgetRules, *, rehearsal: bool = False
) -> Placement | Refusal:
    """Return the placement itself, or one in host RAM where the GPUs of the placement are described ones.

    A `rehearsal` loads nothing, so that no budget limits it. Engines other than llama.cpp are started as
    planned: what they do without the GPUs is theirs to say.
    """
    if request.recipe.engine is not EngineKind.LLAMA_CPP:
        return placement
    if not any(share.device.described for share in placement.used_shares):
        return placement
    recipe = replace(request.recipe, n_gpu_layers=0, tensor_split=(), smart_split=True)
    host = budgets(HostProbe(SystemClock()).inventory(), rules)
    if rehearsal:
        host = tuple(replace(budget, budget_bytes=_UNLIMITED, left_out=None) for budget in host)
    return plan(replace(request, recipe=recipe), host, rules)
