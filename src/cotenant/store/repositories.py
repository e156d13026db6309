"""Stores and finds records, in a transaction that the caller begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Row, Table, delete, func, insert, select

from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, Record
from cotenant.store import tables

R = TypeVar("R")
MAX_DECISIONS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Repository(Generic[R]):
    """One kind of record in one table, as one connection sees it; the newest `kept` stay."""

    connection: Connection
    table: Table
    to_row: Callable[[R], dict[str, Any]]
    from_row: Callable[[Row[Any]], R]
    kept: int = 10_000

    def add(self, records: Sequence[R]) -> None:
        """Insert the records, and delete the oldest beyond the limit."""
        key = self.table.c.id
        self.connection.execute(insert(self.table), [self.to_row(record) for record in records])
        newest = select(func.max(key)).scalar_subquery()
        self.connection.execute(delete(self.table).where(key <= newest - self.kept))

    def merge(self, records: Sequence[R], at: Callable[[R], float]) -> int:
        """Insert the records that are not stored yet, in the order of their time; return their number."""
        known = self.newest()
        merged = sorted(dict.fromkeys([*records, *known]), key=at)
        if len(merged) > len(known):
            self.connection.execute(delete(self.table))
            self.add(merged[-self.kept :])
        return len(merged) - len(known)

    def newest(self, limit: int | None = None, model: str | None = None) -> list[R]:
        """Return the last `limit` records or all, of one model or all, oldest first."""
        query = select(self.table).order_by(self.table.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(self.table.c.model == model)
        return [self.from_row(row) for row in self.connection.execute(query)][::-1]


class Records:
    """The records, as one connection sees them."""

    def __init__(self, connection: Connection) -> None:
        self.footprints: Repository[FootprintRecord] = Repository(
            connection, tables.footprints, tables.footprint_row, tables.footprint_of
        )
        self.loads: Repository[LoadRecord] = Repository(
            connection, tables.loads, tables.load_row, tables.load_of
        )
        self.decisions: Repository[DecisionRecord] = Repository(
            connection, tables.decisions, tables.decision_row, tables.decision_of, kept=MAX_DECISIONS
        )

    def add(self, records: Sequence[Record]) -> None:
        """Insert records of any kind."""
        for kind, repository in (
            (FootprintRecord, self.footprints),
            (LoadRecord, self.loads),
            (DecisionRecord, self.decisions),
        ):
            if chosen := [record for record in records if isinstance(record, kind)]:
                repository.add(chosen)  # type: ignore[arg-type]

    def copy_from(self, others: Records) -> int:
        """Insert all records of another database; return their number."""
        found: list[Record] = [
            *others.footprints.newest(),
            *others.loads.newest(),
            *others.decisions.newest(),
        ]
        self.add(found)
        return len(found)
