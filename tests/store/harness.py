"""Opening a database for one scenario, and getting in its way."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceId
from cotenant.domain.models import Parts
from cotenant.domain.records import DecisionRecord, FootprintRecord
from cotenant.domain.units import MIB
from cotenant.store.store import SqlJournal, Store
from cotenant.store.writer import Writer

T = TypeVar("T")
Place = Path | str

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


def decision(number: int, model: str | None = "llama") -> DecisionRecord:
    facts = {"frees_bytes": 3 << 30, "idle_s": 312.5, "device": "GPU-1"}
    made = Decision(number, 7.5, DecisionKind.EVICT, model, f"evicted {number}", "ticket 4", facts)
    return DecisionRecord(1_700_000_000.25 + number, made)


def opened(place: Place, scenario: Callable[[Store], Coroutine[Any, Any, T]], **options: Any) -> T:
    async def main() -> T:
        store = Store(Writer(place, **options))
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(main())


def using(place: Place, scenario: Callable[[SqlJournal], Coroutine[Any, Any, T]], **options: Any) -> T:
    return opened(place, lambda store: scenario(store.journal), **options)


def keep(place: Place, *records: DecisionRecord) -> None:
    async def scenario(journal: SqlJournal) -> None:
        for record in records:
            journal.record(record)

    using(place, scenario)


def kept(place: Place, model: str | None = None, limit: int = 100) -> list[DecisionRecord]:
    return list(using(place, lambda journal: journal.decisions(model, limit)))


def run_sql(place: Place, *statements: str) -> None:
    """Do something to the database behind its back."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place, isolation_level=None)) as other:
            for statement in statements:
                other.execute(statement)
    else:
        with psycopg.connect(place.replace("+psycopg", ""), autocommit=True) as server:
            for statement in statements:
                server.execute(statement.encode())


@contextmanager
def locked(place: Place, table: str = "decisions") -> Iterator[None]:
    """Have another program hold what is to be written."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
    else:
        with psycopg.connect(place.replace("+psycopg", "")) as server:
            server.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            yield
            server.rollback()
