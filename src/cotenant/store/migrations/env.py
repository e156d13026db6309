"""Runs revisions on the connection, and in the transaction, that `cotenant.store.migrate` hands over."""

from alembic import context

from cotenant.store.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
