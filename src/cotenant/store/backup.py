"""The contents of a backup, and restoring it on a machine that may have other GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cotenant import __version__
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import StoreError
from cotenant.domain.records import FootprintRecord, LoadRecord
from cotenant.services.model import Assignment, SavedConfiguration, SeenDevice

if TYPE_CHECKING:
    from cotenant.store.database import Session

FORMAT: Final = "cotenant-backup"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Backup:
    """The content of a database that a backup keeps.

    `devices` are the GPUs known when it was made, `created_at` is ISO 8601 in UTC. Decisions are left out:
    they describe the past of one machine, and no plan uses them.
    """

    format: str
    version: int
    program: str
    created_at: str
    devices: tuple[SeenDevice, ...]
    configuration: SavedConfiguration | None
    history: tuple[SavedConfiguration, ...]
    settings: dict[str, dict[str, Any]]
    footprints: tuple[FootprintRecord, ...]
    loads: tuple[LoadRecord, ...]


class Outcome(StrEnum):
    """The result for one assignment on the machine it was restored to."""

    KEPT = "kept"
    UNPINNED = "unpinned"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Relocated:
    """An assignment as it was and as it is now; `name` is its GPU's name, if known.

    `missing`: its GPU is not on this machine, so it is left unpinned until the GPU is seen here. `unknown`:
    the backup does not say which GPU its index meant.
    """

    outcome: Outcome
    before: Assignment
    after: Assignment
    name: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did: the configuration's new number, None if the backup held none."""

    number: int | None
    assignments: tuple[Relocated, ...]
    settings: int
    learned: int


def take(session: Session, at: float) -> Backup:
    """Read everything worth keeping in one transaction; `at` is Unix seconds."""
    return Backup(
        format=FORMAT,
        version=FORMAT_VERSION,
        program=__version__,
        created_at=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        devices=tuple(session.services.devices()),
        configuration=session.services.current(),
        history=tuple(reversed(session.services.history())),
        settings={key: dict(value) for key, value in session.services.settings().items()},
        footprints=tuple(session.records.footprints.newest()),
        loads=tuple(session.records.loads.newest()),
    )


def restore(
    session: Session,
    backup: Backup,
    here: Sequence[SeenDevice],
    at: float,
    save_replaced: Callable[[Backup], None] | None = None,
) -> RestoreResult:
    """Write a backup into a database of the machine whose GPUs are `here`, in the session's transaction.

    The configuration is saved under a new number, never applied. An empty history is filled with the
    backup's; any other stays, since its numbers name this machine's generated files. The results of applies
    are left out: this machine's containers were not made by them. Where there is a GPU configuration,
    `save_replaced` is called with a backup of it before anything changes; without it, raises StoreError.
    """
    services = session.services
    services.lock()
    if backup.configuration is not None and not services.is_empty():
        if save_replaced is None:
            raise StoreError(
                "there is a GPU configuration already",
                hint="Give --force to replace it; the current one is then kept in a backup of its own.",
            )
        save_replaced(take(session, at))
    services.see_devices(here)
    relocate = _relocation(backup.devices, here)
    if backup.history and services.is_empty():
        services.replace_history([_relocated(entry, relocate) for entry in backup.history])
    number: int | None = None
    restored: tuple[Relocated, ...] = ()
    if backup.configuration is not None:
        restored = tuple(relocate(assignment) for assignment in backup.configuration.assignments)
        after = [each.after for each in restored]
        number = services.save(backup.configuration.strategy, after, at).number
    for key, value in backup.settings.items():
        services.set_setting(key, value, at)
    records = session.records
    learned = records.footprints.merge(backup.footprints, lambda record: record.at)
    learned += records.loads.merge(backup.loads, lambda record: record.at)
    return RestoreResult(number, restored, len(backup.settings), learned)


def _relocation(then: Sequence[SeenDevice], here: Sequence[SeenDevice]) -> Callable[[Assignment], Relocated]:
    """Return the rule that finds an assignment's GPU on this machine, by its UUID alone."""
    by_index = {device.gpu_index: device.device_id for device in then}
    names = {device.device_id: device.name for device in then}
    now: Mapping[DeviceId, int] = {device.device_id: device.gpu_index for device in here}

    def relocate(before: Assignment) -> Relocated:
        id_ = before.device_id
        if id_ is None and before.gpu_index is not None:
            id_ = by_index.get(before.gpu_index)
        after = replace(before, gpu_index=None if id_ is None else now.get(id_), device_id=id_)
        if id_ is None:
            outcome = Outcome.UNPINNED if before.gpu_index is None else Outcome.UNKNOWN
            return Relocated(outcome, before, after)
        return Relocated(Outcome.KEPT if id_ in now else Outcome.MISSING, before, after, names.get(id_))

    return relocate


def _relocated(entry: SavedConfiguration, relocate: Callable[[Assignment], Relocated]) -> SavedConfiguration:
    return replace(entry, assignments=tuple(relocate(each).after for each in entry.assignments), apply=None)
