"""Where a database is: a file, or a PostgreSQL server's URL; and the errors of one that cannot be used."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.errors import BadSetting, StoreError

APPLICATION_ID: Final = 0x436F5465
"""`CoTe` in an SQLite file's header. One without it belongs to another program and is never written."""
_POSTGRES: Final = ("postgresql+psycopg", "postgresql", "postgres")
_HINT: Final = "Give a file, or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."


@dataclass(frozen=True, slots=True)
class Location:
    """A database: PostgreSQL at `url`, else SQLite's file at `path`, else SQLite in memory.

    Printed, it shows no password.
    """

    path: Path | None = None
    url: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.url is None else _without_password(self.url)

    __repr__ = __str__


def locate(where: Path | str | Location) -> Location:
    """Return where the database is: a path, `sqlite:///PATH`, or a PostgreSQL URL.

    Raises BadSetting for a URL of anything else.
    """
    if isinstance(where, Location):
        return where
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        if not text.strip():
            raise BadSetting("the database's name is empty", hint=_HINT)
        return Location(path=Path(text).expanduser())
    scheme, _, rest = text.partition("://")
    if scheme.lower() in _POSTGRES:
        return Location(url=f"{_POSTGRES[0]}://{rest}")
    if scheme.lower() == "sqlite" and len(rest) > 1 and rest.startswith("/"):
        # As SQLAlchemy writes them: three slashes before a relative path, four before an absolute one.
        return Location(path=Path(rest[1:]).expanduser())
    raise BadSetting(f"{_without_password(text)} is not a database that Cotenant can use", hint=_HINT)


def unusable(location: Location, why: str) -> StoreError:
    """Return the error for a database that cannot be opened or used."""
    hint = "Check that it runs and that the URL, the user and the password are right."
    if location.url is None:
        hint = "Check the disk, the rights on the file and its folder, and who else holds it locked."
    return StoreError(f"{location} cannot be used: {why}", hint=hint)


def explain(error: Exception) -> str:
    """Return what went wrong in one line, without the failed statement."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _without_password(url: str) -> str:
    """Replace passwords by `***`. One that holds an `@` or `/` is taken to end at the last `@`."""
    hidden = re.sub(r"(?<=://)([^:@/]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", hidden)
