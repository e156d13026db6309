"""A backup: what it holds, its JSON file, and restoring it on a machine that may have other GPUs."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cotenant import __version__
from cotenant.atomic_files import write_durably
from cotenant.domain.errors import StoreError
from cotenant.domain.records import FootprintRecord, LoadRecord
from cotenant.services.model import Assignment, GpuRef, SavedConfiguration, SeenDevice

if TYPE_CHECKING:
    from cotenant.store.database import Session

FORMAT: Final = "cotenant-backup"
FORMAT_VERSION: Final = 1
_MAX_BYTES: Final = 256 << 20
_HINT: Final = "Give a file that `cotenant db backup` wrote."


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
        moved = (tuple(relocate(each).after for each in entry.assignments) for entry in backup.history)
        entries = zip(backup.history, moved, strict=True)
        services.replace_history([replace(entry, assignments=own, apply=None) for entry, own in entries])
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
    now = {device.device_id: device.gpu_index for device in here}

    def moved(gpu: GpuRef) -> GpuRef:
        id_ = gpu.device_id
        if id_ is None and gpu.gpu_index is not None:
            id_ = by_index.get(gpu.gpu_index)
        return GpuRef(None if id_ is None else now.get(id_), id_)

    def relocate(before: Assignment) -> Relocated:
        after = before.on(map(moved, before.gpus))
        id_ = after.device_id
        if id_ is None:
            outcome = Outcome.UNPINNED if before.gpu_index is None else Outcome.UNKNOWN
            return Relocated(outcome, before, after)
        return Relocated(Outcome.KEPT if id_ in now else Outcome.MISSING, before, after, names.get(id_))

    return relocate


def write_backup(path: Path, backup: Backup, *, overwrite: bool = False) -> None:
    """Write the file whole or not at all. Raises StoreError, also if the file exists already."""
    if not overwrite and path.exists():
        raise StoreError(f"{path} already exists", hint="Choose another name, or give --force to replace it.")
    text = json.dumps(asdict(backup), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data, 0o600)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}", hint="Check the disk and the rights."
        ) from error


def read_backup(path: Path) -> Backup:
    """Read a backup. Raises StoreError if it is not a backup, is broken, or is from a newer Cotenant."""
    from pydantic import TypeAdapter, ValidationError

    data = _contents(path)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not a backup: it is not JSON ({error})", hint=_HINT) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(f"{path} is not a backup of Cotenant", hint=_HINT)
    version = document.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreError(
            f"{path} is a backup of format {version}, made by Cotenant {document.get('program')}, "
            f"and this Cotenant reads format {FORMAT_VERSION}",
            hint="Restore it with the Cotenant that made it or a newer one.",
        )
    if not _in_range(document):
        raise StoreError(f"{path} is a broken backup: it holds a number out of range", hint=_HINT)
    try:
        backup = TypeAdapter(Backup).validate_json(data, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise StoreError(f"{path} is a broken backup: {where}: {fault['msg']}", hint=_HINT) from None
    numbers = [entry.number for entry in backup.history]
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
        raise StoreError(f"{path} is a broken backup: its history is not numbered in order", hint=_HINT)
    return backup


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.open(file) if packed else file).read(_MAX_BYTES + 1)  # noqa: SIM115
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(f"{path} is a broken backup: {error}", hint=_HINT) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from error
    if len(data) > _MAX_BYTES:
        raise StoreError(f"{path} is not a backup: it is larger than {_MAX_BYTES >> 20} MiB", hint=_HINT)
    return data


def _in_range(value: Any) -> bool:
    """Whether every number is one that a database can hold."""
    if isinstance(value, dict | list):
        return all(map(_in_range, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(1 << 63) < value < 1 << 63
