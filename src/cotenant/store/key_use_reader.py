"""What API keys have used, for a command that only reads it."""

import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final

from cotenant.domain.keys import KeyUse, KeyUses
from cotenant.store.file_reader import read_file
from cotenant.store.location import locate

_NAMES: Final = tuple(each.name for each in fields(KeyUse))
_SUMS: Final = ", ".join(f"SUM({name}) AS {name}" for name in _NAMES)
_QUERY: Final = f"SELECT key, day = ? AS on_day, {_SUMS} FROM key_use GROUP BY key, on_day"  # noqa: S608


def read_key_uses(database: Path | str, day: str) -> Mapping[str, KeyUses]:
    """Return what each API key has used, in all and on a day; nothing is changed. Raises StoreError.

    Nothing is known of a database that is not there, or whose tables are not today's.
    """
    location = locate(database)
    if location.path is None:
        from cotenant.store.maintenance import key_uses

        return key_uses(location, day)
    path = location.path
    return (read_file(path, lambda file: _sums(file, day)) or {}) if path.is_file() else {}


def _sums(file: sqlite3.Connection, day: str) -> Mapping[str, KeyUses]:
    found: dict[str, KeyUses] = {}
    for row in file.execute(_QUERY, (day,)):
        use, known = KeyUse(*(row[name] for name in _NAMES)), found.get(row["key"], KeyUses())
        found[row["key"]] = KeyUses(use if row["on_day"] else known.day, known.total + use)
    return found
