"""The database on a PostgreSQL server: connecting, checking and upgrading it."""

from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError

from cotenant.domain.errors import BadSetting, StoreError
from cotenant.store.location import Location
from cotenant.store.migrations import HEAD, VERSION_TABLE

_LOCK: Final = 0x436F5465
_CONNECTING: Final[dict[str, Any]] = {
    "application_name": "cotenant",
    "connect_timeout": 5,
    # How long to wait for a server that stops responding in the middle of a statement.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Statements prepared on one connection are not found on another behind a pooler.
    "prepare_threshold": None,
}


def connect(location: Location, *, lock_timeout_s: float) -> Engine:
    """Return an engine that connects when used, and reconnects if the connection was lost.

    Raises BadSetting for a URL that cannot be read, StoreError if the driver is not installed.
    """
    try:
        url = make_url(location.url or "")
        given = {name: value for name, value in _CONNECTING.items() if name not in url.query}
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=given)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{location} needs the PostgreSQL driver, which is not installed ({error.name})",
            hint="pip install 'cotenant[postgres]'",
        ) from None
    except (ArgumentError, ValueError):
        # Without the original message, which may contain the password.
        raise BadSetting(
            f"{location} cannot be read as a URL",
            hint="Write postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE; an @ in the password is %40.",
        ) from None

    def bound_waiting(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(lock_timeout_s * 1000))}")

    event.listen(engine, "begin", bound_waiting)
    return engine


def stored_version(connection: Connection, location: Location) -> int:
    """Return the number of the tables' revision, 0 if there are none yet. Raises StoreError for others'."""
    found = set(inspect(connection).get_table_names())
    if VERSION_TABLE in found:
        stored = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()  # noqa: S608
        if stored and len(stored) == len(HEAD) and stored.isdecimal():
            return int(stored)
        raise StoreError(
            f"{location} has revision {stored!r} of the tables, which no Cotenant makes",
            hint="Use another database.",
        )
    from cotenant.store.services.rows import configurations

    if theirs := found & set(configurations.metadata.tables):
        raise StoreError(
            f"{location} has a table {min(theirs)} of another program",
            hint="Use a database of its own, or a schema: add ?options=-csearch_path%3Dcotenant to the URL.",
        )
    return 0


def prepare(connection: Connection, location: Location) -> None:
    """Upgrade the tables. Raises StoreError for those of a newer Cotenant or another program."""
    head = int(HEAD)
    version = stored_version(connection, location)
    if version < head:
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        version = stored_version(connection, location)
    if version > head:
        raise StoreError(
            f"{location} has version {version} of the tables, and this Cotenant knows version {head}",
            hint="Run the Cotenant that wrote it or a newer one, or use another database.",
        )
    if version < head:
        from cotenant.store.migrate import upgrade

        upgrade(connection)
