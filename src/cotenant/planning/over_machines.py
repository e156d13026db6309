"""One model over the GPUs of several machines: where that is allowed, and no machine could hold it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.models import ModelShape
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.machines import by_machine
from cotenant.planning.planner import PLANNERS, PlanRequest, place

_F32: Final = 4


def place_over_machines(
    request: PlanRequest, budgets: Sequence[Budget], rules: BudgetRules
) -> Placement | Refusal:
    """Place a model on one machine if it fits there, else over as few as possible.

    The machine with the most room comes first, then the next one: each bears one contiguous range of layers,
    so that a token crosses the network as seldom as can be. The one that bears the most runs the model, of
    those that do not only lend their GPUs.
    """
    alone = place(request, [_left_out(b) if b.lends_only is not None else b for b in budgets], rules)
    if isinstance(alone, Placement) or request.recipe.engine.traits.planning is not PlanMethod.PER_LAYER:
        return alone
    machines = sorted(filter(None, map(_cards, by_machine(budgets))), key=_room, reverse=True)
    first = next((cards for cards in machines if cards[0].lends_only is None), None)
    if first is None:
        return alone
    machines = [first, *(cards for cards in machines if cards is not first)]
    refusal = alone
    for count in range(2, len(machines) + 1):
        found = _place(request, machines[:count], rules)
        if isinstance(found, Refusal):
            reason = f"{alone.reason}; over {count} machines {found.reason}"
            refusal = replace(alone, reason=reason, shortfalls=found.shortfalls)
            continue
        may_lead = [cards[0].device.node for cards in machines[:count] if cards[0].lends_only is None]
        most = _bears_most(found, may_lead)
        if most is None:
            # Those that only lend could hold it without any other.
            continue
        if most != found.node:
            order = sorted(machines[:count], key=lambda cards: cards[0].device.node != most)
            led = _place(request, order, rules)
            found = led if isinstance(led, Placement) else found
        return _described(found, request.shape)
    return refusal


def fits_no_machine(request: PlanRequest, budgets: Sequence[Budget], rules: BudgetRules) -> bool:
    """Whether a model fits none of these machines, even if all that runs there were gone."""
    emptied = [_emptied(budget, rules) for budget in budgets if budget.left_out is None]
    return isinstance(place(request, emptied, rules), Refusal)


def link_bytes(shape: ModelShape, machines: int) -> int:
    """Return the bytes that cross the network for each token that is generated over so many machines.

    The hidden state goes from the first machine to the second; between two others it passes the first one,
    and so crosses twice (`ggml_backend_tensor_copy`, by way of host RAM). The last one returns the logits.
    All are 32 bits wide. The engine adds some KiB for each part: the mask, positions, and at times its graph.
    """
    return _F32 * (shape.n_embd * (1 + 2 * (machines - 2)) + shape.n_vocab)


def _place(
    request: PlanRequest, machines: Sequence[Sequence[Budget]], rules: BudgetRules
) -> Placement | Refusal:
    # What one process can use together is a set of each machine: they are used by a process each.
    joined = [replace(budget, group=None) for cards in machines for budget in cards]
    return PLANNERS[PlanMethod.PER_LAYER](request, joined, rules)


def _cards(machine: Sequence[Budget]) -> list[Budget]:
    """Return the cards of a machine that one process can use together: the set with the most room."""
    sets: dict[str | None, list[Budget]] = {}
    for budget in machine:
        if budget.left_out is None and budget.device.kind is DeviceKind.GPU:
            sets.setdefault(budget.group, []).append(budget)
    return max(sets.values(), key=_room, default=[])


def _room(cards: Sequence[Budget]) -> int:
    return sum(budget.budget_bytes for budget in cards)


def _bears_most(placement: Placement, among: Sequence[str | None]) -> str | None:
    def taken(node: str | None) -> int:
        return sum(share.parts.total for share in placement.on(node).used_shares)

    return max((node for node in placement.nodes if node in among), key=taken, default=None)


def _left_out(budget: Budget) -> Budget:
    return replace(budget, budget_bytes=0, left_out=budget.lends_only)


def _described(placement: Placement, shape: ModelShape) -> Placement:
    placement = replace(placement, link_bytes=link_bytes(shape, len(placement.nodes)))
    return placement.with_warnings(placement.link_text)


def _emptied(budget: Budget, rules: BudgetRules) -> Budget:
    size = budget.device.total_bytes
    if size is None:
        return budget
    room = size - budget.device.reserve(rules.reserve_bytes)
    return replace(budget, free_bytes=size, budget_bytes=max(room, budget.budget_bytes))
