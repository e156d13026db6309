"""Upgrading the tables to the version that this program works with. Importing it imports Alembic."""

import logging
import threading

# Alembic logs about its own parts as soon as it is imported.
logging.getLogger("alembic").setLevel(logging.WARNING)

from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402
from sqlalchemy import Connection  # noqa: E402

_one_at_a_time = threading.Lock()


def configuration(connection: Connection | None = None) -> Config:
    """Return Alembic's settings for the scripts in this package, to run on the connection if one is given."""
    config = Config()
    config.set_main_option("script_location", "cotenant.store:migrations")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, *, unstamped: bool = False) -> None:
    """Run every revision that is missing, in the transaction of the connection.

    `unstamped` says that the tables of the first revision were created before revisions were recorded.
    """
    config = configuration(connection)
    # Alembic passes its settings to the scripts through globals.
    with _one_at_a_time:
        if unstamped:
            command.stamp(config, "0001")
        command.upgrade(config, "head")
