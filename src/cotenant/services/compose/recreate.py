"""Recreating services step by step, several on their way up at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotenant.domain.errors import CotenantError
from cotenant.services.compose.apply_progress import Progress
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
class Tools:
    """What an apply works with. `parallel` bounds how many services are on their way up at once."""

    project: ComposeProject
    files: Sequence[Path]
    command: ComposeCommand
    engine: ContainerEngine
    runner: ComposeRunner
    watch: HealthWatch
    generated: GeneratedFiles
    parallel: int


@dataclass(frozen=True, slots=True)
class Resolve:
    """What follows from a failure: `persist` goes on with the others, `abandon` waits for none any more."""

    persist: bool = False
    abandon: bool = False


class Recreation:
    """One pass over services, towards given assignments. `failures` says what went wrong, by service."""

    def __init__(
        self,
        tools: Tools,
        progress: Progress,
        services: Mapping[str, Service],
        towards: Mapping[str, Assignment],
        resolve: Resolve,
    ) -> None:
        self._tools = tools
        self._progress = progress
        self._services = services
        self._towards = towards
        self._resolve = resolve
        self._freed: dict[str, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(tools.parallel)
        self._stopped: list[str] = []
        self.attempted: list[str] = []
        self.failures: dict[str, str] = {}

    async def carry_out(self, steps: Sequence[Step]) -> None:
        """Take every step, in an order that lets memory go before it is needed."""
        self._freed = {step.service: asyncio.Event() for step in steps}
        for step in steps:
            if step.stop_first and not self._halted():
                await self._stop(step.service)
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(self._take(step))
        if not self._resolve.abandon:
            for name in self._stopped:
                await self._fail(name, "it was stopped to make room, and not started again")

    def _halted(self) -> bool:
        return bool(self.failures) and not self._resolve.persist

    def _given_up(self) -> bool:
        return bool(self.failures) and self._resolve.abandon

    async def _stop(self, name: str) -> None:
        await self._begin(name, "stopped until another service has left its GPU")
        self._stopped.append(name)
        try:
            wrong = await self._compose("stop", name)
        except (CotenantError, OSError) as error:
            wrong = _sentence(error)
        if wrong is not None:
            await self._fail(name, wrong)
        self._freed[name].set()

    async def _take(self, step: Step) -> None:
        for name in step.after:
            await self._freed[name].wait()
        async with self._slots:
            try:
                if not self._halted():
                    await self._recreate(step.service)
            except (CotenantError, OSError) as error:
                await self._fail(step.service, _sentence(error))
            finally:
                self._freed[step.service].set()

    async def _recreate(self, name: str) -> None:
        await self._begin(name)
        self._stopped = [other for other in self._stopped if other != name]
        wrong = await self._compose("up", "-d", "--force-recreate", "--no-deps", name)
        if wrong is None:
            self._freed[name].set()
            wrong = await self._come_up(name)
        if wrong == GIVEN_UP:
            return
        if wrong is not None:
            await self._fail(name, wrong)
            return
        await self._progress.step(name, ProgressState.HEALTHY)

    async def _come_up(self, name: str) -> str | None:
        made = await self._tools.engine.containers(self._tools.project.name, name)
        container_id = made[0].id if made else None
        await self._progress.step(name, ProgressState.WAITING_HEALTHY, container_id=container_id)
        return await self._misplaced(name, made) or await self._tools.watch.wait(
            self._services[name], self._given_up
        )

    async def _misplaced(self, name: str, made: Sequence[Container]) -> str | None:
        """Return what is wrong with the GPUs that containers were given, as far as their engine tells."""
        wanted = await asyncio.to_thread(_pinned_to, self._tools.generated.override, name)
        for container in made if wanted else ():
            if container.gpus is not None and container.gpus != wanted:
                given = ", ".join(sorted(container.gpus)) or "none"
                return f"it was given GPU {given} where GPU {', '.join(wanted)} was asked for"
        return None

    async def _begin(self, name: str, message: str | None = None) -> None:
        if name not in self.attempted:
            self.attempted.append(name)
        target = self._towards.get(name)
        gpu = None if target is None else target.gpu_index
        await self._progress.step(name, ProgressState.RECREATING, message=message, gpu_index=gpu)

    async def _fail(self, name: str, wrong: str) -> None:
        self.failures[name] = wrong
        await self._progress.step(name, ProgressState.FAILED, message=wrong)

    async def _compose(self, *arguments: str) -> str | None:
        tools = self._tools
        files = await asyncio.to_thread(tools.generated.in_use)
        argv = tools.command.call(tools.project.name, tools.files, files, arguments)
        return await tools.runner.run(argv, tools.project.directory)


def _sentence(error: CotenantError | OSError) -> str:
    return error.message if isinstance(error, CotenantError) else f"this machine refuses: {error}"


def _pinned_to(override: Path, service: str) -> frozenset[str]:
    """Return the GPUs to which the override in place pins a service."""
    if not override.is_file():
        return frozenset()
    services = read_compose_text(override).root.get("services") or {}
    return frozenset(name for request in gpu_requests(services.get(service) or {}) for name in request.ids)
