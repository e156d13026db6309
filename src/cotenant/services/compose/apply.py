"""One apply from start to end: it recreates services, and rolls back if one does not come up."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotenant.domain.errors import CotenantError
from cotenant.services.compose.apply_progress import ApplyProgress
from cotenant.services.compose.command import ComposeCommand
from cotenant.services.compose.compose_files import ComposeProject
from cotenant.services.compose.compose_yaml import read_compose_text
from cotenant.services.compose.container_engine import Container, ContainerEngine
from cotenant.services.compose.generated_files import GeneratedFiles
from cotenant.services.compose.gpu_requests import gpu_requests
from cotenant.services.compose.health import GIVEN_UP, HealthWatch
from cotenant.services.compose.order import Move, Step, ordered
from cotenant.services.compose.runner import ComposeRunner
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    Assignment,
    OnFailure,
    ProgressState,
    Service,
)


@dataclass(frozen=True, slots=True)
class ApplyTools:
    """What an apply works with. `parallel` bounds how many services start at once."""

    project: ComposeProject
    files: Sequence[Path]
    command: ComposeCommand
    engine: ContainerEngine
    runner: ComposeRunner
    watch: HealthWatch
    generated: GeneratedFiles
    parallel: int


async def run_apply(order: ApplyOrder, tools: ApplyTools, progress: ApplyProgress) -> ApplyStatus:
    """Recreate the changed services; restore the previous ones if one fails and the order says so."""
    rollback = order.on_failure is OnFailure.ROLLBACK
    forward = _Pass(
        tools, progress, order.changed, order.before, order.after, stop_waiting_on_failure=rollback
    )
    await forward.run()
    names = [service.name for service in order.changed]
    if not forward.failures:
        done = f"{_were(names)} recreated." if names else "Nothing had to be recreated."
        return await progress.set_state(ApplyState.SUCCEEDED, done)
    reason = _failures_text(forward.failures)
    if not rollback:
        untouched = [name for name in names if name not in forward.attempted]
        rest = f" {_were(untouched)} not touched." if untouched else ""
        return await progress.set_state(ApplyState.FAILED, reason + rest)
    await progress.set_state(ApplyState.ROLLING_BACK, reason)
    try:
        await asyncio.to_thread(tools.generated.restore, order.restore_number)
    except CotenantError as error:
        return await progress.set_state(
            ApplyState.FAILED, f"{reason} The previous files cannot be restored: {error.message}."
        )
    touched = [service for service in order.changed if service.name in forward.attempted]
    back = _Pass(tools, progress, touched, order.after, order.before, continue_on_failure=True)
    await back.run()
    for name, why in forward.failures.items():
        if name not in back.failures:
            await progress.set_service_state(
                name, ProgressState.HEALTHY, message=f"it was restored, because {why}"
            )
    if back.failures:
        return await progress.set_state(
            ApplyState.FAILED, f"{reason} Going back failed too: {_failures_text(back.failures)}"
        )
    restored = _were([service.name for service in touched])
    return await progress.set_state(ApplyState.ROLLED_BACK, f"{reason} {restored} restored.")


def _failures_text(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name} did not come up: {why.rstrip('.')}" for name, why in failures.items()) + "."


def _were(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last} were" if most else f"{last} was"


class _Pass:
    """One pass over services, several at once, that takes them from one assignment each to another.

    After a service fails, no other is recreated unless `continue_on_failure`, and the pass stops waiting for
    starting services if `stop_waiting_on_failure`. `failures` holds the reasons, by service.
    """

    def __init__(
        self,
        tools: ApplyTools,
        progress: ApplyProgress,
        services: Sequence[Service],
        before: Mapping[str, Assignment],
        after: Mapping[str, Assignment],
        *,
        continue_on_failure: bool = False,
        stop_waiting_on_failure: bool = False,
    ) -> None:
        self._tools = tools
        self._progress = progress
        self._services = {service.name: service for service in services}
        self._before = before
        self._after = after
        self._continue_on_failure = continue_on_failure
        self._stop_waiting_on_failure = stop_waiting_on_failure
        self._freed = {name: asyncio.Event() for name in self._services}
        self._slots = asyncio.Semaphore(tools.parallel)
        self._stopped: list[str] = []
        self.attempted: set[str] = set()
        self.failures: dict[str, str] = {}

    async def run(self) -> None:
        """Recreate every service, in an order that frees memory before it is needed."""
        steps = ordered(
            [
                Move(name, self._before.get(name), self._after.get(name), service.latency_critical)
                for name, service in self._services.items()
            ]
        )
        for step in steps:
            if step.stop_first and not self._stopped_by_failure():
                await self._attempt(step.service, self._stop(step.service))
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(self._perform(step))
        if not self._stop_waiting_on_failure:
            for name in self._stopped:
                await self._fail(name, "it was stopped to free memory, and not started again")

    def _stopped_by_failure(self) -> bool:
        return bool(self.failures) and not self._continue_on_failure

    async def _perform(self, step: Step) -> None:
        for name in step.after:
            await self._freed[name].wait()
        async with self._slots:
            if self._stopped_by_failure():
                self._freed[step.service].set()
            else:
                await self._attempt(step.service, self._recreate(step.service))

    async def _attempt(self, name: str, work: Awaitable[str | None]) -> None:
        """Wait for work on a service, which returns what went wrong. Its memory then counts as free."""
        try:
            wrong = await work
        except CotenantError as error:
            wrong = error.message
        except OSError as error:
            wrong = f"system error: {error}"
        if wrong is not None and wrong != GIVEN_UP:
            await self._fail(name, wrong)
        self._freed[name].set()

    async def _stop(self, name: str) -> str | None:
        await self._mark_recreating(name, "stopped until another service has left its GPU")
        self._stopped.append(name)
        return await self._compose("stop", name)

    async def _recreate(self, name: str) -> str | None:
        await self._mark_recreating(name)
        self._stopped = [other for other in self._stopped if other != name]
        wrong = await self._compose("up", "-d", "--force-recreate", "--no-deps", name)
        if wrong is not None:
            return wrong
        self._freed[name].set()
        created = await self._tools.engine.containers(name)
        container_id = created[0].id if created else None
        await self._progress.set_service_state(name, ProgressState.WAITING_HEALTHY, container_id=container_id)
        wrong = await self._wrong_gpu(name, created) or await self._tools.watch.wait(
            self._services[name], lambda: bool(self.failures) and self._stop_waiting_on_failure
        )
        if wrong is None:
            await self._progress.set_service_state(name, ProgressState.HEALTHY)
        return wrong

    async def _wrong_gpu(self, name: str, created: Sequence[Container]) -> str | None:
        """Return what is wrong with the containers' GPUs; None if nothing is, or if they are not reported."""
        wanted = await asyncio.to_thread(_pinned_to, self._tools.generated.override, name)
        for container in created if wanted else ():
            if container.gpus is not None and container.gpus != wanted:
                actual = ", ".join(sorted(container.gpus)) or "none"
                return f"it got GPU {actual} instead of GPU {', '.join(sorted(wanted))}"
        return None

    async def _mark_recreating(self, name: str, message: str | None = None) -> None:
        self.attempted.add(name)
        target = self._after.get(name, Assignment(name))
        await self._progress.set_service_state(
            name, ProgressState.RECREATING, message=message, gpu_index=target.gpu_index, more=target.more
        )

    async def _fail(self, name: str, wrong: str) -> None:
        self.failures[name] = wrong
        await self._progress.set_service_state(name, ProgressState.FAILED, message=wrong)

    async def _compose(self, *arguments: str) -> str | None:
        tools = self._tools
        files = await asyncio.to_thread(tools.generated.in_use)
        argv = tools.command.call(tools.project.name, tools.files, files, arguments)
        return await tools.runner.run(argv, tools.project.directory)


def _pinned_to(override: Path, service: str) -> frozenset[str]:
    """Return the GPUs to which the override in place pins a service."""
    if not override.is_file():
        return frozenset()
    services = read_compose_text(override).root.get("services") or {}
    return frozenset(name for request in gpu_requests(services.get(service) or {}) for name in request.ids)
