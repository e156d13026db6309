"""The scheduler's tables, and their records, stored and found in a transaction that the caller begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.records import DecisionRecord, FootprintRecord, KeyUseRecord, LoadRecord, Record
from cotenant.store.key_use import KeyUseRepository
from cotenant.store.record_rows import (
    PARTS,
    footprint_of,
    footprint_row,
    load_of,
    load_row,
)
from cotenant.store.tables import Count, metadata

footprints: Final = sa.Table(
    "footprints",
    metadata,
    sa.Column("id", Count, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("file_fingerprint", sa.String, nullable=False),
    sa.Column("recipe_fingerprint", sa.String, nullable=False),
    sa.Column("device_id", sa.String, nullable=False),
    sa.Column("device_name", sa.String, nullable=False),
    sa.Column("engine", sa.String),
    *(sa.Column(f"predicted_{part}_bytes", Count, nullable=False) for part in PARTS),
    *(sa.Column(f"reported_{part}_bytes", Count) for part in PARTS),
    sa.Column("measured_bytes", Count),
)

loads: Final = sa.Table(
    "loads",
    metadata,
    sa.Column("id", Count, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("bytes", Count, nullable=False),
    sa.Column("warmth", sa.String, nullable=False),
)

decisions: Final = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", Count, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("number", Count, nullable=False),
    sa.Column("scheduler_at", sa.Float, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("model", sa.String, index=True),
    sa.Column("text", sa.String, nullable=False),
    sa.Column("cause", sa.String, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
)


def decision_row(record: DecisionRecord) -> dict[str, Any]:
    """Render a record for `decisions`."""
    decision = record.decision
    return {
        "at": record.at,
        "number": decision.number,
        "scheduler_at": decision.at,
        "kind": decision.kind.value,
        "model": decision.model,
        "text": decision.text,
        "cause": decision.cause,
        "facts": dict(decision.facts),
    }


def decision_of(row: Mapping[str, Any]) -> DecisionRecord:
    """Read a row of `decisions`."""
    decision = Decision(
        row["number"],
        row["scheduler_at"],
        DecisionKind(row["kind"]),
        row["model"],
        row["text"],
        row["cause"],
        row["facts"],
    )
    return DecisionRecord(row["at"], decision)


R = TypeVar("R")
MAX_DECISIONS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Repository(Generic[R]):
    """One kind of record in one table, as one connection sees it; the newest `kept` stay."""

    connection: sa.Connection
    table: sa.Table
    to_row: Callable[[R], dict[str, Any]]
    from_row: Callable[[Mapping[str, Any]], R]
    kept: int = 10_000

    def add(self, records: Sequence[R]) -> None:
        """Insert the records, and delete the oldest beyond the limit."""
        key = self.table.c.id
        self.connection.execute(sa.insert(self.table), [self.to_row(record) for record in records])
        newest = sa.select(sa.func.max(key)).scalar_subquery()
        self.connection.execute(sa.delete(self.table).where(key <= newest - self.kept))

    def merge(self, records: Sequence[R], at: Callable[[R], float]) -> int:
        """Insert the records that are not stored yet, in the order of their time; return their number."""
        known = self.newest()
        merged = sorted(dict.fromkeys([*records, *known]), key=at)
        if len(merged) > len(known):
            self.connection.execute(sa.delete(self.table))
            self.add(merged[-self.kept :])
        return len(merged) - len(known)

    def newest(self, limit: int | None = None, model: str | None = None) -> list[R]:
        """Return the last `limit` records or all, of one model or all, oldest first."""
        query = sa.select(self.table).order_by(self.table.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(self.table.c.model == model)
        return [self.from_row(row._asdict()) for row in self.connection.execute(query)][::-1]


class Records:
    """The records, as one connection sees them."""

    def __init__(self, connection: sa.Connection) -> None:
        self.footprints: Repository[FootprintRecord] = Repository(
            connection, footprints, footprint_row, footprint_of
        )
        self.loads: Repository[LoadRecord] = Repository(connection, loads, load_row, load_of)
        self.key_uses = KeyUseRepository(connection)
        self.decisions: Repository[DecisionRecord] = Repository(
            connection, decisions, decision_row, decision_of, kept=MAX_DECISIONS
        )

    def add(self, records: Sequence[Record]) -> None:
        """Insert records of any kind."""
        for kind, repository in (
            (FootprintRecord, self.footprints),
            (LoadRecord, self.loads),
            (DecisionRecord, self.decisions),
            (KeyUseRecord, self.key_uses),
        ):
            if chosen := [record for record in records if isinstance(record, kind)]:
                repository.add(chosen)  # type: ignore[arg-type]

    def copy_from(self, others: Records) -> int:
        """Insert all records of another database; return their number."""
        found: list[Record] = [
            *others.footprints.newest(),
            *others.loads.newest(),
            *others.decisions.newest(),
            *others.key_uses.all(),
        ]
        self.add(found)
        return len(found)
