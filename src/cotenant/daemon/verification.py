"""Compares a plan with the engine's own calculation, without loading."""

from pathlib import Path

from cotenant.analysis.calibration import Comparison, compare
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.domain.placements import Placement
from cotenant.engines.launch.plan import visible_devices
from cotenant.engines.llama_cpp.builds import choose, discover
from cotenant.engines.llama_cpp.rehearsal import rehearse
from cotenant.interfaces import EngineOrder
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest


def verify(
    request: PlanRequest,
    placement: Placement,
    rules: BudgetRules,
    model_path: Path,
    llama_server: Path | None,
) -> tuple[tuple[Comparison, ...], str]:
    """Return planned against rehearsed bytes per device, and the engine's version.

    Described GPUs cannot be rehearsed: the comparison is then of the same model in host RAM. The projector is
    left out on both sides. Raises EngineError.
    """
    running = place_on_this_machine(request, placement, rules, rehearsal=True)
    if not isinstance(running, Placement):
        raise AssertionError(f"a rehearsal needs no memory, yet was refused: {running.reason}")
    order = EngineOrder(request.name, model_path, request.shape.kind, running)
    build = choose(discover(llama_server), visible_devices(order))
    report = rehearse(build, order)
    return compare(running, report), f"{build.form} {build.version}"
