import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import StoreError
from cotenant.domain.records import LoadTimes, ModelOnEngine
from cotenant.store.database import open_engine
from cotenant.store.location import locate
from cotenant.store.maintenance import database_status, upgrade
from cotenant.store.migrate import configuration
from cotenant.store.migrations import HEAD, VERSION_TABLE
from cotenant.store.services.rows import metadata
from cotenant.store.sqlite import APPLICATION_ID
from cotenant.store.store import Store
from tests.store.harness import Place, decision, keep, kept, opened, run_sql

VERSION_1 = (
    """CREATE TABLE footprints (id INTEGER NOT NULL, at FLOAT NOT NULL, model VARCHAR NOT NULL,
    file_fingerprint VARCHAR NOT NULL, recipe_fingerprint VARCHAR NOT NULL, device_id VARCHAR NOT NULL,
    device_name VARCHAR NOT NULL, engine VARCHAR, predicted_weights_bytes INTEGER NOT NULL,
    predicted_kv_bytes INTEGER NOT NULL, predicted_compute_bytes INTEGER NOT NULL,
    predicted_overhead_bytes INTEGER NOT NULL, reported_weights_bytes INTEGER, reported_kv_bytes INTEGER,
    reported_compute_bytes INTEGER, reported_overhead_bytes INTEGER, measured_bytes INTEGER,
    PRIMARY KEY (id))""",
    """CREATE TABLE loads (id INTEGER NOT NULL, at FLOAT NOT NULL, model VARCHAR NOT NULL,
    seconds FLOAT NOT NULL, bytes INTEGER NOT NULL, warmth VARCHAR NOT NULL, PRIMARY KEY (id))""",
    """CREATE TABLE decisions (id INTEGER NOT NULL, at FLOAT NOT NULL, number INTEGER NOT NULL,
    scheduler_at FLOAT NOT NULL, kind VARCHAR NOT NULL, model VARCHAR, text VARCHAR NOT NULL,
    cause VARCHAR NOT NULL, facts JSON NOT NULL, PRIMARY KEY (id))""",
    "CREATE INDEX ix_decisions_model ON decisions (model)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
)
"""What Cotenant 0.1.0 made."""
_RECORDED = (
    """INSERT INTO footprints VALUES (1, 1.0, 'llama', 'f1', 'r1', 'GPU-1', 'RTX 3090', 'llama-server b1',
    1048576000, 104857600, 52428800, 536870912, 1048576000, 104857600, 62914560, 0, 1530920960)""",
    "INSERT INTO loads VALUES (1, 2.0, 'llama', 4.5, 1073741824, 'cold')",
    """INSERT INTO decisions VALUES (1, 1700000001.25, 1, 7.5, 'evict', 'llama', 'evicted 1', 'ticket 4',
    '{"frees_bytes": 3221225472, "idle_s": 312.5, "device": "GPU-1"}')""",
)


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    path = tmp_path / "cotenant.db"
    run_sql(path, *VERSION_1, *_RECORDED)
    return path


def test_the_constant_names_the_newest_script_and_revisions_are_numbered_in_order() -> None:
    scripts = ScriptDirectory.from_config(configuration())
    assert scripts.get_current_head() == HEAD
    numbered = [script.revision for script in scripts.walk_revisions()][::-1]
    assert numbered == [f"{number:04}" for number in range(1, int(HEAD) + 1)]


def test_migrations_make_the_tables_that_the_program_uses(place: Place) -> None:
    engine = open_engine(locate(place), busy_timeout_s=1.0)
    try:
        with engine.begin() as connection:
            options = {"version_table": VERSION_TABLE, "compare_type": True}
            context = MigrationContext.configure(connection, opts=options)
            assert context.get_current_revision() == HEAD
            assert compare_metadata(context, metadata) == []
    finally:
        engine.dispose()


def test_a_file_of_version_1_is_upgraded_at_start_and_loses_nothing(version_1: Path) -> None:
    assert database_status(locate(version_1)).revision == "0001"
    assert kept(version_1) == [decision(1)]

    async def look(store: Store) -> None:
        assert await store.services.current() is None
        past = await store.journal.past_runs(0)
        assert past.errors == {ModelOnEngine("llama", EngineKind.LLAMA_CPP): pytest.approx(202 / 1460)}
        assert past.load_times == {"llama": LoadTimes(4.5, None)}

    opened(version_1, look)
    assert database_status(locate(version_1)).revision == HEAD
    with closing(sqlite3.connect(version_1)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (int(HEAD),)


def test_an_upgraded_file_is_no_different_from_a_new_one(version_1: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    upgrade(locate(new))
    upgrade(locate(version_1))

    def schema(path: Path) -> list[str]:
        with closing(sqlite3.connect(path)) as file:
            made = file.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
            return sorted("".join(sql.split()) for (sql,) in made)

    assert schema(version_1) == schema(new)


def test_an_upgrade_that_fails_changes_nothing(version_1: Path) -> None:
    run_sql(version_1, "CREATE VIEW gpu_devices AS SELECT 1 AS one")
    before = dump(version_1)
    with pytest.raises(StoreError, match="gpu_devices"):
        upgrade(locate(version_1))
    assert dump(version_1) == before
    assert database_status(locate(version_1)).revision == "0001"


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as file:
        return list(file.iterdump())


def test_upgrading_twice_changes_nothing(place: Place) -> None:
    assert upgrade(locate(place)).revision is None
    keep(place, decision(1))
    assert upgrade(locate(place)).revision == HEAD
    assert kept(place) == [decision(1)]


@pytest.mark.slow
def test_a_start_on_an_up_to_date_database_imports_no_alembic(place: Place) -> None:
    keep(place, decision(1))
    program = f"""
import asyncio, sys
from pathlib import PosixPath
from cotenant.store.store import Store
from cotenant.store.writer import Writer
early = "sqlalchemy" in sys.modules
store = Store(Writer({place!r}))
asyncio.run(store.services.current())
asyncio.run(store.close())
sys.exit(early or "alembic" in sys.modules or "sqlalchemy" not in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.slow
def test_help_imports_no_database_at_all() -> None:
    program = """
import sys
from cotenant.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
sys.exit("sqlalchemy" in sys.modules or "alembic" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0
