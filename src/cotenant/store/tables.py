"""The scheduler's tables, and the conversion of `domain.records` to rows. Times are Unix seconds."""

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Column, Float, Integer, MetaData, Row, String, Table

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.models import Parts
from cotenant.domain.records import DecisionRecord, FootprintRecord, LoadRecord, Warmth

metadata: Final = MetaData()

_Count = BigInteger().with_variant(Integer(), "sqlite")
"""Bytes and numbers. SQLite's integers have 64 bits under any name, and its keys must be INTEGER."""

_PARTS: Final = ("weights", "kv", "compute", "overhead")

footprints: Final = Table(
    "footprints",
    metadata,
    Column("id", _Count, primary_key=True),
    Column("at", Float, nullable=False),
    Column("model", String, nullable=False),
    Column("file_fingerprint", String, nullable=False),
    Column("recipe_fingerprint", String, nullable=False),
    Column("device_id", String, nullable=False),
    Column("device_name", String, nullable=False),
    Column("engine", String),
    *(Column(f"predicted_{part}_bytes", _Count, nullable=False) for part in _PARTS),
    *(Column(f"reported_{part}_bytes", _Count) for part in _PARTS),
    Column("measured_bytes", _Count),
)

loads: Final = Table(
    "loads",
    metadata,
    Column("id", _Count, primary_key=True),
    Column("at", Float, nullable=False),
    Column("model", String, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("bytes", _Count, nullable=False),
    Column("warmth", String, nullable=False),
)

decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", _Count, primary_key=True),
    Column("at", Float, nullable=False),
    Column("number", _Count, nullable=False),
    Column("scheduler_at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("model", String, index=True),
    Column("text", String, nullable=False),
    Column("cause", String, nullable=False),
    Column("facts", JSON, nullable=False),
)


def footprint_row(record: FootprintRecord) -> dict[str, Any]:
    """Render a record for `footprints`."""
    row = asdict(record)
    for whose in ("predicted", "reported"):
        parts = row.pop(whose) or {}
        row |= {f"{whose}_{part}_bytes": parts.get(part) for part in _PARTS}
    return row


def footprint_of(row: Row[Any]) -> FootprintRecord:
    """Read a row of `footprints`."""
    values = {**row._mapping}
    del values["id"]
    for whose in ("predicted", "reported"):
        parts = {part: values.pop(f"{whose}_{part}_bytes") for part in _PARTS}
        values[whose] = None if None in parts.values() else Parts(**parts)
    return FootprintRecord(**values)


def load_row(record: LoadRecord) -> dict[str, Any]:
    """Render a record for `loads`."""
    return {**asdict(record), "warmth": record.warmth.value}


def load_of(row: Row[Any]) -> LoadRecord:
    """Read a row of `loads`."""
    return LoadRecord(row.at, row.model, row.seconds, row.bytes, Warmth(row.warmth))


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


def decision_of(row: Row[Any]) -> DecisionRecord:
    """Read a row of `decisions`."""
    decision = Decision(
        row.number, row.scheduler_at, DecisionKind(row.kind), row.model, row.text, row.cause, row.facts
    )
    return DecisionRecord(row.at, decision)
