"""What keys use, added up in the database by day."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.domain.keys import KeyUse, KeyUses
from cotenant.domain.records import KeyUseRecord
from cotenant.store.key_use_reader import read_key_uses
from cotenant.store.location import locate
from cotenant.store.maintenance import database_status
from cotenant.store.store import SqlJournal, Store
from cotenant.store.writer import Writer
from tests.store.harness import Place, locked, run_sql, using
from tests.store.test_migrations import VERSION_1

DAY, NEXT = "2026-11-29", "2026-11-30"
USE = KeyUse(2, 10, 5, 1.5)


def recorded(place: Place, *records: KeyUseRecord, **options: float) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for record in records:
            journal.record(record)

    using(place, scenario, **options)


def test_uses_add_up_by_key_and_day_over_runs_and_within_one_batch(place: Place) -> None:
    records = [KeyUseRecord(DAY, "app", USE), KeyUseRecord(DAY, "app", USE), KeyUseRecord(DAY, "other", USE)]
    for _ in range(2):
        recorded(place, *records)
    recorded(place, KeyUseRecord(NEXT, "app", KeyUse(1, 1 << 40, 0, 0.25)))
    uses = using(place, lambda journal: journal.key_uses(NEXT))
    assert uses == {
        "app": KeyUses(KeyUse(1, 1 << 40, 0, 0.25), KeyUse(9, (1 << 40) + 40, 20, 6.25)),
        "other": KeyUses(KeyUse(), KeyUse(4, 20, 10, 3.0)),
    }
    assert read_key_uses(place, DAY)["app"].day == KeyUse(8, 40, 20, 6.0)
    assert read_key_uses(place, NEXT) == uses


def test_two_daemons_add_to_one_row(place: Place) -> None:
    async def both() -> KeyUses:
        stores = [Store(Writer(place)) for _ in range(2)]
        for _ in range(50):
            for store in stores:
                store.journal.record(KeyUseRecord(DAY, "app", USE))
        for store in stores:
            await store.journal.key_uses(DAY)
        found = await stores[0].journal.key_uses(DAY)
        for store in stores:
            await store.close()
        return found["app"]

    assert asyncio.run(both()).total == KeyUse(200, 1000, 500, 150.0)


def test_what_is_used_while_the_database_is_locked_is_added_to_it_later(place: Place) -> None:
    recorded(place, KeyUseRecord(DAY, "app", USE))

    async def scenario(journal: SqlJournal) -> None:
        with locked(place, "key_use"):
            journal.record(KeyUseRecord(DAY, "app", USE))
            assert (await journal.key_uses(DAY))["app"].total == USE  # of this time, in memory

    using(place, scenario, busy_timeout_s=0.05, retry_s=0.0)
    assert read_key_uses(place, DAY)["app"].total == USE + USE


def test_a_database_that_is_not_there_or_older_tells_nothing_and_is_left_alone(tmp_path: Path) -> None:
    missing, old = tmp_path / "none" / "cotenant.db", tmp_path / "old.db"
    assert read_key_uses(missing, DAY) == {}
    assert not missing.exists()
    run_sql(old, *VERSION_1)
    assert read_key_uses(old, DAY) == {}
    assert database_status(locate(old)).revision == "0001"


@pytest.mark.parametrize("sizes", [[1], [3, 1, 7], [500, 501]])
def test_any_number_of_records_is_added_whole(place: Place, sizes: list[int]) -> None:
    for size in sizes:
        recorded(place, *(KeyUseRecord(DAY, f"k{number % 40}", KeyUse(1)) for number in range(size)))
    found = read_key_uses(place, DAY)
    assert sum(each.total.requests for each in found.values()) == sum(sizes)


_COUNT = st.integers(0, 9)
_USES = st.builds(KeyUse, _COUNT, _COUNT, _COUNT, _COUNT.map(float))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([DAY, NEXT]), _USES), max_size=20))
def test_sums_are_those_of_the_records(tmp_path: Path, rows: list[tuple[str, str, KeyUse]]) -> None:
    path = tmp_path / "cotenant.db"
    path.unlink(missing_ok=True)
    recorded(path, *(KeyUseRecord(day, key, use) for key, day, use in rows))
    found = read_key_uses(path, DAY)
    assert found.keys() == {key for key, _, _ in rows}
    for name, uses in found.items():
        assert uses.total == sum((use for key, _, use in rows if key == name), KeyUse())
        assert uses.day == sum((use for key, day, use in rows if (key, day) == (name, DAY)), KeyUse())
