"""The tables of GPU configuration, and the conversion of the values of `services.model` to rows."""

import uuid
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Integer,
    Row,
    String,
    Table,
    TypeDecorator,
    Uuid,
    func,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from cotenant.domain.units import MIB
from cotenant.services.model import Assignment, SavedConfiguration, SeenDevice
from cotenant.store.tables import metadata

NAME_LENGTH: Final = 64
_DEVICE_NAME_LENGTH: Final = 128
_Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class _Instant(TypeDecorator[float]):
    """Unix seconds in a `timestamptz`, to the microsecond. SQLite stores UTC without a time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | None:
        """Return the instant in UTC."""
        return None if value is None else datetime.fromtimestamp(value, UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> float | None:
        """Return Unix seconds."""
        if value is None:
            return None
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


configurations: Final = Table(
    "gpu_configurations",
    metadata,
    Column("id", Uuid, primary_key=True, default=uuid.uuid4),
    Column("service_name", String(NAME_LENGTH), nullable=False, unique=True),
    Column("gpu_index", Integer),
    Column("strategy", String(32), server_default="manual"),
    Column("vram_budget_override", Float),
    Column("enabled", Boolean, server_default=true()),
    Column("created_at", _Instant, server_default=func.now()),
    Column("updated_at", _Instant, server_default=func.now()),
    Column("device_id", String(128)),
    Column("position", Integer, nullable=False, server_default="0"),
)

devices: Final = Table(
    "gpu_devices",
    metadata,
    Column("id", Uuid, primary_key=True, default=uuid.uuid4),
    Column("gpu_index", Integer, nullable=False, unique=True),
    Column("name", String(_DEVICE_NAME_LENGTH)),
    Column("vram_total_mb", Integer),
    Column("vram_available_mb", Integer),
    Column("compute_capability", String(16)),
    Column("last_seen_at", _Instant, server_default=func.now()),
    Column("device_id", String(128), nullable=False),
)

settings: Final = Table(
    "system_settings",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", _Json, nullable=False),
    Column("updated_at", _Instant, server_default=func.now()),
)

history: Final = Table(
    "gpu_config_history",
    metadata,
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("strategy", String(32), nullable=False),
    Column("assignments", _Json, nullable=False),
    Column("apply", _Json),
)


def assignment_row(assignment: Assignment) -> dict[str, Any]:
    """Render an assignment for `gpu_configurations`, which does not keep where it comes from."""
    return {
        "service_name": assignment.service,
        "gpu_index": assignment.gpu_index,
        "device_id": assignment.device_id,
        "vram_budget_override": assignment.vram_budget_gb,
    }


def assignment_of(row: Row[Any], saved: Assignment | None) -> Assignment:
    """Read a row of `gpu_configurations`; `saved` is the same assignment in the history."""
    found = saved or Assignment(row.service_name)
    changed = row.vram_budget_override != found.vram_budget_gb
    return replace(
        found,
        gpu_index=row.gpu_index,
        device_id=row.device_id,
        vram_budget_gb=row.vram_budget_override,
        budget_auto=found.budget_auto and not changed,
    )


def device_row(device: SeenDevice) -> dict[str, Any]:
    """Render a GPU for `gpu_devices`, whose memory is counted in whole MiB, rounded down."""
    row = asdict(device)
    for field, column in _MIB_COLUMNS.items():
        count = row.pop(field)
        row[column] = None if count is None else count // MIB
    return {**row, "name": None if device.name is None else device.name[:_DEVICE_NAME_LENGTH]}


def device_of(row: Row[Any]) -> SeenDevice:
    """Read a row of `gpu_devices`."""
    values = {**row._mapping}
    del values["id"]
    for field, column in _MIB_COLUMNS.items():
        count = values.pop(column)
        values[field] = None if count is None else count * MIB
    return SeenDevice(**values)


def history_row(saved: SavedConfiguration) -> dict[str, Any]:
    """Render a configuration for `gpu_config_history`."""
    return {**asdict(saved), "strategy": saved.strategy.value}


def history_of(row: Row[Any]) -> SavedConfiguration:
    """Read a row of `gpu_config_history`."""
    return _SAVED.validate_python({**row._mapping})


_MIB_COLUMNS: Final = {"total_bytes": "vram_total_mb", "available_bytes": "vram_available_mb"}
_SAVED: Final = TypeAdapter(SavedConfiguration)
