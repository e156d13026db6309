"""The progress of one apply: saved on disk at each step, then reported.

The file lets the next run of a daemon that was killed find out where the apply stopped.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cotenant.atomic_files import write_durably
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
    """The state of an apply on disk, and each service's assignment before and after it."""

    status: ApplyStatus
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]


def save_record(folder: Path, record: ApplyRecord) -> None:
    """Write a record over the last one. Raises OSError."""
    write_durably(folder / _NAME, json.dumps(asdict(record), indent=1).encode())


def load_record(folder: Path) -> ApplyRecord | None:
    """Return the last record; None if there is none or it cannot be read."""
    try:
        record = json.loads((folder / _NAME).read_bytes())
        return ApplyRecord(
            ApplyStatus.from_json(record["status"]),
            {service: Assignment(**each) for service, each in record["before"].items()},
            {service: Assignment(**each) for service, each in record["after"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class ApplyProgress:
    """The status of one apply. Each change is on disk before it is reported."""

    def __init__(
        self,
        order: ApplyOrder,
        folder: Path,
        report: Callable[[ApplyStatus], None],
        wall: Callable[[], float],
    ) -> None:
        self._order = order
        self._folder = folder
        self._report = report
        self._wall = wall
        self._lock = asyncio.Lock()
        self._services = {
            service.name: ServiceProgress(
                service.name,
                ProgressState.PENDING,
                order.after.get(service.name, Assignment(service.name)).gpu_index,
            )
            for service in order.changed
        }
        self._status = ApplyStatus(order.number, ApplyState.RUNNING, wall())

    @property
    def status(self) -> ApplyStatus:
        """The apply as it is now."""
        return replace(self._status, services=tuple(self._services.values()))

    def of(self, service: str) -> ServiceProgress:
        """Return the progress of one service."""
        return self._services[service]

    async def start(self) -> None:
        """Report the start. Raises GeneratedFileFailed if it cannot be written to disk."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            await self._save_and_report(strict=True)
        except OSError as error:
            raise GeneratedFileFailed(
                f"{self._folder}: the progress of an apply cannot be written there: {error.strerror}",
                hint="Make room, or give the daemon the right to write there; nothing was changed.",
            ) from error

    async def set_service_state(
        self, service: str, state: ProgressState, *, message: str | None = None, **fields: str | int | None
    ) -> None:
        """Report the progress of a service; `fields` are more of its fields."""
        self._services[service] = replace(
            self._services[service],
            state=state,
            message=message,
            **fields,  # type: ignore[arg-type]
        )
        await self._save_and_report()

    async def set_state(self, state: ApplyState, message: str) -> ApplyStatus:
        """Report the state of the whole apply; every state but `rolling_back` ends it."""
        ended = state is not ApplyState.ROLLING_BACK
        self._status = replace(
            self._status, state=state, message=message, finished_at=self._wall() if ended else None
        )
        await self._save_and_report()
        return self.status

    async def _save_and_report(self, *, strict: bool = False) -> None:
        async with self._lock:
            status = self.status
            record = ApplyRecord(status, dict(self._order.before), dict(self._order.after))
            # A full disk must not stop an apply half-way: only the start requires the write.
            with contextlib.nullcontext() if strict else contextlib.suppress(OSError):
                await asyncio.to_thread(save_record, self._folder, record)
            self._report(status)
