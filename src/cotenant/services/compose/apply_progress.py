"""The progress of one apply: saved on disk at each step, then reported.

The file lets the next run of a daemon that was killed find out, from the containers, where the apply stopped.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from cotenant.atomic_files import write_durably
from cotenant.domain.errors import GeneratedFileFailed
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    Assignment,
    ContainerState,
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
        return TypeAdapter(ApplyRecord).validate_json((folder / _NAME).read_bytes())
    except (OSError, ValueError):
        return None


class ApplyProgress:
    """The status of one apply. Each change is on disk before it is reported."""

    def __init__(self, order: ApplyOrder, folder: Path, report: Callable[[ApplyStatus], None]) -> None:
        self._order = order
        self._folder = folder
        self._report = report
        self._lock = asyncio.Lock()
        targets = [order.after.get(service.name, Assignment(service.name)) for service in order.changed]
        self._services = {
            each.service: ServiceProgress(each.service, ProgressState.PENDING, each.gpu_index, more=each.more)
            for each in targets
        }
        self._status = ApplyStatus(order.number, ApplyState.RUNNING, time.time())

    @property
    def status(self) -> ApplyStatus:
        """The apply as it is now."""
        return replace(self._status, services=tuple(self._services.values()))

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
        self, service: str, state: ProgressState, *, message: str | None = None, **fields: Any
    ) -> None:
        """Report the progress of a service; `fields` are more of its fields."""
        self._services[service] = replace(self._services[service], state=state, message=message, **fields)
        await self._save_and_report()

    async def set_state(self, state: ApplyState, message: str) -> ApplyStatus:
        """Report the state of the whole apply; every state but `rolling_back` ends it."""
        ended = state is not ApplyState.ROLLING_BACK
        self._status = replace(
            self._status, state=state, message=message, finished_at=time.time() if ended else None
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


def interrupted(
    record: ApplyRecord, containers: Sequence[ContainerState] | None, *, command_running: bool, at: float
) -> ApplyStatus:
    """Return the apply by the state of its containers; these are None if no engine answers.

    `command_running` says that the compose command of that run has not ended. `at` is Unix seconds.
    """
    if containers is None:
        unknown = "no container engine answers, so its state is unknown"
        services = tuple(replace(each, message=unknown) for each in record.status.services)
    else:
        found = {each.service: each for each in containers}
        services = tuple(
            _seen(each, record, found.get(each.service, ContainerState(each.service)), command_running)
            for each in record.status.services
        )
    details = [f"{each.service}: {each.message}" for each in services]
    advice = "Wait for it, then check again" if command_running else "Apply again to finish, or roll back"
    return replace(
        record.status,
        state=ApplyState.INTERRUPTED,
        finished_at=record.status.finished_at or at,
        services=services,
        message=(
            f"The daemon ended while configuration {record.status.number} was applied. "
            f"{'; '.join(details)}{'. ' if details else ''}{advice}."
        ),
    )


def _seen(
    progress: ServiceProgress, record: ApplyRecord, container: ContainerState, command_running: bool
) -> ServiceProgress:
    before, after = record.before.get(progress.service), record.after.get(progress.service)
    if not container.running:
        doing = command_running and progress.state is ProgressState.RECREATING
        state = ProgressState.RECREATING if doing else ProgressState.FAILED
        message = "its compose command is still running" if doing else "it is down"
    elif _same(container.assignment, after):
        well = container.healthy is not False
        state = ProgressState.HEALTHY if well else ProgressState.FAILED
        message = "it runs as configured" if well else "it runs as configured, and its check fails"
    elif _same(container.assignment, before):
        state, message = ProgressState.PENDING, "it runs as before"
    else:
        gpus = container.assignment.indices if container.assignment else ()
        where = f"on GPU {', '.join(map(str, gpus))}" if gpus else "without a pin"
        state, message = ProgressState.FAILED, f"it runs neither as before nor as configured: {where}"
    target = container.assignment or after or Assignment(progress.service)
    return ServiceProgress(
        progress.service, state, target.gpu_index, container.container_id, message, target.more
    )


def _same(one: Assignment | None, other: Assignment | None) -> bool:
    """Whether two assignments create the same container; without a GPU both leave it unpinned."""
    pinned = [None if each is None or each.gpu_index is None else each for each in (one, other)]
    return pinned[0] == pinned[1]
