import logging
import re
import sys

import pytest

from cotenant.domain.errors import BadSetting, StoreError
from cotenant.store.store import Store
from cotenant.store.writer import Writer
from tests.store.harness import decision, keep, kept, opened, run_sql
from tests.support.postgres import Cluster, stopped


def test_a_server_that_is_away_at_start_stops_no_daemon_and_is_taken_up_when_it_is_back(
    server: Cluster, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: Store) -> None:
        store.journal.record(decision(1))
        assert await store.journal.decisions() == [decision(1)]
        with pytest.raises(StoreError, match="cannot be used"):
            await store.services.current()
        server.start()
        assert await store.services.current() is None
        store.journal.record(decision(2))
        assert await store.journal.decisions() == [decision(1), decision(2)]

    server.stop()
    try:
        with caplog.at_level(logging.WARNING):
            opened(url, scenario, retry_s=0.0)
    finally:
        server.start()
    assert "nothing is remembered after this run" in caplog.text
    assert "1 records from memory" in caplog.text
    assert "secret" not in caplog.text
    assert kept(url) == [decision(1), decision(2)]


def test_a_server_that_restarts_is_found_again_and_gets_what_it_missed(
    server: Cluster, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: Store) -> None:
        await store.services.set_setting("a", {"n": 1})
        with stopped(server):
            store.journal.record(decision(1))
            with pytest.raises(StoreError) as caught:
                await store.services.set_setting("a", {"n": 2})
            assert "\n" not in caught.value.message
            assert "secret" not in caught.value.message
        assert (await store.services.settings())["a"] == {"n": 1}
        store.journal.record(decision(2))
        assert await store.journal.decisions() == [decision(1), decision(2)]

    with caplog.at_level(logging.WARNING):
        opened(url, scenario)
    assert "1 records from memory were written to it" in caplog.text


def test_a_newer_database_is_refused(url: str) -> None:
    keep(url, decision(1))
    run_sql(url, "UPDATE cotenant_schema_version SET version_num = '0099'")
    with pytest.raises(StoreError, match="version 99") as caught:
        Store(Writer(url))
    assert "newer" in caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("revision", ["a1b2c3d4e5f6", "12"])
def test_a_revision_that_no_cotenant_makes_is_refused(url: str, revision: str) -> None:
    keep(url, decision(1))
    run_sql(url, f"UPDATE cotenant_schema_version SET version_num = '{revision}'")
    with pytest.raises(StoreError, match=revision):
        Store(Writer(url))


def test_tables_of_another_program_are_refused_and_a_schema_beside_them_serves(server: Cluster) -> None:
    url = server.new_database()
    run_sql(url, "CREATE TABLE gpu_devices (theirs int)", "CREATE SCHEMA cotenant")
    with pytest.raises(StoreError, match="gpu_devices") as caught:
        Store(Writer(url))
    found = re.search(r"\?(options=\S+) to the URL", caught.value.hint)
    assert found
    beside = f"{url}&{found[1]}"
    keep(beside, decision(1))
    assert kept(beside) == [decision(1)]


def test_another_programs_migrations_do_not_matter(url: str) -> None:
    run_sql(
        url, "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('x')"
    )
    keep(url, decision(1))
    assert kept(url) == [decision(1)]


def test_a_database_that_does_not_exist_is_told_without_the_password(
    server: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(StoreError, match="nowhere"):
            await store.services.current()

    with caplog.at_level(logging.WARNING):
        opened(server.url("nowhere"), scenario)
    assert "nowhere" in caplog.text
    assert "secret" not in caplog.text


def test_a_missing_driver_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match="not installed") as caught:
        Store(Writer("postgresql+psycopg://me:secret@localhost/db"))
    assert caught.value.hint == "pip install 'cotenant[postgres]'"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("place", ["me:sec:ret@host:port/db", "me:sec@ret:55@host/db", "me:sec/ret@host/db"])
def test_a_url_that_cannot_be_read_is_told_without_the_password(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: Store) -> None:
        await store.services.current()

    with caplog.at_level(logging.WARNING), pytest.raises((BadSetting, StoreError)) as caught:
        opened(f"postgresql+psycopg://{place}", scenario)
    for told in (caught.value.message, caught.value.hint, caplog.text):
        assert "sec" not in told
        assert "ret" not in told.replace("returned", "")
