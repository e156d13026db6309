"""How two configurations of services differ, and which containers an apply recreates."""

from collections.abc import Collection, Iterable, Sequence

from cotenant.domain.errors import NothingToRollBack
from cotenant.services.model import (
    ApplyState,
    Assignment,
    Change,
    ContainerState,
    SavedConfiguration,
    Service,
    Strategy,
)


def difference(before: Iterable[Assignment], after: Iterable[Assignment]) -> tuple[Change, ...]:
    """Return the services whose GPU or budget differs, in the order of `after`, then of `before`.

    GPUs are compared by device where both assignments know it, else by index. A missing assignment counts
    as unpinned without a budget.
    """
    old = {assignment.service: assignment for assignment in before}
    new = {assignment.service: assignment for assignment in after}
    return tuple(
        Change(service, old.get(service), new.get(service))
        for service in dict.fromkeys((*new, *old))
        if not same(old.get(service) or Assignment(service), new.get(service) or Assignment(service))
    )


def recreations(
    services: Sequence[Service],
    containers: Sequence[ContainerState],
    after: Iterable[Assignment],
    failed: Collection[str],
) -> tuple[Change, ...]:
    """Return the services whose containers must be recreated to run as in `after`, in their order.

    A container that runs with that assignment is left alone, unless it is unhealthy or the last apply of its
    service `failed`.
    """
    states = {state.service: state for state in containers}
    wanted = {assignment.service: assignment for assignment in after}
    found = []
    for service in services:
        name, new = service.name, wanted.get(service.name)
        state = states.get(name, ContainerState(name))
        differs = not same(state.assignment or Assignment(name), new or Assignment(name))
        reason = _reason(state, failed)
        if differs or reason is not None:
            found.append(Change(name, state.assignment, new, None if differs and state.running else reason))
    return tuple(found)


def _reason(state: ContainerState, failed: Collection[str]) -> str | None:
    if state.container_id is None:
        return "it has no container"
    if not state.running:
        return "its container is not running"
    if state.healthy is False:
        return "its container is unhealthy"
    return "it did not come up in the last apply" if state.service in failed else None


def same(one: Assignment, other: Assignment) -> bool:
    """Whether two assignments of a service name the same GPUs and budget."""
    if one.vram_budget_gb != other.vram_budget_gb or len(one.more) != len(other.more):
        return False
    if all(gpu.device_id is not None for gpu in (*one.gpus, *other.gpus)):
        return {(gpu.device_id, gpu.gpu_index is None) for gpu in one.gpus} == {
            (gpu.device_id, gpu.gpu_index is None) for gpu in other.gpus
        }
    return {*one.indices} == {*other.indices}


def rollback_target(
    history: Sequence[SavedConfiguration], number: int | None, enabled: Sequence[Service]
) -> SavedConfiguration:
    """Return the configuration of a history, newest first, to go back to: `number`, or the last good one.

    Before the first apply nothing was pinned. Raises NothingToRollBack.
    """
    if number is not None:
        for entry in history:
            if entry.number == number:
                return entry
        raise NothingToRollBack(
            f"there is no configuration {number}", hint="`cotenant services history` lists them."
        )
    tried = [entry for entry in history if entry.apply is not None]
    if not tried:
        raise NothingToRollBack("nothing was applied yet", hint="There is nothing to undo.")
    good = [entry for entry in history if entry.apply and entry.apply.state is ApplyState.SUCCEEDED]
    if good and good[0].number == tried[0].number:
        good = [entry for entry in good if difference(good[0].assignments, entry.assignments)]
    if good:
        return good[0]
    unpinned = tuple(Assignment(service.name) for service in enabled)
    return SavedConfiguration(0, 0.0, Strategy.MANUAL, unpinned)
