import asyncio
import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.records import LoadRecord, LoadTimes, ModelOnEngine, PastRuns, Warmth
from cotenant.domain.units import MIB
from cotenant.store.store import SqlJournal
from cotenant.store.writer import Writer
from tests.store.harness import FOOTPRINT, Place, decision, keep, kept, locked, using


def test_decisions_outlive_the_run_with_all_they_say(place: Place) -> None:
    keep(place, decision(1), decision(2, model=None))
    assert kept(place) == [decision(1), decision(2, model=None)]


def test_the_last_decisions_on_one_model_come_oldest_first(place: Place) -> None:
    keep(place, *(decision(number, "a" if number % 2 else "b") for number in range(10)))
    assert [record.decision.number for record in kept(place, "a", limit=3)] == [5, 7, 9]


def test_what_was_recorded_is_read_at_once(place: Place) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for number in range(1000):
            journal.record(decision(number))
            if number % 100 == 0:
                last = await journal.decisions(limit=1)
                assert last[0].decision.number == number

    using(place, scenario)


def test_the_oldest_records_beyond_the_bound_are_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cotenant.store import repositories

    monkeypatch.setattr(repositories, "MAX_DECISIONS", 5)
    keep(place, *map(decision, range(20)))
    assert [record.decision.number for record in kept(place)] == [15, 16, 17, 18, 19]


def test_overheads_and_errors_are_learned_from_footprints_of_earlier_runs(place: Place) -> None:
    async def load(journal: SqlJournal) -> None:
        for number in range(3):
            journal.record(replace(FOOTPRINT, at=float(number)))

    async def learn(journal: SqlJournal) -> None:
        past = await journal.past_runs(512 * MIB)
        assert past.overheads == {(EngineKind.LLAMA_CPP, "RTX 3090"): 332 * MIB}
        assert past.errors == {ModelOnEngine("llama", EngineKind.LLAMA_CPP): pytest.approx(202 / 1460)}

    using(place, load)
    using(place, learn)


def test_what_was_not_reported_or_measured_stays_unknown(place: Place) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for _ in range(3):
            journal.record(replace(FOOTPRINT, reported=None))
            journal.record(replace(FOOTPRINT, measured_bytes=None))
        assert (await journal.past_runs(512 * MIB)).overheads == {}

    using(place, scenario)


def test_load_times_are_told_by_what_the_page_cache_held(place: Place) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for seconds in (9.0, 4.0, 5.0):
            journal.record(LoadRecord(1.0, "llama", seconds, 1 << 30, Warmth.COLD))
        journal.record(LoadRecord(2.0, "qwen", 0.5, 1 << 30, Warmth.WARM))
        load_times = (await journal.past_runs(0)).load_times
        assert load_times == {"llama": LoadTimes(5.0, None), "qwen": LoadTimes(None, 0.5)}

    using(place, scenario)


def test_a_database_that_cannot_be_written_blocks_nobody_is_told_once_and_loses_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(journal: SqlJournal) -> None:
        with locked(place):
            for number in range(50):
                journal.record(decision(number))
            assert await journal.decisions() == [decision(number) for number in range(50)]
            journal.record(decision(50))
            assert len(await journal.decisions()) == 51
        journal.record(decision(51))
        assert len(await journal.decisions()) == 52

    keep(place, decision(-1))
    with caplog.at_level(logging.WARNING):
        using(place, scenario, busy_timeout_s=0.01)
    ours = [record for record in caplog.records if record.name.startswith("cotenant")]
    refused, recovered = [record.getMessage() for record in ours]
    assert "cannot be used" in refused
    assert "52 records from memory were written to it" in recovered
    assert kept(place) == [decision(number) for number in range(-1, 52)]


def test_records_beyond_the_queue_are_left_out_and_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(journal: SqlJournal) -> None:
        with locked(place):
            for number in range(1000):
                journal.record(decision(number))

    with caplog.at_level(logging.WARNING):
        using(place, scenario, max_waiting=10, busy_timeout_s=60)
    assert "does not keep up" in caplog.text
    assert 10 <= len(kept(place, limit=10_000)) < 1000


@pytest.mark.slow
def test_several_processes_share_one_database_from_its_first_moment(place: Place) -> None:
    program = f"""
from pathlib import PosixPath
from tests.store.harness import decision, keep
keep({place!r}, *map(decision, range(200)))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert said == [""] * 3
    assert len(kept(place, limit=10_000)) == 600


def test_what_comes_after_closing_is_left_out(place: Place) -> None:
    async def scenario() -> None:
        journal = SqlJournal(Writer(place))
        await journal.close()
        journal.record(decision(1))
        assert await journal.decisions() == []
        assert await journal.past_runs(0) == PastRuns()
        await journal.close()

    asyncio.run(scenario())
    assert kept(place) == []
