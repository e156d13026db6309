"""The Orchestrator over compose files and the host's compose command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cotenant.clock import Clock, SystemClock
from cotenant.domain.errors import ComposeFileError, ContainerEngineMissing
from cotenant.services.compose.apply import carry_out
from cotenant.services.compose.apply_progress import Progress, load_record
from cotenant.services.compose.assignments_file import ASSIGNMENTS_NAME, render_assignments
from cotenant.services.compose.command import ComposeCommand, find_compose
from cotenant.services.compose.compose_files import ComposeProject, read_project
from cotenant.services.compose.container_engine import ContainerEngine, states
from cotenant.services.compose.generated_files import GeneratedFiles
from cotenant.services.compose.health import HealthWatch
from cotenant.services.compose.override import OVERRIDE_NAME, RESET_NAME, pins, render_override, render_reset
from cotenant.services.compose.recovery import interrupted
from cotenant.services.compose.recreate import Tools
from cotenant.services.compose.runner import ComposeRunner
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    ContainerState,
    DeviceNames,
    SavedConfiguration,
    Service,
    ServiceDevice,
)


class ComposeOrchestrator:
    """Pins services by generated compose files, and recreates them by the host's compose command.

    A running service that depends on a recreated one is recreated with it by podman-compose, also with
    `--no-deps`: podman does not remove a container that another requires.

    `files` are the operator's compose files, `output_dir` takes the generated ones, `state_dir` is the
    daemon's own. `command` is an argument vector, None to look for one; `project` the compose project's name,
    None to find it as compose does. `settle_s` is how long a container without a check has to stay up,
    `patience_s` how long `unfinished` waits for a compose command that an earlier run left.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        output_dir: Path,
        state_dir: Path,
        command: Sequence[str] | None = None,
        project: str | None = None,
        device_names: DeviceNames = DeviceNames.INDEX,
        parallel: int = 2,
        command_timeout_s: float = 600.0,
        settle_s: float = 3.0,
        patience_s: float = 10.0,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._files = tuple(file.absolute() for file in files)
        self._state_dir = state_dir.absolute()
        self._command = tuple(command) if command else None
        self._project_name = project
        self._device_names = device_names
        self._parallel = parallel
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._clock = clock or SystemClock()
        self._wall = wall
        self._generated = GeneratedFiles(output_dir.absolute())
        self._runner = ComposeRunner(self._state_dir, self._clock, command_timeout_s)
        self._applying = False
        self._found: ComposeCommand | None = None

    def compose_services(self) -> Sequence[str]:
        """Return the names in the compose files. Raises ComposeFileError."""
        return tuple(self._project().services)

    def write(
        self,
        configuration: SavedConfiguration,
        services: Sequence[Service],
        devices: Sequence[ServiceDevice],
        *,
        force: bool = False,
    ) -> None:
        """Write the generated files, all or none, and keep them under the configuration's number.

        Raises GeneratedFileEdited unless `force`, GeneratedFileFailed, and ComposeFileError: what a service
        asks for in its own file decides what has to be generated.
        """
        project = self._project()
        pinned = pins(configuration.assignments, services, devices, project, self._device_names)
        reset = render_reset(configuration, pinned)
        contents = {
            ASSIGNMENTS_NAME: render_assignments(configuration),
            RESET_NAME: reset,
            OVERRIDE_NAME: render_override(configuration, pinned, self._by_hand(reset is not None)),
        }
        self._generated.write(configuration.number, contents, force=force)

    def put_back(self, number: int | None) -> None:
        """Put the files of an earlier configuration back in place, or none. Raises GeneratedFileFailed."""
        self._generated.restore(number)

    def edited(self) -> Sequence[Path]:
        """Return the generated files that somebody changed or removed since they were written."""
        return self._generated.edited()

    async def containers(self) -> Sequence[ContainerState]:
        """Return how the container of each service in the compose files is.

        Raises ContainerEngineMissing and ComposeFileError.
        """
        project = await asyncio.to_thread(self._project)
        command = self._found or await find_compose(self._command)
        # Forgotten where it does not answer: another may, the next time.
        self._found = None
        found = await ContainerEngine(command.engine).containers(project.name)
        self._found = command
        return states(found, project.services)

    async def apply(self, order: ApplyOrder, told: Callable[[ApplyStatus], None]) -> ApplyStatus:
        """Recreate the changed services and return how that ended; `told` hears of every step.

        Raises ContainerEngineMissing, ComposeFileError, GeneratedFileEdited (a file was changed by hand and
        is not of this configuration) and GeneratedFileFailed before anything is touched. Cancelled, it
        leaves what it has done, noted on disk; a compose command that runs then goes on to its end.
        """
        project = await asyncio.to_thread(self._project)
        self._check(project, order)
        command = await find_compose(self._command)
        await asyncio.to_thread(self._generated.ensure, order.number)
        engine = ContainerEngine(command.engine)
        tools = Tools(
            project,
            self._files,
            command,
            engine,
            self._runner,
            HealthWatch(engine, project.name, self._clock, self._settle_s),
            self._generated,
            max(1, self._parallel),
        )
        progress = Progress(order, self._state_dir, told, self._wall)
        self._applying = True
        try:
            await progress.begin()
            return await carry_out(order, tools, progress)
        finally:
            self._applying = False

    async def unfinished(self) -> ApplyStatus | None:
        """Return the apply that an earlier run of the daemon did not end, as its containers now are.

        A compose command that this run left is waited for a while; it ends at its limit. The same apply is
        reported until another one begins.
        """
        record = await asyncio.to_thread(load_record, self._state_dir)
        await asyncio.to_thread(self._generated.settle)
        if record is None or self._applying:
            return None
        if not record.status.running and record.status.state is not ApplyState.INTERRUPTED:
            return None
        busy = await self._runner.left_over(self._patience_s)
        try:
            containers = await self.containers()
        except (ContainerEngineMissing, ComposeFileError):
            containers = None
        return interrupted(record, containers, still_works=busy, at=self._wall())

    def _project(self) -> ComposeProject:
        return read_project(self._files, self._project_name)

    def _check(self, project: ComposeProject, order: ApplyOrder) -> None:
        for service in order.changed:
            if service.name not in project.services or service.name.startswith("-"):
                raise ComposeFileError(
                    f"{self._files[0]}: there is no service {service.name} to recreate",
                    hint="Correct its name in services.items, or add it to the compose file.",
                )

    def _by_hand(self, with_reset: bool) -> str:
        base = self._files[0].parent
        names = [RESET_NAME, OVERRIDE_NAME] if with_reset else [OVERRIDE_NAME]
        paths = [*self._files, *(self._generated.override.with_name(name) for name in names)]
        return " ".join(f"-f {_relative(path, base)}" for path in paths)


def _relative(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path
