"""The state of an apply that its daemon did not finish, derived from the containers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cotenant.services.compose.apply_progress import ApplyRecord
from cotenant.services.compose.assignment_text import same_assignment
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    ContainerState,
    ProgressState,
    ServiceProgress,
)


def interrupted(
    record: ApplyRecord, containers: Sequence[ContainerState] | None, *, command_running: bool, at: float
) -> ApplyStatus:
    """Return the apply by the state of its containers; these are None if no engine answers.

    `command_running` says that the compose command of that run has not ended. `at` is Unix seconds.
    """
    found = None if containers is None else {each.service: each for each in containers}
    services = tuple(_seen(each, record, found, command_running) for each in record.status.services)
    details = [f"{each.service}: {each.message}" for each in services]
    advice = "Wait for it, then check again" if command_running else "Apply again to finish, or roll back"
    return replace(
        record.status,
        state=ApplyState.INTERRUPTED,
        finished_at=record.status.finished_at or at,
        services=services,
        message=(
            f"The daemon ended while configuration {record.status.number} was applied. "
            f"{'; '.join(details)}{'. ' if details else ''}{advice}."
        ),
    )


def _seen(
    progress: ServiceProgress,
    record: ApplyRecord,
    found: Mapping[str, ContainerState] | None,
    command_running: bool,
) -> ServiceProgress:
    if found is None:
        return replace(progress, message="no container engine answers, so its state is unknown")
    name = progress.service
    container = found.get(name, ContainerState(name))
    before, after = record.before.get(name), record.after.get(name)
    if not container.running:
        doing = command_running and progress.state is ProgressState.RECREATING
        state = ProgressState.RECREATING if doing else ProgressState.FAILED
        message = "its compose command is still running" if doing else "it is down"
    elif same_assignment(container.assignment, after):
        well = container.healthy is not False
        state = ProgressState.HEALTHY if well else ProgressState.FAILED
        message = "it runs as configured" if well else "it runs as configured, and its check fails"
    elif same_assignment(container.assignment, before):
        state, message = ProgressState.PENDING, "it runs as before"
    else:
        gpu = container.assignment.gpu_index if container.assignment else None
        where = "without a pin" if gpu is None else f"on GPU {gpu}"
        state, message = ProgressState.FAILED, f"it runs neither as before nor as configured: {where}"
    target = container.assignment or after
    return ServiceProgress(
        name,
        state,
        gpu_index=target.gpu_index if target else None,
        container_id=container.container_id,
        message=message,
    )
