"""GPU configuration in the database: its tables, the services' assignments, and how applying them ended."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import JSONB

from cotenant.domain.errors import StoreError
from cotenant.domain.units import MIB
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    GpuRef,
    SavedConfiguration,
    SeenDevice,
    Strategy,
)
from cotenant.store.tables import Count, metadata

NAME_LENGTH: Final = 64
_DEVICE_NAME_LENGTH: Final = 128
_Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class _Instant(sa.TypeDecorator[float]):
    """Unix seconds in a `timestamptz`, to the microsecond. SQLite stores UTC without a time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> datetime | None:
        """Return the instant in UTC."""
        return None if value is None else datetime.fromtimestamp(value, UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> float | None:
        """Return Unix seconds."""
        if value is None:
            return None
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


configurations: Final = sa.Table(
    "gpu_configurations",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True, default=uuid.uuid4),
    sa.Column("service_name", sa.String(NAME_LENGTH), nullable=False, unique=True),
    sa.Column("gpu_index", sa.Integer),
    sa.Column("strategy", sa.String(32), server_default="manual"),
    sa.Column("vram_budget_override", sa.Float),
    sa.Column("enabled", sa.Boolean, server_default=sa.true()),
    sa.Column("created_at", _Instant, server_default=sa.func.now()),
    sa.Column("updated_at", _Instant, server_default=sa.func.now()),
    sa.Column("device_id", sa.String(128)),
    sa.Column("position", sa.Integer, nullable=False, server_default="0"),
    sa.Column("more_gpus", _Json),
)

devices: Final = sa.Table(
    "gpu_devices",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True, default=uuid.uuid4),
    sa.Column("gpu_index", sa.Integer, nullable=False, unique=True),
    sa.Column("name", sa.String(_DEVICE_NAME_LENGTH)),
    sa.Column("vram_total_mb", sa.Integer),
    sa.Column("vram_available_mb", sa.Integer),
    sa.Column("compute_capability", sa.String(16)),
    sa.Column("last_seen_at", _Instant, server_default=sa.func.now()),
    sa.Column("device_id", sa.String(128), nullable=False),
)

settings: Final = sa.Table(
    "system_settings",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", _Json, nullable=False),
    sa.Column("updated_at", _Instant, server_default=sa.func.now()),
)

