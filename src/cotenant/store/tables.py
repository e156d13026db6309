"""The scheduler's tables, and the conversion of `domain.records` to rows. Times are Unix seconds."""

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Column, Float, Integer, MetaData, Row, String, Table

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceId
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
    del row["predicted"], row["reported"]
    return row | _part_columns("predicted", record.predicted) | _part_columns("reported", record.reported)


def footprint_of(row: Row[Any]) -> FootprintRecord:
    """Read a row of `footprints`."""
    predicted = _parts(row, "predicted")
    if predicted is None:
        raise AssertionError("the prediction's columns are not nullable")
    return FootprintRecord(
        at=row.at,
        model=row.model,
        file_fingerprint=row.file_fingerprint,
        recipe_fingerprint=row.recipe_fingerprint,
        device_id=DeviceId(row.device_id),
        device_name=row.device_name,
        predicted=predicted,
        engine=row.engine,
        reported=_parts(row, "reported"),
        measured_bytes=row.measured_bytes,
    )


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


def _part_columns(whose: str, parts: Parts | None) -> dict[str, int | None]:
    return {f"{whose}_{part}_bytes": None if parts is None else getattr(parts, part) for part in _PARTS}


def _parts(row: Row[Any], whose: str) -> Parts | None:
    values = {part: getattr(row, f"{whose}_{part}_bytes") for part in _PARTS}
    return None if None in values.values() else Parts(**values)
