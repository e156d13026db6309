"""What a backup holds, and putting it back where other GPUs may be."""

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
    """All that is worth keeping of a database, whatever kind it is.

    `devices` are the GPUs known when it was made, `created_at` is ISO 8601 in UTC. Decisions are left out:
    they tell of one machine's past, and nothing is learned from them.
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


class Fate(StrEnum):
    """What became of an assignment on the machine it was restored to."""

    KEPT = "kept"
    UNPINNED = "unpinned"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Restored:
    """An assignment as it was and as it is now; `name` is what its GPU was called, if that is known.

    `missing`: its GPU is not on this machine, so it is left unpinned until the GPU is seen here. `unknown`:
    the backup does not tell which GPU its index meant.
    """

    fate: Fate
    before: Assignment
    after: Assignment
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Restoration:
    """What a restore did: the configuration's new number, None if the backup held none."""

    number: int | None
    assignments: tuple[Restored, ...]
    settings: int
    learned: int


def take(session: Session, at: float) -> Backup:
    """Read everything worth keeping, as one transaction sees it; `at` is Unix seconds."""
    footprints, loads = session.records.learned()
    return Backup(
        format=FORMAT,
        version=FORMAT_VERSION,
        program=__version__,
        created_at=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        devices=tuple(session.services.devices()),
        configuration=session.services.current(),
        history=tuple(reversed(session.services.history())),
        settings={key: dict(value) for key, value in session.services.settings().items()},
        footprints=tuple(footprints),
        loads=tuple(loads),
    )


def put_back(
    session: Session,
    backup: Backup,
    here: Sequence[SeenDevice],
    at: float,
    keep_safe: Callable[[Backup], None] | None = None,
) -> Restoration:
    """Write a backup into a database of the machine whose GPUs are `here`, in the session's transaction.

    The configuration is saved under a new number, never applied. An empty history is given the backup's; one
    that is not stays, since its numbers name this machine's generated files. How applies ended is left out:
    this machine's containers were not made by them. Where there is a GPU configuration, `keep_safe` is given
    a backup of what is there before anything changes; without it, raises StoreError.
    """
    services = session.services
    services.lock()
    if backup.configuration is not None and not services.is_empty():
        if keep_safe is None:
            raise StoreError(
                "there is a GPU configuration already",
                hint="Give --force to replace it; what is there is then kept in a backup of its own.",
            )
        keep_safe(take(session, at))
    services.see_devices(here)
    relocate = _relocation(backup.devices, here)
    if backup.history and services.is_empty():
        services.replace_history([_elsewhere(entry, relocate) for entry in backup.history])
    number: int | None = None
    restored: tuple[Restored, ...] = ()
    if backup.configuration is not None:
        restored = tuple(relocate(assignment) for assignment in backup.configuration.assignments)
        after = [each.after for each in restored]
        number = services.save(backup.configuration.strategy, after, at).number
    for key, value in backup.settings.items():
        services.set_setting(key, value, at)
    learned = session.records.learn(backup.footprints, backup.loads)
    return Restoration(number, restored, len(backup.settings), learned)


def _relocation(then: Sequence[SeenDevice], here: Sequence[SeenDevice]) -> Callable[[Assignment], Restored]:
    """Return the rule that finds an assignment's GPU on this machine, by its UUID alone."""
    by_index = {device.gpu_index: device.device_id for device in then}
    names = {device.device_id: device.name for device in then}
    now: Mapping[DeviceId, int] = {device.device_id: device.gpu_index for device in here}

    def relocate(before: Assignment) -> Restored:
        id_ = before.device_id
        if id_ is None and before.gpu_index is not None:
            id_ = by_index.get(before.gpu_index)
        after = replace(before, gpu_index=None if id_ is None else now.get(id_), device_id=id_)
        if id_ is None:
            fate = Fate.UNPINNED if before.gpu_index is None else Fate.UNKNOWN
            return Restored(fate, before, after)
        return Restored(Fate.KEPT if id_ in now else Fate.MISSING, before, after, names.get(id_))

    return relocate


def _elsewhere(entry: SavedConfiguration, relocate: Callable[[Assignment], Restored]) -> SavedConfiguration:
    return replace(entry, assignments=tuple(relocate(each).after for each in entry.assignments), apply=None)
