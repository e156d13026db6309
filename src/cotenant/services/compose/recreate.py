"""Recreates services step by step, several at once."""

import asyncio
from collections.abc import Mapping, Sequence
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
from cotenant.services.compose.order import Step
from cotenant.services.compose.runner import ComposeRunner
from cotenant.services.model import Assignment, ProgressState, Service


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


class RecreationPass:
    """One pass over services that gives them the `target` assignments.

    After a service fails, no other is recreated unless `continue_on_failure`, and the pass stops waiting for
    starting services if `stop_waiting_on_failure`. `failures` holds the reasons, by service.
    """

    def __init__(
        self,
        tools: ApplyTools,
        progress: ApplyProgress,
        services: Mapping[str, Service],
        target: Mapping[str, Assignment],
        *,
        continue_on_failure: bool = False,
        stop_waiting_on_failure: bool = False,
    ) -> None:
        self._tools = tools
        self._progress = progress
        self._services = services
        self._target = target
        self._continue_on_failure = continue_on_failure
        self._stop_waiting_on_failure = stop_waiting_on_failure
        self._freed: dict[str, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(tools.parallel)
        self._stopped: list[str] = []
        self.attempted: list[str] = []
        self.failures: dict[str, str] = {}

    async def run(self, steps: Sequence[Step]) -> None:
        """Perform every step, in an order that frees memory before it is needed."""
        self._freed = {step.service: asyncio.Event() for step in steps}
        for step in steps:
            if step.stop_first and not self._stopped_by_failure():
                await self._stop(step.service)
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(self._perform(step))
        if not self._stop_waiting_on_failure:
            for name in self._stopped:
                await self._fail(name, "it was stopped to free memory, and not started again")

    def _stopped_by_failure(self) -> bool:
        return bool(self.failures) and not self._continue_on_failure

    def _stops_waiting(self) -> bool:
        return bool(self.failures) and self._stop_waiting_on_failure

    async def _stop(self, name: str) -> None:
        await self._mark_recreating(name, "stopped until another service has left its GPU")
        self._stopped.append(name)
        try:
            wrong = await self._compose("stop", name)
        except (CotenantError, OSError) as error:
            wrong = _message(error)
        if wrong is not None:
            await self._fail(name, wrong)
        self._freed[name].set()

    async def _perform(self, step: Step) -> None:
        for name in step.after:
            await self._freed[name].wait()
        async with self._slots:
            try:
                if not self._stopped_by_failure():
                    await self._recreate(step.service)
            except (CotenantError, OSError) as error:
                await self._fail(step.service, _message(error))
            finally:
                self._freed[step.service].set()

    async def _recreate(self, name: str) -> None:
        await self._mark_recreating(name)
        self._stopped = [other for other in self._stopped if other != name]
        wrong = await self._compose("up", "-d", "--force-recreate", "--no-deps", name)
        if wrong is None:
            self._freed[name].set()
            wrong = await self._wait_until_up(name)
        if wrong == GIVEN_UP:
            return
        if wrong is not None:
            await self._fail(name, wrong)
            return
        await self._progress.set_service_state(name, ProgressState.HEALTHY)

    async def _wait_until_up(self, name: str) -> str | None:
        created = await self._tools.engine.containers(self._tools.project.name, name)
        container_id = created[0].id if created else None
        await self._progress.set_service_state(name, ProgressState.WAITING_HEALTHY, container_id=container_id)
        return await self._wrong_gpu(name, created) or await self._tools.watch.wait(
            self._services[name], self._stops_waiting
        )

    async def _wrong_gpu(self, name: str, created: Sequence[Container]) -> str | None:
        """Return what is wrong with the containers' GPUs; None if nothing is, or if they are not reported."""
        wanted = await asyncio.to_thread(_pinned_to, self._tools.generated.override, name)
        for container in created if wanted else ():
            if container.gpus is not None and container.gpus != wanted:
                actual = ", ".join(sorted(container.gpus)) or "none"
                return f"it got GPU {actual} instead of GPU {', '.join(wanted)}"
        return None

    async def _mark_recreating(self, name: str, message: str | None = None) -> None:
        if name not in self.attempted:
            self.attempted.append(name)
        gpu = self._target.get(name, Assignment(name)).gpu_index
        await self._progress.set_service_state(name, ProgressState.RECREATING, message=message, gpu_index=gpu)

    async def _fail(self, name: str, wrong: str) -> None:
        self.failures[name] = wrong
        await self._progress.set_service_state(name, ProgressState.FAILED, message=wrong)

    async def _compose(self, *arguments: str) -> str | None:
        tools = self._tools
        files = await asyncio.to_thread(tools.generated.in_use)
        argv = tools.command.call(tools.project.name, tools.files, files, arguments)
        return await tools.runner.run(argv, tools.project.directory)


def _message(error: CotenantError | OSError) -> str:
    return error.message if isinstance(error, CotenantError) else f"system error: {error}"


def _pinned_to(override: Path, service: str) -> frozenset[str]:
    """Return the GPUs to which the override in place pins a service."""
    if not override.is_file():
        return frozenset()
    services = read_compose_text(override).root.get("services") or {}
    return frozenset(name for request in gpu_requests(services.get(service) or {}) for name in request.ids)
