"""Where each model would be placed alone, and how many models fit at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cotenant.config.configuration import ModelEntry
from cotenant.domain.devices import DeviceId, DeviceKind, Inventory
from cotenant.domain.errors import UsageError
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.budgets import BudgetRules, budgets, host_budget
from cotenant.planning.host_memory import held_bytes, on_host
from cotenant.planning.planner import place


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """A model planned on devices without other models. `needed_bytes` is None if it is unknown."""

    model: ModelEntry
    result: Placement | Refusal
    needed_bytes: int | None
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """All models at once against what the devices offer, in bytes.

    `together` fit at the same time; `waiting` fit, but not in addition to those; `nowhere` do not fit even
    alone.
    """

    needed_bytes: int
    offered_bytes: int
    devices: str
    together: tuple[str, ...]
    waiting: tuple[str, ...]
    nowhere: tuple[str, ...]


def plan_alone(model: ModelEntry, inventory: Inventory, rules: BudgetRules) -> ModelOutlook:
    """Plan one model on the memory that is free now, with no other model loaded."""
    result = _place(model, inventory, budgets(inventory, rules), rules, host_budget(inventory, rules))
    if isinstance(result, Placement):
        on_devices = sum(share.parts.total for share in result.used_shares)
        return ModelOutlook(model, result, on_devices or result.host.total, 0)
    needed = sum(shortfall.needed_bytes for shortfall in result.shortfalls) or None
    return ModelOutlook(model, result, needed, sum(each.missing_bytes for each in result.shortfalls))


def peak(models: Sequence[ModelEntry], inventory: Inventory, rules: BudgetRules) -> Peak:
    """Place as many models as fit at the same time: pinned and preloaded ones first, then the largest."""
    alone = {model.name: plan_alone(model, inventory, rules) for model in models}
    left, host = budgets(inventory, rules), host_budget(inventory, rules)
    usable = [budget for budget in left if budget.left_out is None]
    cards = sum(budget.device.kind is not DeviceKind.HOST for budget in usable)
    together: list[str] = []
    waiting: list[str] = []
    nowhere: list[str] = []

    def rank(model: ModelEntry) -> tuple[bool, bool, int]:
        return not model.pinned, not model.preload, -(alone[model.name].needed_bytes or 0)

    for model in sorted(models, key=rank):
        if isinstance(alone[model.name].result, Refusal):
            nowhere.append(model.name)
            continue
        result = _place(model, inventory, left, rules, host)
        if isinstance(result, Placement):
            left = _without(left, result, rules)
            host = host and replace(host, budget_bytes=host.budget_bytes - held_bytes(result))
        (together if isinstance(result, Placement) else waiting).append(model.name)
    return Peak(
        needed_bytes=sum(outlook.needed_bytes or 0 for outlook in alone.values()),
        offered_bytes=sum(budget.budget_bytes for budget in usable),
        devices=f"{cards} GPUs" if cards > 1 else "1 GPU" if cards else "host RAM" if usable else "no device",
        together=tuple(together),
        waiting=tuple(waiting),
        nowhere=tuple(nowhere),
    )


def _place(
    model: ModelEntry, inventory: Inventory, left: Sequence[Budget], rules: BudgetRules, host: Budget | None
) -> Placement | Refusal:
    try:
        allowed = {device.id for device in inventory.select(model.gpus).devices}
        usable = [budget for budget in left if budget.device.id in allowed]
        return on_host(place(model.request, usable, rules), host)
    except UsageError as error:
        return Refusal(model.name, error.message)


def _without(left: Sequence[Budget], placement: Placement, rules: BudgetRules) -> tuple[Budget, ...]:
    taken: dict[DeviceId, int] = {share.device.id: share.parts.total for share in placement.used_shares}
    budgets_left = []
    for budget in left:
        remaining = max(0, budget.budget_bytes - taken.get(budget.device.id, 0))
        full = budget.device.kind is not DeviceKind.HOST and remaining < rules.min_budget_bytes
        left_out = budget.left_out or ("full" if full else None)
        budgets_left.append(replace(budget, budget_bytes=remaining, left_out=left_out))
    return tuple(budgets_left)
