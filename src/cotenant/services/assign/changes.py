"""How two configurations of services differ."""

from collections.abc import Iterable

from cotenant.services.model import Assignment, Change


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


def same(one: Assignment, other: Assignment) -> bool:
    """Whether two assignments of a service name the same GPU and budget."""
    if one.vram_budget_gb != other.vram_budget_gb:
        return False
    if one.device_id is not None and other.device_id is not None:
        pinned = one.gpu_index is not None
        return one.device_id == other.device_id and pinned == (other.gpu_index is not None)
    return one.gpu_index == other.gpu_index
