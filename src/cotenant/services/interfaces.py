"""What the shell implements for services, as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cotenant.services.model import (
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ContainerState,
    OnFailure,
    SavedConfiguration,
    SeenDevice,
    Service,
    ServiceDevice,
    ServiceWarning,
    Strategy,
)


class ServiceBook(Protocol):
    """Remembers which GPU each service was given, in the tables of GPU configuration.

    Unlike a Journal it never loses a thing silently: what cannot be written or read raises StoreError.
    """

    async def current(self) -> SavedConfiguration | None:
        """Return the configuration saved last; None before the first."""
        ...

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], at: float, publish: Callable[[int], None]
    ) -> SavedConfiguration:
        """Write a configuration and its entry in the history, all or nothing.

        `publish` is given its number before the transaction ends, in a thread: what it raises is raised here,
        and nothing is written.
        """
        ...

    async def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Keep how applying the configuration `number` stands."""
        ...

    async def history(self, limit: int = 20) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first."""
        ...

    async def applied(self) -> SavedConfiguration | None:
        """Return the newest configuration whose apply succeeded; None before the first."""
        ...

    async def last_apply(self) -> ApplyStatus | None:
        """Return how the newest apply stands; None before the first."""
        ...

    async def see_devices(self, devices: Sequence[SeenDevice]) -> None:
        """Keep what GPUs there are now; those that are gone stay with the time when they were last seen."""
        ...

    async def devices(self) -> Sequence[SeenDevice]:
        """Return every GPU ever seen under its index, in index order."""
        ...

    async def setting(self, key: str) -> Mapping[str, object] | None:
        """Return a value of `system_settings`."""
        ...

    async def set_setting(self, key: str, value: Mapping[str, object]) -> None:
        """Keep a value of `system_settings`."""
        ...


@dataclass(frozen=True, slots=True)
class ApplyOrder:
    """Which services to recreate, and from what to what.

    `number` is the configuration's. `changed` are the services to recreate, `before` what their containers
    were created with and `after` what they shall be created with, by service. `restore_number` is the
    configuration whose files are put back if one fails under `OnFailure.ROLLBACK`, None if there is none.
    """

    number: int
    changed: Sequence[Service]
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]
    on_failure: OnFailure = OnFailure.ROLLBACK
    restore_number: int | None = None


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
        """Write the override and the assignments file, both or neither, and keep them under the number.

        Raises GeneratedFileEdited unless `force`, GeneratedFileFailed, and ComposeFileError: what a service
        asks for in its own file decides what has to be written.
        """
        ...

    def edited(self) -> Sequence[Path]:
        """Return the generated files that somebody changed or removed since they were written."""
        ...

    async def containers(self) -> Sequence[ContainerState]:
        """Look at the services' containers. Raises ContainerEngineMissing and ComposeFileError."""
        ...

    async def apply(self, order: ApplyOrder, told: Callable[[ApplyStatus], None]) -> ApplyStatus:
        """Recreate the changed services and return how that ended; `told` hears of every step.

        A service that does not come back is an outcome, not an exception. Raises ContainerEngineMissing,
        ComposeFileError, GeneratedFileEdited and GeneratedFileFailed before anything is touched. Cancelled,
        it leaves what it has done, noted on disk.
        """
        ...

    async def unfinished(self) -> ApplyStatus | None:
        """Return the apply that an earlier run of the daemon did not end, as its containers now are."""
        ...


@dataclass(frozen=True, slots=True)
class ServicesView:
    """GPU configuration as an operator sees it: what is saved, what runs, and what should be known.

    `applied` is the configuration that the containers were last created with, None before the first apply;
    `changes` is what applying the saved one would change. `strategy` is the saved one's, before the first the
    configured one. `problems` are sentences (a generated file was edited, a compose file is missing, no GPU
    was found).
    """

    services: Sequence[Service]
    devices: Sequence[ServiceDevice]
    saved: SavedConfiguration | None
    applied: SavedConfiguration | None
    warnings: Sequence[ServiceWarning] = ()
    problems: Sequence[str] = ()
    edited: Sequence[Path] = ()
    changes: Sequence[Change] = ()
    strategy: Strategy = Strategy.VRAM_BASED


class ServiceOperator(Protocol):
    """What an operator sees of services and may tell about them."""

    async def view(self) -> ServicesView:
        """Everything, as it is now."""
        ...

    async def preview(
        self, strategy: Strategy, assignments: Sequence[Assignment] | None = None
    ) -> tuple[AssignmentPlan, Sequence[Change]]:
        """Return what would be saved and how that differs from what is applied; nothing changes.

        Services that `assignments` leave out are placed by the strategy. None: under `manual` those saved.
        Raises BadAssignment.
        """
        ...

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], *, force: bool = False
    ) -> AssignmentPlan:
        """Save assignments to the database and both files, or to none; return them as saved, with warnings.

        Services that `assignments` leave out are placed by the strategy; under `manual` they stay unpinned.
        Raises BadAssignment, GeneratedFileEdited, GeneratedFileFailed, StoreError.
        """
        ...

    async def apply(self, *, force: bool = False) -> ApplyStatus:
        """Begin to recreate the services whose assignment changed; return at once.

        Raises ApplyRunning, ContainerEngineMissing, ComposeFileError, GeneratedFileEdited.
        """
        ...

    async def status(self) -> tuple[ApplyStatus | None, Sequence[ContainerState]]:
        """Return the last apply, going on or ended, and the containers as they are."""
        ...

    async def rollback(self, number: int | None = None) -> ApplyStatus:
        """Begin to go back to the configuration applied before, or to `number`; return at once.

        Raises ApplyRunning, NothingToRollBack, ContainerEngineMissing.
        """
        ...

    async def history(self, limit: int = 20) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first."""
        ...

    async def detect(self) -> Sequence[SeenDevice]:
        """Look for GPUs again and return all that were ever seen."""
        ...

    def changes(self) -> AsyncIterator[ApplyStatus]:
        """Follow applies step by step. A slow reader misses the oldest."""
        ...
