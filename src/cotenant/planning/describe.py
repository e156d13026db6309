"""Plans as JSON, as docs/design.md §6 defines it, for the command line and the API."""

from collections.abc import Sequence
from dataclasses import asdict

from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share

Json = dict[str, object]


def plan_as_json(result: Placement | Refusal, budgets: Sequence[Budget], n_layers: int) -> Json:
    """Return the documented fields, and `host`, `estimated` and `remedies`. Bytes are integers.

    Devices of other machines than the model's follow those of its own.
    """
    laid_out, outcome = result, Json(refusal=None, remedies=[])
    if isinstance(laid_out, Refusal):
        shortfalls = [
            {
                "uuid": shortfall.device.id,
                "needed_bytes": shortfall.needed_bytes,
                "budget_bytes": shortfall.budget_bytes,
                "missing_bytes": shortfall.missing_bytes,
            }
            for shortfall in laid_out.shortfalls
        ]
        remedies = [asdict(remedy) for remedy in laid_out.remedies]
        outcome = {"refusal": laid_out.reason, "shortfalls": shortfalls, "remedies": remedies}
        unused = tuple(Share.unused(budget) for budget in budgets)
        laid_out = Placement(result.model, Recipe(), n_layers, 0, unused, Parts(), (), result.warnings)
    planned = {share.device.id for share in laid_out.shares}
    others = [Share.unused(budget) for budget in budgets if budget.device.id not in planned]
    return {
        "fits": isinstance(result, Placement),
        "model": result.model,
        "n_layers": laid_out.n_layers,
        "n_gpu_layers": laid_out.n_gpu_layers,
        "n_cpu_moe": laid_out.recipe.n_cpu_moe,
        "tensor_split": list(laid_out.tensor_split),
        "devices": [
            {
                **_budget_as_json(share.budget),
                "planned_bytes": share.parts.total,
                "layers": None if share.first is None or laid_out.by_engine else [share.first, share.last],
                "parts": parts_as_json(share.parts),
            }
            for share in (*laid_out.shares, *others)
        ],
        "host": parts_as_json(laid_out.host) if isinstance(result, Placement) else None,
        "estimated": list(laid_out.estimated),
        "warnings": list(laid_out.warnings),
        **outcome,
    }


def budgets_as_json(budgets: Sequence[Budget]) -> list[Json]:
    """Return what may be planned on each device."""
    return [{**_budget_as_json(budget), "left_out": budget.left_out} for budget in budgets]


def parts_as_json(parts: Parts) -> Json:
    """Return the four parts by name, in bytes."""
    return asdict(parts)


def _budget_as_json(budget: Budget) -> Json:
    device, sizes = budget.device, {"free_bytes": budget.free_bytes, "budget_bytes": budget.budget_bytes}
    node = {"node": device.node} if device.node else {}
    return {"index": device.index, "name": device.own_name, "uuid": device.id, **node, **sizes}
