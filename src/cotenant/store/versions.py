"""The version of the tables that this program works with, without importing Alembic."""

from typing import Final

HEAD: Final = "0002"
"""The newest revision in `migrations/versions`; revisions are numbered, so that a newer one is recognised."""
VERSION_TABLE: Final = "cotenant_schema_version"
"""Where Alembic keeps the revision: not under its usual name, which another program may have taken."""


def number_of(revision: str) -> int | None:
    """Return a revision's number; None for one of another program."""
    return int(revision) if len(revision) == len(HEAD) and revision.isdecimal() else None
