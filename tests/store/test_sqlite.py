import asyncio
import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.errors import StoreError
from cotenant.store.store import SqlJournal, Store
from cotenant.store.writer import Writer
from tests.store.harness import decision, keep, kept, locked, opened, run_sql, using
from tests.support.mounts import mounted, remount


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cotenant.db"


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    keep(path, decision(1))
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="version 99") as caught:
        SqlJournal(Writer(path))
    assert str(path) in caught.value.message
    assert "newer" in caught.value.hint
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (id)")
    with pytest.raises(StoreError, match="another program"):
        SqlJournal(Writer(path))


@pytest.mark.parametrize("how", ["overwritten", "torn", "cut in half"])
def test_a_damaged_file_is_moved_aside_and_begun_anew(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(path, *map(decision, range(300)))
    whole = path.read_bytes()
    garbage = {
        "overwritten": b"no database" * 2000,
        "torn": whole[:4096] + b"\xff" * (len(whole) - 4096),
        "cut in half": whole[: len(whole) // 2],
    }[how]
    path.write_bytes(garbage)
    with caplog.at_level(logging.WARNING):
        keep(path, decision(1))
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == garbage
    assert aside.name in caplog.text
    assert kept(path) == [decision(1)]


def test_a_place_that_cannot_be_written_is_told_once_and_serves_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way of the directory")

    async def scenario(journal: SqlJournal) -> None:
        journal.record(decision(1))
        journal.record(decision(2))
        assert await journal.decisions() == [decision(1), decision(2)]

    with caplog.at_level(logging.WARNING):
        using(tmp_path / "file" / "cotenant.db", scenario)
    assert len(caplog.records) == 1
    assert "nothing is remembered after this run" in caplog.text


def test_a_database_of_another_program_is_not_touched(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (id)")
    before = path.read_bytes()
    with pytest.raises(StoreError):
        SqlJournal(Writer(path))
    assert path.read_bytes() == before


def test_gpu_configuration_is_never_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of the directory")

    async def scenario(store: Store) -> None:
        for asked in (store.services.current(), store.services.set_setting("key", {})):
            with pytest.raises(StoreError, match="cannot be used") as caught:
                await asked
            assert "rights" in caught.value.hint

    opened(tmp_path / "file" / "cotenant.db", scenario)


def test_a_place_that_can_be_written_later_is_taken_up_with_what_was_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way of the directory")
    path = obstacle / "cotenant.db"
    clock = ManualClock()

    async def scenario(store: Store) -> None:
        store.journal.record(decision(1))
        assert await store.journal.decisions() == [decision(1)]
        obstacle.unlink()
        assert await store.journal.decisions() == [decision(1)]
        assert not path.exists()
        clock.advance(5.0)
        store.journal.record(decision(2))
        assert await store.services.current() is None

    with caplog.at_level(logging.WARNING):
        opened(path, scenario, clock=clock)
    assert "1 records from memory" in caplog.text
    assert kept(path) == [decision(1), decision(2)]


def test_a_database_that_another_program_holds_at_the_start_is_taken_up_when_it_is_free(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(path, decision(1))
    clock = ManualClock()
    holder = ExitStack()

    async def scenario(store: Store) -> None:
        store.journal.record(decision(2))
        await store.journal.decisions()
        holder.close()
        clock.advance(5.0)
        store.journal.record(decision(3))

    holder.enter_context(locked(path))
    with caplog.at_level(logging.WARNING):
        opened(path, scenario, clock=clock, busy_timeout_s=0.01)
    refused, recovered = caplog.messages
    assert "database is locked" in refused
    assert "can be used again" in recovered
    assert kept(path) == [decision(1), decision(2), decision(3)]


def test_a_read_only_file_system_is_told_once_and_taken_up_when_it_can_be_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(path, decision(1))
    clock = ManualClock()

    async def scenario(store: Store) -> None:
        store.journal.record(decision(2))
        assert await store.journal.decisions() == [decision(2)]
        remount(path.parent, "rw")
        clock.advance(5.0)
        store.journal.record(decision(3))
        assert await store.journal.decisions() == [decision(1), decision(2), decision(3)]

    with mounted(path.parent, "--bind", str(path.parent)), caplog.at_level(logging.WARNING):
        remount(path.parent, "ro")
        opened(path, scenario, clock=clock)
    refused, recovered = caplog.messages
    assert "nothing is remembered after this run unless it recovers" in refused
    assert "1 records from memory" in recovered
    assert kept(path) == [decision(1), decision(2), decision(3)]


@pytest.mark.parametrize("how", ["deleted", "replaced", "its folder deleted"])
def test_a_file_that_is_gone_while_it_is_used_is_begun_anew_and_told(
    path: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(other := tmp_path / "other" / "cotenant.db", decision(0))

    def get_out_of_the_way() -> None:
        shutil.rmtree(path.parent)
        if how != "its folder deleted":
            path.parent.mkdir()
        if how == "replaced":
            other.rename(path)

    async def scenario(store: Store) -> None:
        store.journal.record(decision(1))
        assert await store.journal.decisions() == [decision(1)]
        get_out_of_the_way()
        store.journal.record(decision(2))
        await store.services.set_setting("key", {"n": 1})
        assert (await store.services.settings())["key"] == {"n": 1}

    with caplog.at_level(logging.WARNING):
        opened(path, scenario)
    assert "the file was deleted or replaced" in caplog.text
    assert kept(path) == ([decision(0), decision(2)] if how == "replaced" else [decision(2)])


def test_a_file_that_is_damaged_while_it_is_used_is_moved_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()

    async def scenario(store: Store) -> None:
        store.journal.record(decision(1))
        await store.journal.decisions()
        run_sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        await asyncio.to_thread(path.write_bytes, b"no database" * 5000)
        for number in (2, 3):
            store.journal.record(decision(number))
            await store.journal.decisions()
            clock.advance(5.0)

    with caplog.at_level(logging.WARNING):
        opened(path, scenario, clock=clock)
    assert "is damaged: it is now" in caplog.text
    assert kept(path) == [decision(2), decision(3)]


@pytest.mark.slow
def test_what_a_full_disk_refuses_is_kept_until_there_is_room(path: Path) -> None:
    # A limit on the length of files is as near to a full disk as a test without a disk of its own comes.
    program = f"""
import asyncio, resource
from pathlib import PosixPath
from tests.store.harness import decision, kept, opened
path = {path!r}

async def scenario(store):
    store.journal.record(decision(1))
    await store.journal.decisions()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for number in range(2, 300):
        store.journal.record(decision(number))
    assert len(await store.journal.decisions(limit=1000)) in (298, 299)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

opened(path, scenario)
assert kept(path, limit=1000) == [decision(number) for number in range(1, 300)]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "can be used again" in done.stderr
