"""A backup as a JSON file, compressed if its name ends in `.gz`."""

import gzip
import json
import math
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from cotenant.atomic_files import write_durably
from cotenant.domain.errors import StoreError
from cotenant.store.backup import FORMAT, FORMAT_VERSION, Backup

_MAX_BYTES: Final = 256 << 20
_MAX_INTEGER: Final = 2**63 - 1
_OWNER_ONLY: Final = 0o600
_HINT: Final = "Give a file that `cotenant db backup` wrote."


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
        write_durably(path, data, _OWNER_ONLY)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}", hint="Check the disk and the rights."
        ) from error


def read_backup(path: Path) -> Backup:
    """Read a backup. Raises StoreError if it is not a backup, is broken, or is from a newer Cotenant."""
    data = _contents(path)
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
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
    return _checked(path, data)


def _checked(path: Path, data: bytes) -> Backup:
    from pydantic import TypeAdapter, ValidationError

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
    if isinstance(value, dict):
        return all(_in_range(each) for each in value.values())
    if isinstance(value, list):
        return all(_in_range(each) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -_MAX_INTEGER <= value <= _MAX_INTEGER


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
