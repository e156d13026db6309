"""Plans as JSON, as docs/design.md §6 defines it, for the command line and the API."""

from collections.abc import Sequence
from dataclasses import asdict

from cotenant.domain.models import Parts
from cotenant.domain.placements import Budget, Placement, Refusal

Json = dict[str, object]


def plan_as_json(result: Placement | Refusal, budgets: Sequence[Budget], n_layers: int) -> Json:
    """Return the documented fields, and `host`, `estimated` and `remedies`. Bytes are integers."""
    if isinstance(result, Placement):
        return {
            "fits": True,
            "model": result.model,
            "n_layers": result.n_layers,
            "n_gpu_layers": result.n_gpu_layers,
            "tensor_split": list(result.tensor_split),
            "devices": [
                _device_as_json(
                    share.budget, share.parts, None if share.first is None else [share.first, share.last]
                )
                for share in result.shares
            ],
            "host": parts_as_json(result.host),
            "estimated": list(result.estimated),
            "warnings": list(result.warnings),
            "refusal": None,
            "remedies": [],
        }
    return {
        "fits": False,
        "model": result.model,
        "n_layers": n_layers,
        "n_gpu_layers": 0,
        "tensor_split": [0] * len(budgets),
        "devices": [_device_as_json(budget, Parts(), None) for budget in budgets],
        "host": None,
        "estimated": [],
        "warnings": list(result.warnings),
        "refusal": result.reason,
        "shortfalls": [
            {
                "uuid": shortfall.device.id,
                "needed_bytes": shortfall.needed_bytes,
                "budget_bytes": shortfall.budget_bytes,
                "missing_bytes": shortfall.missing_bytes,
            }
            for shortfall in result.shortfalls
        ],
        "remedies": [asdict(remedy) for remedy in result.remedies],
    }


def budgets_as_json(budgets: Sequence[Budget]) -> list[Json]:
    """Return what may be planned on each device."""
    return [{**_budget_as_json(budget), "left_out": budget.left_out} for budget in budgets]


def parts_as_json(parts: Parts) -> Json:
    """Return the four parts by name, in bytes."""
    return asdict(parts)


def _budget_as_json(budget: Budget) -> Json:
    return {
        "index": budget.device.index,
        "name": budget.device.name,
        "uuid": budget.device.id,
        "free_bytes": budget.free_bytes,
        "budget_bytes": budget.budget_bytes,
    }


def _device_as_json(budget: Budget, parts: Parts, layers: list[int | None] | None) -> Json:
    planned = {"planned_bytes": parts.total, "layers": layers, "parts": parts_as_json(parts)}
    return {**_budget_as_json(budget), **planned}
