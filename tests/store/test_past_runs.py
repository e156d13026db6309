"""Past runs, as commands read them, are those that the journal reads."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cotenant.domain.records import LoadRecord, PastRuns, Warmth
from cotenant.domain.units import MIB
from cotenant.store.past_runs import read_past_runs
from cotenant.store.store import SqlJournal
from tests.store.harness import FOOTPRINT, Place, kept, using

_LOAD = LoadRecord(1.0, "llama", 4.5, 1 << 30, Warmth.COLD)


async def _record(journal: SqlJournal) -> PastRuns:
    for number in range(3):
        journal.record(replace(FOOTPRINT, at=float(number)))
    journal.record(_LOAD)
    journal.record(replace(_LOAD, seconds=2.5, warmth=Warmth.WARM))
    return await journal.past_runs(512 * MIB)


def test_past_runs_are_those_that_the_journal_reads(place: Place) -> None:
    written = using(place, _record)
    assert written.load_times
    assert read_past_runs(place, 512 * MIB) == written


def test_reading_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "cotenant.db"
    using(path, _record)
    before = sorted(tmp_path.iterdir())
    read_past_runs(path, 0)
    assert sorted(tmp_path.iterdir()) == before
    assert read_past_runs(tmp_path / "absent.db", 0) == PastRuns()
    assert sorted(tmp_path.iterdir()) == before


def test_reading_waits_for_no_daemon_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "cotenant.db"
    written = using(path, _record)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM loads")
        assert read_past_runs(path, 512 * MIB) == written
        writer.execute("ROLLBACK")


def test_a_damaged_file_is_renamed_as_the_daemon_does(tmp_path: Path) -> None:
    path = tmp_path / "cotenant.db"
    path.write_bytes(b"no database" * 1000)
    assert read_past_runs(path, 0) == PastRuns()
    assert len([*tmp_path.glob("cotenant.db.damaged-*")]) == 1
    assert kept(path) == []
