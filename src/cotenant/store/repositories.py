"""Storing and finding records, through a connection whose transaction the caller begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Row, Table, delete, func, insert, select

from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord
from cotenant.store import tables

R = TypeVar("R")
Record = FootprintRecord | LoadRecord | DecisionRecord


@dataclass(frozen=True, slots=True)
class Repository(Generic[R]):
    """One kind of record in one table; the newest `kept` stay."""

    table: Table
    to_row: Callable[[R], dict[str, Any]]
    from_row: Callable[[Row[Any]], R]
    kept: int

    def add(self, connection: Connection, records: Sequence[R]) -> None:
        """Insert the records, and delete the oldest beyond the limit."""
        key = self.table.c.id
        connection.execute(insert(self.table), [self.to_row(record) for record in records])
        newest = select(func.max(key)).scalar_subquery()
        connection.execute(delete(self.table).where(key <= newest - self.kept))

    def merge(self, connection: Connection, records: Sequence[R], at: Callable[[R], float]) -> int:
        """Insert the records that are not stored yet, in the order of their time; return their number."""
        known = self.newest(connection, self.kept)
        merged = sorted(dict.fromkeys([*records, *known]), key=at)
        if len(merged) > len(known):
            connection.execute(delete(self.table))
            self.add(connection, merged[-self.kept :])
        return len(merged) - len(known)

    def newest(self, connection: Connection, limit: int, model: str | None = None) -> list[R]:
        """Return the last `limit` records, of one model or all, oldest first."""
        query = select(self.table).order_by(self.table.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(self.table.c.model == model)
        return [self.from_row(row) for row in connection.execute(query)][::-1]


FOOTPRINTS: Final[Repository[FootprintRecord]] = Repository(
    tables.footprints, tables.footprint_row, tables.footprint_of, kept=10_000
)
LOADS: Final[Repository[LoadRecord]] = Repository(tables.loads, tables.load_row, tables.load_of, kept=10_000)
DECISIONS: Final[Repository[DecisionRecord]] = Repository(
    tables.decisions, tables.decision_row, tables.decision_of, kept=20_000
)


class Records:
    """The records, as one connection sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, records: Sequence[Record]) -> None:
        """Insert records of any kind."""
        for kind, repository in (
            (FootprintRecord, FOOTPRINTS),
            (LoadRecord, LOADS),
            (DecisionRecord, DECISIONS),
        ):
            if chosen := [record for record in records if isinstance(record, kind)]:
                repository.add(self._connection, chosen)  # type: ignore[arg-type]

    def copy_from(self, others: Records) -> int:
        """Insert all records of another database; return their number."""
        found: list[Record] = [
            *others.footprints(FOOTPRINTS.kept),
            *others.loads(LOADS.kept),
            *others.decisions(DECISIONS.kept, None),
        ]
        self.add(found)
        return len(found)

    def learned(self) -> tuple[list[FootprintRecord], list[LoadRecord]]:
        """Return all records that plans learn from, oldest first."""
        return self.footprints(FOOTPRINTS.kept), self.loads(LOADS.kept)

    def learn(self, footprints: Sequence[FootprintRecord], loads: Sequence[LoadRecord]) -> int:
        """Insert records of another database; return how many are new."""
        return FOOTPRINTS.merge(self._connection, footprints, lambda record: record.at) + LOADS.merge(
            self._connection, loads, lambda record: record.at
        )

    def footprints(self, limit: int) -> list[FootprintRecord]:
        """Return the last footprints, oldest first."""
        return FOOTPRINTS.newest(self._connection, limit)

    def loads(self, limit: int) -> list[LoadRecord]:
        """Return the last loads, oldest first."""
        return LOADS.newest(self._connection, limit)

    def decisions(self, limit: int, model: str | None) -> list[DecisionRecord]:
        """Return the last decisions about one model or all, oldest first."""
        return DECISIONS.newest(self._connection, limit, model)
