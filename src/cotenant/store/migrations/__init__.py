"""Alembic's scripts, run by `cotenant.store.migrate`. A script that was released is never changed."""
