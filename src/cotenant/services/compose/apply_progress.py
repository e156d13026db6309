"""The progress of one apply: saved on disk at each step, then reported.

The file lets the next run of a daemon that was killed find out where the apply stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from cotenant.atomic_files import write_durably
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import GeneratedFileFailed
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    Assignment,
    ProgressState,
    ServiceProgress,
)

_NAME: Final = "apply.json"


@dataclass(frozen=True, slots=True)
class ApplyRecord:
    """An apply: how it stands, and each service's assignments around it."""

    status: ApplyStatus
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]


def save_record(folder: Path, record: ApplyRecord) -> None:
    """Keep a record in place of the last one. Raises OSError."""
    write_durably(folder / _NAME, json.dumps(asdict(record), indent=1).encode())


def load_record(folder: Path) -> ApplyRecord | None:
    """Return the record kept last; None if there is none, or none that can be read."""
    try:
        told = json.loads((folder / _NAME).read_bytes())
        return ApplyRecord(
            _status(told["status"]),
            _assignments(told["before"]),
            _assignments(told["after"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _status(told: Mapping[str, Any]) -> ApplyStatus:
    services = tuple(
        ServiceProgress(**{**each, "state": ProgressState(each["state"])}) for each in told["services"]
    )
    return ApplyStatus(**{**told, "state": ApplyState(told["state"]), "services": services})


def _assignments(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Assignment]:
    return {
        service: Assignment(
            **{**each, "device_id": None if each["device_id"] is None else DeviceId(each["device_id"])}
        )
        for service, each in told.items()
    }


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
            record = ApplyRecord(status, dict(self._order.before), dict(self._order.after))
            # A full disk must not stop an apply half-way: what is told matters more than what is kept.
            with contextlib.nullcontext() if strict else contextlib.suppress(OSError):
                await asyncio.to_thread(save_record, self._folder, record)
            self._told(status)


def _gpu(assignment: Assignment | None) -> int | None:
    return None if assignment is None else assignment.gpu_index
