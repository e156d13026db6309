"""What the operator of services needs from the database and from the container engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cotenant.services.model import (
    ApplyOrder,
    ApplyStatus,
    Assignment,
    ContainerState,
    SavedConfiguration,
    SeenDevice,
    Service,
    ServiceDevice,
    Strategy,
)


class ServiceStore(Protocol):
    """Remembers the GPU of each service, in the tables of GPU configuration.

    Unlike a Journal it never loses anything silently: what cannot be written or read raises StoreError.
    """

    async def current(self) -> SavedConfiguration | None:
        """Return the configuration saved last; None before the first."""
        ...

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], at: float, publish: Callable[[int], None]
    ) -> SavedConfiguration:
        """Write a configuration and its entry in the history, all or nothing.

        `publish` is called with its number before the transaction ends, in a thread: what it raises is raised
        here, and nothing is written.
        """
        ...

    async def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Store the state of applying the configuration `number`."""
        ...

    async def history(self, limit: int) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first."""
        ...

    async def applied(self) -> SavedConfiguration | None:
        """Return the newest configuration whose apply succeeded; None before the first."""
        ...

    async def last_apply(self) -> ApplyStatus | None:
        """Return the state of the newest apply; None before the first."""
        ...

    async def see_devices(self, devices: Sequence[SeenDevice]) -> None:
        """Store which GPUs are present now; those that are gone keep the time when they were last seen."""
        ...

    async def devices(self) -> Sequence[SeenDevice]:
        """Return every GPU ever seen under its index, in index order."""
        ...


class Orchestrator(Protocol):
    """Writes the files that pin services to GPUs, and recreates containers by the host's compose command."""

    def compose_services(self) -> Sequence[str]:
        """Return the names in the compose files. Raises ComposeFileError."""
        ...

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
        ...

    def edited(self) -> Sequence[Path]:
        """Return the generated files that somebody changed or removed since they were written."""
        ...

    async def containers(self) -> Sequence[ContainerState]:
        """Return the state of the containers. Raises ContainerEngineMissing and ComposeFileError."""
        ...

    async def apply(self, order: ApplyOrder, report: Callable[[ApplyStatus], None]) -> ApplyStatus:
        """Recreate the changed services and return the result; `report` is called at every step.

        A service that does not come up is a result, not an exception. Raises ContainerEngineMissing,
        ComposeFileError, GeneratedFileEdited and GeneratedFileFailed before anything is changed. If
        cancelled, it leaves what it has done, recorded on disk.
        """
        ...

    async def unfinished(self) -> ApplyStatus | None:
        """Return the apply that an earlier run of the daemon did not finish, as its containers now are."""
        ...
