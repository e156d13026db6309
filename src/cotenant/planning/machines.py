"""Machines: no model is placed over devices of two of them."""

from collections.abc import Callable, Sequence

from cotenant.domain.placements import Budget, Placement, Refusal


def by_machine(budgets: Sequence[Budget]) -> list[list[Budget]]:
    """Return the budgets of each machine, in planned order."""
    found: dict[str | None, list[Budget]] = {}
    for budget in budgets:
        found.setdefault(budget.device.node, []).append(budget)
    return [*found.values()]


def more_on_gpus(best: Placement | None, other: Placement) -> Placement:
    """Return the Placement with more layers on GPUs, or with more of their experts; the first of equals."""
    return other if best is None or _on_gpus(other) > _on_gpus(best) else best


def _on_gpus(placement: Placement) -> tuple[int, int]:
    return placement.n_gpu_layers, -int(placement.recipe.n_cpu_moe)


def place_on_a_machine(
    budgets: Sequence[Budget], place: Callable[[Sequence[Budget]], Placement | Refusal], *, most: bool = False
) -> Placement | Refusal:
    """Return the first Placement on the devices of one machine, or the Refusal of the nearest one.

    With `most` it is the one with the most layers on GPUs.
    """
    machines = by_machine(budgets)
    if len(machines) < 2:
        return place(budgets)
    best: Placement | None = None
    refusals: list[tuple[int, str | None, Refusal]] = []
    for members in machines:
        found = place(members)
        if isinstance(found, Placement):
            best = more_on_gpus(best, found)
            if best.all_on_gpus or not most:
                return best
            continue
        missing = sum(each.missing_bytes for each in found.shortfalls)
        refusals.append((missing, members[0].device.node, found))
    if best is not None:
        return best
    _, node, nearest = min(refusals, key=lambda each: (not each[2].shortfalls, each[0]))
    reason = f"of {len(machines)} machines {node or 'this one'} is nearest: {nearest.reason}"
    return Refusal(nearest.model, reason, nearest.shortfalls, nearest.remedies, nearest.warnings)
