from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import StoreError
from cotenant.domain.models import Parts
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, LoadTimes, Warmth
from cotenant.domain.units import MIB
from cotenant.store.journal import SqlJournal

T = TypeVar("T")

FOOTPRINT = FootprintRecord(
    at=1.0,
    model="llama",
    file_fingerprint="f1",
    recipe_fingerprint="r1",
    device_id=DeviceId("GPU-1"),
    device_name="RTX 3090",
    predicted=Parts(1000 * MIB, 100 * MIB, 50 * MIB, 512 * MIB),
    engine="llama-server b1",
    reported=Parts(1000 * MIB, 100 * MIB, 60 * MIB),
    measured_bytes=1460 * MIB,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cotenant.db"


def decision(number: int, model: str | None = "llama") -> DecisionRecord:
    facts = {"frees_bytes": 3 << 30, "idle_s": 312.5, "device": "GPU-1"}
    made = Decision(number, 7.5, DecisionKind.EVICT, model, f"evicted {number}", "ticket 4", facts)
    return DecisionRecord(1_700_000_000.25 + number, made)


def using(path: Path, scenario: Callable[[SqlJournal], Coroutine[Any, Any, T]], **options: Any) -> T:
    async def main() -> T:
        journal = SqlJournal(path, **options)
        try:
            return await scenario(journal)
        finally:
            await journal.close()

    return asyncio.run(main())


def keep(path: Path, *records: DecisionRecord) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for record in records:
            journal.record_decision(record)

    using(path, scenario)


def kept(path: Path, model: str | None = None, limit: int = 100) -> list[DecisionRecord]:
    return list(using(path, lambda journal: journal.decisions(model, limit)))


def test_decisions_outlive_the_run_with_all_they_say(path: Path) -> None:
    keep(path, decision(1), decision(2, model=None))
    assert kept(path) == [decision(1), decision(2, model=None)]


def test_the_last_decisions_on_one_model_come_oldest_first(path: Path) -> None:
    keep(path, *(decision(number, "a" if number % 2 else "b") for number in range(10)))
    assert [record.decision.number for record in kept(path, "a", limit=3)] == [5, 7, 9]


def test_what_was_recorded_is_read_at_once(path: Path) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for number in range(1000):
            journal.record_decision(decision(number))
            if number % 100 == 0:
                last = await journal.decisions(limit=1)
                assert last[0].decision.number == number

    using(path, scenario)


def test_the_oldest_records_beyond_the_bound_are_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cotenant.store import repositories

    monkeypatch.setattr(repositories, "DECISIONS", replace(repositories.DECISIONS, kept=5))
    keep(path, *map(decision, range(20)))
    assert [record.decision.number for record in kept(path)] == [15, 16, 17, 18, 19]


def test_overheads_and_errors_are_learned_from_footprints_of_earlier_runs(path: Path) -> None:
    async def load(journal: SqlJournal) -> None:
        for number in range(3):
            journal.record_footprint(replace(FOOTPRINT, at=float(number)))

    async def learn(journal: SqlJournal) -> None:
        assert await journal.overheads(512 * MIB) == {"RTX 3090": 332 * MIB}
        assert await journal.overheads(512 * MIB, "llama-server b2") == {"RTX 3090": 332 * MIB}
        assert await journal.estimate_errors() == {"llama": pytest.approx(202 / 1460)}

    using(path, load)
    using(path, learn)


def test_what_was_not_reported_or_measured_stays_unknown(path: Path) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for _ in range(3):
            journal.record_footprint(replace(FOOTPRINT, reported=None))
            journal.record_footprint(replace(FOOTPRINT, measured_bytes=None))
        assert await journal.overheads(512 * MIB) == {}

    using(path, scenario)


def test_load_times_are_told_by_what_the_page_cache_held(path: Path) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for seconds in (9.0, 4.0, 5.0):
            journal.record_load(LoadRecord(1.0, "llama", seconds, 1 << 30, Warmth.COLD))
        journal.record_load(LoadRecord(2.0, "qwen", 0.5, 1 << 30, Warmth.WARM))
        assert await journal.load_times() == {"llama": LoadTimes(5.0, None), "qwen": LoadTimes(None, 0.5)}

    using(path, scenario)


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    keep(path, decision(1))
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="version 99") as caught:
        SqlJournal(path)
    assert str(path) in caught.value.message
    assert "newer" in caught.value.hint
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (id)")
    with pytest.raises(StoreError, match="another program"):
        SqlJournal(path)


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
        journal.record_decision(decision(1))
        journal.record_decision(decision(2))
        assert await journal.decisions() == [decision(1), decision(2)]

    with caplog.at_level(logging.WARNING):
        using(tmp_path / "file" / "cotenant.db", scenario)
    assert len(caplog.records) == 1
    assert "nothing is remembered after this run" in caplog.text


def test_a_database_that_cannot_be_written_blocks_nobody_is_told_once_and_recovers(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(journal: SqlJournal) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            for number in range(50):
                journal.record_decision(decision(number))
            assert time.monotonic() - started < 0.05
            assert await journal.decisions() == []
            journal.record_decision(decision(50))
            assert await journal.decisions() == []
            other.execute("ROLLBACK")
        journal.record_decision(decision(51))
        assert await journal.decisions() == [decision(51)]

    with caplog.at_level(logging.WARNING):
        using(path, scenario, busy_timeout_s=0.01)
    told = [record.getMessage() for record in caplog.records if "written" in record.getMessage()]
    assert ["cannot be written" in line for line in told] == [True, False]
    assert "51 records were lost" in told[1]


def test_records_beyond_the_queue_are_left_out_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(journal: SqlJournal) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(1000):
                journal.record_decision(decision(number))
            other.execute("ROLLBACK")

    with caplog.at_level(logging.WARNING):
        using(path, scenario, max_waiting=10)
    assert "does not keep up" in caplog.text
    assert 10 <= len(kept(path, limit=10_000)) < 1000


@pytest.mark.slow
def test_several_processes_share_one_file_from_its_first_moment(path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from tests.store.test_journal import decision, keep
keep(Path({str(path)!r}), *map(decision, range(200)))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert said == [""] * 4
    assert len(kept(path, limit=10_000)) == 800


def test_what_comes_after_closing_is_left_out(path: Path) -> None:
    async def scenario() -> None:
        journal = SqlJournal(path)
        await journal.close()
        journal.record_decision(decision(1))
        assert await journal.decisions() == []
        assert await journal.load_times() == {}
        await journal.close()

    asyncio.run(scenario())
    assert kept(path) == []


def test_importing_the_journal_does_not_import_sqlalchemy() -> None:
    program = "import sys, cotenant.store.journal; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
