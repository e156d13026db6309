"""One apply from start to end: it recreates services, and rolls back if one does not come up."""

import asyncio
from collections.abc import Mapping, Sequence

from cotenant.domain.errors import CotenantError
from cotenant.services.compose.apply_progress import ApplyProgress
from cotenant.services.compose.order import Move, ordered
from cotenant.services.compose.recreate import ApplyTools, RecreationPass
from cotenant.services.model import ApplyOrder, ApplyState, ApplyStatus, Assignment, OnFailure, ProgressState


async def run_apply(order: ApplyOrder, tools: ApplyTools, progress: ApplyProgress) -> ApplyStatus:
    """Recreate the changed services; restore the previous ones if one fails and the order says so."""
    services = {service.name: service for service in order.changed}
    rollback = order.on_failure is OnFailure.ROLLBACK
    forward = RecreationPass(tools, progress, services, order.after, stop_waiting_on_failure=rollback)
    await forward.run(ordered(_moves(order, services, order.before, order.after)))
    if not forward.failures:
        return await progress.set_state(ApplyState.SUCCEEDED, _success_text(list(services)))
    if rollback:
        return await _roll_back(order, tools, progress, forward)
    untouched = [name for name in services if name not in forward.attempted]
    rest = f" {_were(untouched)} not touched." if untouched else ""
    return await progress.set_state(ApplyState.FAILED, _failures_text(forward.failures) + rest)


async def _roll_back(
    order: ApplyOrder, tools: ApplyTools, progress: ApplyProgress, forward: RecreationPass
) -> ApplyStatus:
    reason = _failures_text(forward.failures)
    await progress.set_state(ApplyState.ROLLING_BACK, reason)
    try:
        await asyncio.to_thread(tools.generated.restore, order.restore_number)
    except CotenantError as error:
        return await progress.set_state(
            ApplyState.FAILED, f"{reason} The previous files cannot be restored: {error.message}."
        )
    services = {service.name: service for service in order.changed if service.name in forward.attempted}
    back = RecreationPass(tools, progress, services, order.before, continue_on_failure=True)
    await back.run(ordered(_moves(order, services, order.after, order.before)))
    for name, why in forward.failures.items():
        if name not in back.failures:
            await progress.set_service_state(
                name, ProgressState.HEALTHY, message=f"it was restored, because {why}"
            )
    if back.failures:
        return await progress.set_state(
            ApplyState.FAILED, f"{reason} Going back failed too: {_failures_text(back.failures)}"
        )
    return await progress.set_state(ApplyState.ROLLED_BACK, f"{reason} {_were(list(services))} restored.")


def _moves(
    order: ApplyOrder,
    names: Mapping[str, object],
    before: Mapping[str, Assignment],
    after: Mapping[str, Assignment],
) -> list[Move]:
    return [
        Move(service.name, before.get(service.name), after.get(service.name), service.latency_critical)
        for service in order.changed
        if service.name in names
    ]


def _success_text(names: Sequence[str]) -> str:
    return f"{_were(names)} recreated." if names else "Nothing had to be recreated."


def _failures_text(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name} did not come up: {why.rstrip('.')}" for name, why in failures.items()) + "."


def _were(names: Sequence[str]) -> str:
    *most, last = names
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{listed} {'were' if most else 'was'}"