history: Final = sa.Table(
    "gpu_config_history",
    metadata,
    sa.Column("number", Count, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("strategy", sa.String(32), nullable=False),
    sa.Column("assignments", _Json, nullable=False),
    sa.Column("apply", _Json),
)


def assignment_of(row: sa.Row[Any], saved: Assignment | None) -> Assignment:
    """Read a row of `gpu_configurations`; `saved` is the same assignment in the history."""
    found = saved or Assignment(row.service_name)
    changed = row.vram_budget_override != found.vram_budget_gb
    return replace(
        found,
        gpu_index=row.gpu_index,
        device_id=row.device_id,
        vram_budget_gb=row.vram_budget_override,
        budget_auto=found.budget_auto and not changed,
        more=_GPUS.validate_python(row.more_gpus or ()),
    )


def device_row(device: SeenDevice) -> dict[str, Any]:
    """Render a GPU for `gpu_devices`, whose memory is counted in whole MiB, rounded down."""
    row = asdict(device)
    for field, column in _MIB_COLUMNS.items():
        count = row.pop(field)
        row[column] = None if count is None else count // MIB
    return {**row, "name": None if device.name is None else device.name[:_DEVICE_NAME_LENGTH]}


def device_of(row: sa.Row[Any]) -> SeenDevice:
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


_MIB_COLUMNS: Final = {"total_bytes": "vram_total_mb", "available_bytes": "vram_available_mb"}
_SAVED: Final = TypeAdapter(SavedConfiguration)
_GPUS: Final = TypeAdapter(tuple[GpuRef, ...])


_MAX_HISTORY: Final = 1_000
_LOCK: Final = 0x436F5473
_STRATEGY_KEY: Final = "gpu_assignment_strategy"
"""The key of `system_settings` that holds the strategy saved last, for others who read the database."""


class ServiceRows:
    """GPU configuration through one connection, in a transaction that the caller begins."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def current(self) -> SavedConfiguration | None:
        """Return the newest entry of the history, with the GPUs and budgets of `gpu_configurations`."""
        newest = self.history(1)
        if not newest:
            return None
        rows = self._connection.execute(
            sa.select(configurations).where(configurations.c.enabled).order_by(configurations.c.position)
        )
        saved = {each.service: each for each in newest[0].assignments}
        found = tuple(assignment_of(row, saved.get(row.service_name)) for row in rows)
        return replace(newest[0], assignments=found)

    def save(
        self,
        strategy: Strategy,
        assignments: Sequence[Assignment],
        at: float,
        publish: Callable[[int], None] | None = None,
    ) -> SavedConfiguration:
        """Write a configuration and its entry in the history, then call `publish` with its number.

        A service that it leaves out keeps its row, but disabled. Raises StoreError for a name that the
        table cannot hold or that comes twice, and whatever `publish` raises.
        """
        names = [assignment.service for assignment in assignments]
        for index, name in enumerate(names):
            if not 0 < len(name) <= NAME_LENGTH:
                raise StoreError(
                    f"a service's name has {len(name)} characters, and the database holds 1 to {NAME_LENGTH}",
                    hint=f"Rename {name[:20]!r}… in the compose file.",
                )
            if name in names[:index]:
                raise StoreError(f"service {name!r} is assigned twice", hint="Assign each service once.")
        self.lock()
        number = (self._connection.execute(sa.select(sa.func.max(history.c.number))).scalar() or 0) + 1
        saved = SavedConfiguration(number, at, strategy, tuple(assignments))
        self._connection.execute(
            sa.update(configurations).where(configurations.c.enabled).values(enabled=False)
        )
        for position, assignment in enumerate(saved.assignments):
            # Where the assignment comes from is only in the history.
            row = {
                "service_name": assignment.service,
                "gpu_index": assignment.gpu_index,
                "device_id": assignment.device_id,
                "vram_budget_override": assignment.vram_budget_gb,
                "strategy": (Strategy.MANUAL if assignment.by_hand else strategy).value,
                "enabled": True,
                "updated_at": at,
                "position": position,
                "more_gpus": [asdict(gpu) for gpu in assignment.more] or None,
            }
            same = configurations.c.service_name == assignment.service
            self._put(configurations, same, row, at_first={"created_at": at})
        self._connection.execute(sa.insert(history), history_row(saved))
        self.set_setting(_STRATEGY_KEY, {"default": strategy.value}, at)
        self._connection.execute(sa.delete(history).where(history.c.number <= number - _MAX_HISTORY))
        if publish is not None:
            publish(number)
        return saved

    def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Store the state of applying a configuration. Raises StoreError if there is no such number."""
        found = self._connection.execute(
            sa.update(history).where(history.c.number == number).values(apply=asdict(status))
        )
        if not found.rowcount:
            raise StoreError(
                f"there is no GPU configuration {number} whose apply could be recorded",
                hint="It was replaced by a restore, or the history no longer keeps it.",
            )

    def history(self, limit: int | None = None) -> list[SavedConfiguration]:
        """Return the last configurations, newest first."""
        return self._entries(limit=limit)

    def applied(self) -> SavedConfiguration | None:
        """Return the newest configuration whose apply succeeded."""
        succeeded = history.c.apply["state"].as_string() == ApplyState.SUCCEEDED.value
        return next(iter(self._entries(succeeded, limit=1)), None)

    def last_apply(self) -> ApplyStatus | None:
        """Return the state of the newest apply."""
        return next((entry.apply for entry in self._entries(history.c.apply.is_not(None), limit=1)), None)

    def replace_history(self, entries: Sequence[SavedConfiguration]) -> None:
        """Replace the history by these entries."""
        self._connection.execute(sa.delete(history))
        if entries:
            self._connection.execute(sa.insert(history), [history_row(entry) for entry in entries])

    def is_empty(self) -> bool:
        """Whether no GPU configuration was ever saved."""
        found = sa.select(sa.exists().select_from(configurations), sa.exists().select_from(history))
        return not any(self._connection.execute(found).one())

    def see_devices(self, seen: Sequence[SeenDevice]) -> None:
        """Store which GPUs are present now, and update the index of those that were renumbered.

        An assignment to one of them gets its present index, so that a GPU that returns is used again. GPUs
        that are absent, and assignments to them, do not change.
        """
        self.lock()
        by_index = {device.gpu_index: device for device in seen}
        for device in by_index.values():
            moved = (devices.c.device_id == device.device_id) & (devices.c.gpu_index != device.gpu_index)
            self._connection.execute(sa.delete(devices).where(moved))
            self._put(devices, devices.c.gpu_index == device.gpu_index, device_row(device))
        indices = {device.device_id: device.gpu_index for device in seen}
        for row in self._connection.execute(sa.select(configurations)).all():
            first, *more = (
                {**gpu, "gpu_index": indices.get(gpu["device_id"], gpu["gpu_index"])}
                for gpu in ({**row._mapping}, *(row.more_gpus or ()))
            )
            new = {"gpu_index": first["gpu_index"], "more_gpus": more or None}
            self._connection.execute(
                sa.update(configurations).where(configurations.c.id == row.id).values(**new)
            )

    def devices(self) -> list[SeenDevice]:
        """Return every GPU seen under its index, in index order."""
        rows = self._connection.execute(sa.select(devices).order_by(devices.c.gpu_index))
        return [device_of(row) for row in rows]

    def settings(self) -> dict[str, Mapping[str, object]]:
        """Return every value of `system_settings`, by key."""
        rows = self._connection.execute(sa.select(settings.c.key, settings.c.value).order_by(settings.c.key))
        return {row.key: row.value for row in rows}

    def set_setting(self, key: str, value: Mapping[str, object], at: float | None = None) -> None:
        """Store a value of `system_settings`, as of `at` (Unix seconds, None for now)."""
        self.lock()
        row = {"key": key, "value": dict(value), "updated_at": time.time() if at is None else at}
        self._put(settings, settings.c.key == key, row)

    def lock(self) -> None:
        """Lock GPU configuration against other writers for the rest of the transaction.

        SQLite locks the whole database when a transaction begins.
        """
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))

    def _entries(self, *such: sa.ColumnElement[bool], limit: int | None) -> list[SavedConfiguration]:
        query = sa.select(history).where(*such).order_by(history.c.number.desc()).limit(limit)
        return [_SAVED.validate_python({**row._mapping}) for row in self._connection.execute(query)]

    def _put(
        self,
        table: sa.Table,
        same: sa.ColumnElement[bool],
        row: Mapping[str, Any],
        at_first: Mapping[str, Any] | None = None,
    ) -> None:
        if not self._connection.execute(sa.update(table).where(same).values(**row)).rowcount:
            self._connection.execute(sa.insert(table).values(**row, **(at_first or {})))
