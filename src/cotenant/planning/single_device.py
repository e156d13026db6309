"""Plans models whose bytes are stated or measured, not computed: on one device, or on none."""

from collections.abc import Mapping, Sequence
from typing import Final

from cotenant.domain.devices import DeviceId, DeviceKind
from cotenant.domain.models import ModelShape, Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share, Shortfall
from cotenant.domain.units import format_bytes
from cotenant.planning.budgets import left_out_warnings

UNKNOWN_SHARE: Final = 0.8
"""The share of a GPU for the first load of a model whose memory is unknown."""


def place_on_one_device(
    name: str, shape: ModelShape, recipe: Recipe, needed_bytes: int | None, budgets: Sequence[Budget]
) -> Placement | Refusal:
    """Place a model on the first device that has room for `needed_bytes`, or return why none has.

    None means unknown: it gets UNKNOWN_SHARE of a GPU. Host RAM is used only if it is the only device.
    """
    usable = [budget for budget in budgets if budget.left_out is None]
    gpus = [budget for budget in usable if budget.device.kind is not DeviceKind.HOST]
    left_out = left_out_warnings(budgets)
    shortfalls = []
    for budget in gpus or usable:
        needed, total = needed_bytes, budget.device.total_bytes
        if needed is None and total is not None and budget.device.kind is not DeviceKind.HOST:
            needed = int(UNKNOWN_SHARE * total)
        if needed is None:
            reason = f"its memory on {budget.device.label} is not known: state it, as `memory: 6GiB`"
            return Refusal(name, reason, warnings=left_out)
        if needed <= budget.budget_bytes:
            parts = {budget.device.id: Parts(weights=needed)}
            return lay_out_whole(name, shape, recipe, budgets, parts, ("weights",), left_out)
        shortfalls.append(Shortfall(budget.device, needed, budget.budget_bytes))
    if not shortfalls:
        return Refusal(name, "there is no device that can be used", warnings=left_out)
    least = min(shortfalls, key=lambda shortfall: shortfall.missing_bytes)
    reason = (
        f"it needs {format_bytes(least.needed_bytes)} on one device and "
        f"{format_bytes(least.budget_bytes)} may be used of {least.device.label}"
    )
    return Refusal(name, reason, tuple(shortfalls), warnings=left_out)


def place_without_memory(name: str, recipe: Recipe) -> Placement:
    """Return the placement of a model that takes no memory of this machine."""
    return Placement(name, recipe, n_layers=0, n_gpu_layers=0, shares=(), host=Parts())


def lay_out_whole(
    name: str,
    shape: ModelShape,
    recipe: Recipe,
    budgets: Sequence[Budget],
    parts: Mapping[DeviceId, Parts],
    estimated: tuple[str, ...],
    warnings: tuple[str, ...],
) -> Placement:
    """Return the placement of a model of which each device of `parts` holds every layer, or a slice of it."""
    # A model whose file was not read counts as one layer: a share without layers counts as unused.
    n_layers = max(1, shape.n_layers)
    count = n_layers + 1 if len(parts) == 1 else 0
    shares = tuple(
        Share(budget, 0, n_layers - 1, count, has_output=True, parts=parts[budget.device.id])
        if budget.device.id in parts
        else Share.unused(budget)
        for budget in budgets
    )
    on_gpu = any(share.used and share.device.kind is not DeviceKind.HOST for share in shares)
    n_gpu_layers = n_layers + 1 if on_gpu else 0
    return Placement(name, recipe, n_layers, n_gpu_layers, shares, Parts(), estimated, warnings)
