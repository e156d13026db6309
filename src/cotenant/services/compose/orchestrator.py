"""Pins services by compose files and recreates them by the host's compose command."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cotenant.domain.errors import ComposeFileError, ContainerEngineMissing
from cotenant.services.compose.apply import ApplyTools, run_apply
from cotenant.services.compose.apply_progress import ApplyProgress, interrupted, load_record
from cotenant.services.compose.command import ComposeCommand, find_compose
from cotenant.services.compose.compose_files import ComposeProject, read_project
from cotenant.services.compose.container_engine import ContainerEngine, states
from cotenant.services.compose.generated_files import GeneratedFiles
from cotenant.services.compose.health import HealthWatch
from cotenant.services.compose.override import render
from cotenant.services.compose.runner import ComposeRunner
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    ContainerState,
    SavedConfiguration,
    Service,
    ServiceDevice,
    ServicesSettings,
)


class ComposeOrchestrator:
    """Pins services by generated compose files, and recreates them by the host's compose command.

    A running service that depends on a recreated one is recreated with it by podman-compose, also with
    `--no-deps`: podman does not remove a container that another requires.

    `state_dir` is the daemon's own folder. `settle_s` is how long a container without a health check has to
    stay up, `patience_s` how long `unfinished` waits for a compose command of an earlier run.
    """

    def __init__(
        self,
        settings: ServicesSettings,
        state_dir: Path,
        *,
        settle_s: float = 3.0,
        patience_s: float = 10.0,
    ) -> None:
        self._settings = settings
        self._files = tuple(file.absolute() for file in settings.compose_files)
        self._state_dir = state_dir.absolute()
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._generated = GeneratedFiles(settings.output_dir.absolute())
        self._runner = ComposeRunner(self._state_dir, settings.command_timeout_s)
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
        requests in its own file decides what has to be written.
        """
        contents = render(
            configuration,
            services,
            devices,
            self._project(),
            self._settings.device_ids,
            self._files,
            self._generated.folder,
        )
        self._generated.write(configuration.number, contents, force=force)

    def edited(self) -> Sequence[Path]:
        """Return the generated files that were changed or removed since Cotenant wrote them."""
        return self._generated.edited()

    async def containers(self) -> Sequence[ContainerState]:
        """Return the state of the container of each service in the compose files.

        Raises ContainerEngineMissing and ComposeFileError.
        """
        project = await asyncio.to_thread(self._project)
        command = self._found or await find_compose(self._settings.command)
        # It is forgotten if it fails: another command may work next time.
        self._found = None
        found = await ContainerEngine(command.engine, project.name).containers()
        self._found = command
        return states(found, project.services)

    async def apply(self, order: ApplyOrder, report: Callable[[ApplyStatus], None]) -> ApplyStatus:
        """Recreate the changed services and return the result; `report` is called at every step.

        A service that does not come up is a result, not an exception. Raises ContainerEngineMissing,
        ComposeFileError, GeneratedFileEdited (a file of another configuration was changed by hand) and
        GeneratedFileFailed before anything is changed. If cancelled, it leaves what it has done, recorded on
        disk; a compose command that is running continues to its end.
        """
        project = await asyncio.to_thread(self._project)
        for service in order.changed:
            if service.name not in project.services or service.name.startswith("-"):
                raise ComposeFileError(
                    f"{self._files[0]}: there is no service {service.name} to recreate",
                    hint="Correct its name in services.items, or add it to the compose file.",
                )
        command = await find_compose(self._settings.command)
        await asyncio.to_thread(self._generated.ensure, order.number)
        engine = ContainerEngine(command.engine, project.name)
        tools = ApplyTools(
            project,
            self._files,
            command,
            engine,
            self._runner,
            HealthWatch(engine, self._settle_s),
            self._generated,
            max(1, self._settings.parallel),
        )
        progress = ApplyProgress(order, self._state_dir, report)
        self._applying = True
        try:
            await progress.start()
            return await run_apply(order, tools, progress)
        finally:
            self._applying = False

    async def unfinished(self) -> ApplyStatus | None:
        """Return the apply that an earlier run of the daemon did not finish, by the state of its containers.

        Waits for a while for a compose command that the earlier run left; it ends at its time limit. The same
        apply is reported until another one starts.
        """
        record = await asyncio.to_thread(load_record, self._state_dir)
        await asyncio.to_thread(self._generated.undo_interrupted_write)
        if record is None or self._applying:
            return None
        if not record.status.running and record.status.state is not ApplyState.INTERRUPTED:
            return None
        busy = await self._runner.is_busy(self._patience_s)
        try:
            containers = await self.containers()
        except (ContainerEngineMissing, ComposeFileError):
            containers = None
        return interrupted(record, containers, command_running=busy, at=time.time())

    def _project(self) -> ComposeProject:
        return read_project(self._files, self._settings.project)
