import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.errors import StoreError
from cotenant.store.store import SqlJournal, Store
from cotenant.store.writer import Writer
from tests.store.harness import decision, keep, kept, opened, using


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


@pytest.mark.parametrize("how", ["overwritten", "torn"])
def test_a_damaged_file_is_moved_aside_and_begun_anew(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(path, *map(decision, range(300)))
    whole = path.read_bytes()
    garbage = b"no database" * 2000 if how == "overwritten" else whole[:4096] + b"\xff" * (len(whole) - 4096)
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
