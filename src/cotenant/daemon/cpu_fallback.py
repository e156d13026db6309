"""Runs plans for described GPUs on a machine that does not have them."""

from dataclasses import replace
from typing import Final

from cotenant.clock import SystemClock
from cotenant.domain.devices import Inventory
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.placements import Placement, Refusal
from cotenant.hardware.gpus.host import HostProbe
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.planner import PlanRequest

_UNLIMITED: Final = 1 << 60


def place_on_this_machine(
    request: PlanRequest,
    placement: Placement,
    rules: BudgetRules,
    *,
    rehearsal: bool = False,
    ram: Inventory | None = None,
) -> Placement | Refusal:
    """Return the placement itself, or one in host RAM if its GPUs are described ones.

    A `rehearsal` loads nothing, so no budget limits it. Engines that are not planned per layer are started
    as planned: they decide themselves what to do without the GPUs. So are those over several machines.
    `ram` is the host RAM of another machine.
    """
    if request.recipe.engine.traits.planning is not PlanMethod.PER_LAYER:
        return placement
    over_machines = len(placement.nodes) > 1
    if over_machines or not any(share.device.described for share in placement.used_shares):
        return placement
    recipe = replace(request.recipe, n_gpu_layers=0, n_cpu_moe=0, tensor_split=(), smart_split=True)
    host = budgets(ram or HostProbe(SystemClock()).inventory(), rules)
    if rehearsal:
        host = tuple(replace(budget, budget_bytes=_UNLIMITED, left_out=None) for budget in host)
    return plan(replace(request, recipe=recipe), host, rules)
