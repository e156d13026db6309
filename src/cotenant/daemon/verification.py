"""Compares a plan with the engine's own calculation, without loading."""

from dataclasses import replace
from pathlib import Path

from cotenant.analysis.calibration import Comparison, compare
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.domain.engines import Companions
from cotenant.domain.models import Parts, Projector
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
    files: tuple[Path, Companions],
    llama_server: Path | None,
) -> tuple[tuple[Comparison, ...], str]:
    """Return planned against rehearsed bytes per device, and the engine's version.

    `files` are the model's own and its companions. Described GPUs cannot be rehearsed: the comparison is then
    of the same model in host RAM. The projector is left out on both sides. Raises EngineError.
    """
    plain = replace(request, projector=None)
    running = place_on_this_machine(plain, _without(placement, request.projector), rules, rehearsal=True)
    if not isinstance(running, Placement):
        raise AssertionError(f"a rehearsal needs no memory, yet was refused: {running.reason}")
    model_path, companions = files
    order = EngineOrder(request.name, model_path, request.shape.kind, running, companions=companions)
    build = choose(discover(llama_server), visible_devices(order))
    report = rehearse(build, order)
    return compare(running, report), f"{build.form} {build.version}"


def _without(placement: Placement, projector: Projector | None) -> Placement:
    """Return a placement without the projector, which is on its first device."""
    taken = projector.parts(placement.recipe) if projector else Parts()
    shares = list(placement.shares)

    def rest(parts: Parts) -> Parts:
        return replace(parts, weights=parts.weights - taken.weights, compute=parts.compute - taken.compute)

    first = next((place for place, share in enumerate(shares) if share.used), None)
    if first is None:
        return replace(placement, host=rest(placement.host))
    shares[first] = replace(shares[first], parts=rest(shares[first].parts))
    return replace(placement, shares=tuple(shares))
