"""Alembic's scripts, run by `cotenant.store.migrate`. A script that was released is never changed."""

from typing import Final

HEAD: Final = "0004"
"""The newest revision in `versions`; revisions are numbered, so that a newer one is recognised."""
VERSION_TABLE: Final = "cotenant_schema_version"
"""Where Alembic keeps the revision: not under its usual name, which another program may have taken."""
