"""One apply, from its order to its end: forward, and back if a service does not come up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from cotenant.domain.errors import CotenantError
from cotenant.services.compose.apply_progress import Progress
from cotenant.services.compose.order import Move, ordered
from cotenant.services.compose.recreate import Recreation, Resolve, Tools
from cotenant.services.model import ApplyOrder, ApplyState, ApplyStatus, Assignment, OnFailure, ProgressState


async def carry_out(order: ApplyOrder, tools: Tools, progress: Progress) -> ApplyStatus:
    """Recreate the changed services; put them back as they were if one fails and the order says so."""
    services = {service.name: service for service in order.changed}
    rollback = order.on_failure is OnFailure.ROLLBACK
    forward = Recreation(tools, progress, services, order.after, Resolve(abandon=rollback))
    await forward.carry_out(ordered(_moves(order, services, order.before, order.after)))
    if not forward.failures:
        return await progress.become(ApplyState.SUCCEEDED, _done(list(services)))
    if rollback:
        return await _roll_back(order, tools, progress, forward)
    untouched = [name for name in services if name not in forward.attempted]
    rest = f" {_were(untouched)} not touched." if untouched else ""
    return await progress.become(ApplyState.FAILED, _blame(forward.failures) + rest)


async def _roll_back(order: ApplyOrder, tools: Tools, progress: Progress, forward: Recreation) -> ApplyStatus:
    blame = _blame(forward.failures)
    await progress.become(ApplyState.ROLLING_BACK, blame)
    try:
        await asyncio.to_thread(tools.generated.restore, order.restore_number)
    except CotenantError as error:
        return await progress.become(
            ApplyState.FAILED, f"{blame} The files before cannot be put back: {error.message}."
        )
    services = {service.name: service for service in order.changed if service.name in forward.attempted}
    back = Recreation(tools, progress, services, order.before, Resolve(persist=True))
    await back.carry_out(ordered(_moves(order, services, order.after, order.before)))
    for name, why in forward.failures.items():
        if name not in back.failures:
            await progress.step(name, ProgressState.HEALTHY, message=f"it is back as before, because {why}")
    if back.failures:
        return await progress.become(
            ApplyState.FAILED, f"{blame} Going back failed too: {_blame(back.failures)}"
        )
    return await progress.become(
        ApplyState.ROLLED_BACK, f"{blame} {_were(list(services))} put back as before."
    )


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


def _done(names: Sequence[str]) -> str:
    return f"{_were(names)} recreated." if names else "Nothing had to be recreated."


def _blame(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name} did not come up: {why.rstrip('.')}" for name, why in failures.items()) + "."


def _were(names: Sequence[str]) -> str:
    *most, last = names
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{listed} {'were' if most else 'was'}"
