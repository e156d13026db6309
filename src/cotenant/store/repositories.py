"""Keeping and finding records, through a connection whose transaction the caller begins."""

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
    """One kind of record in one table, of which the newest `kept` stay."""

    table: Table
    to_row: Callable[[R], dict[str, Any]]
    from_row: Callable[[Row[Any]], R]
    kept: int

    def add(self, connection: Connection, records: Sequence[R]) -> None:
        """Keep the records, and forget the oldest beyond the bound."""
        key = self.table.c.id
        connection.execute(insert(self.table), [self.to_row(record) for record in records])
        newest = select(func.max(key)).scalar_subquery()
        connection.execute(delete(self.table).where(key <= newest - self.kept))

    def merge(self, connection: Connection, records: Sequence[R], at: Callable[[R], float]) -> int:
        """Keep those of the records that are not there yet, all in the order of their time; count them."""
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
    """What is kept, as one connection sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, records: Sequence[Record]) -> None:
        """Keep records of any kind."""
        for kind, repository in (
            (FootprintRecord, FOOTPRINTS),
            (LoadRecord, LOADS),
            (DecisionRecord, DECISIONS),
        ):
            if chosen := [record for record in records if isinstance(record, kind)]:
                repository.add(self._connection, chosen)  # type: ignore[arg-type]

    def take_over(self, others: Records) -> int:
        """Keep all that others keep as well; return how many records those are."""
        found: list[Record] = [
            *others.footprints(FOOTPRINTS.kept),
            *others.loads(LOADS.kept),
            *others.decisions(DECISIONS.kept, None),
        ]
        self.add(found)
        return len(found)

    def learned(self) -> tuple[list[FootprintRecord], list[LoadRecord]]:
        """Return all that plans learn from, oldest first."""
        return self.footprints(FOOTPRINTS.kept), self.loads(LOADS.kept)

    def learn(self, footprints: Sequence[FootprintRecord], loads: Sequence[LoadRecord]) -> int:
        """Keep what was learned elsewhere beside what is there; return how many records are new."""
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
