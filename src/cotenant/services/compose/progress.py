"""How an apply stands while it goes on: kept on disk, then told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cotenant.domain.errors import GeneratedFileFailed
from cotenant.services.compose.apply_record import ApplyRecord, save_record
from cotenant.services.interfaces import ApplyOrder
from cotenant.services.model import ApplyState, ApplyStatus, Assignment, ProgressState, ServiceProgress


class Progress:
    """The status of one apply. Each change is on disk before anybody is told."""

    def __init__(
        self,
        order: ApplyOrder,
        folder: Path,
        told: Callable[[ApplyStatus], None],
        wall: Callable[[], float],
    ) -> None:
        self._order = order
        self._folder = folder
        self._told = told
        self._wall = wall
        self._turn = asyncio.Lock()
        self._services = {
            service.name: ServiceProgress(
                service.name, ProgressState.PENDING, _gpu(order.after.get(service.name))
            )
            for service in order.changed
        }
        self._status = ApplyStatus(order.number, ApplyState.RUNNING, wall())

    @property
    def status(self) -> ApplyStatus:
        """How it stands."""
        return replace(self._status, services=tuple(self._services.values()))

    def of(self, service: str) -> ServiceProgress:
        """How far one service is."""
        return self._services[service]

    async def begin(self) -> None:
        """Say that it begins. Raises GeneratedFileFailed if that cannot be kept on disk."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            await self._tell(strict=True)
        except OSError as error:
            raise GeneratedFileFailed(
                f"{self._folder}: the progress of an apply cannot be kept there: {error.strerror}",
                hint="Make room, or give the daemon the right to write there; nothing was changed.",
            ) from error

    async def step(
        self, service: str, state: ProgressState, *, message: str | None = None, **told: str | int | None
    ) -> None:
        """Say how far a service is; `told` are further fields of its progress."""
        self._services[service] = replace(
            self._services[service],
            state=state,
            message=message,
            **told,  # type: ignore[arg-type]
        )
        await self._tell()

    async def become(self, state: ApplyState, message: str) -> ApplyStatus:
        """Say how the whole stands; it has ended unless it goes on to roll back."""
        ended = state is not ApplyState.ROLLING_BACK
        self._status = replace(
            self._status, state=state, message=message, finished_at=self._wall() if ended else None
        )
        await self._tell()
        return self.status

    async def _tell(self, *, strict: bool = False) -> None:
        async with self._turn:
            status = self.status
            record = ApplyRecord(
                status,
                before=dict(self._order.before),
                after=dict(self._order.after),
            )
            # A full disk must not stop an apply half-way: what is told matters more than what is kept.
            with contextlib.nullcontext() if strict else contextlib.suppress(OSError):
                await asyncio.to_thread(save_record, self._folder, record)
            self._told(status)


def _gpu(assignment: Assignment | None) -> int | None:
    return None if assignment is None else assignment.gpu_index
