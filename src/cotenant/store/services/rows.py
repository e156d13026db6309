"""GPU configuration in the database: which GPU each service is assigned to, and how applying that ended."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, delete, exists, func, insert, select, update

from cotenant.domain.errors import StoreError
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    SavedConfiguration,
    SeenDevice,
    Strategy,
)
from cotenant.store.services.tables import (
    NAME_LENGTH,
    assignment_of,
    assignment_row,
    configurations,
    device_of,
    device_row,
    devices,
    history,
    history_of,
    history_row,
    settings,
)

_MAX_HISTORY: Final = 1_000
_LOCK: Final = 0x436F5473
_STRATEGY_KEY: Final = "gpu_assignment_strategy"
"""The key of `system_settings` that holds the strategy saved last, for others who read the database."""


class ServiceRows:
    """GPU configuration through one connection, in a transaction that the caller begins."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def current(self) -> SavedConfiguration | None:
        """Return the newest entry of the history, with the GPUs and budgets of `gpu_configurations`."""
        newest = self.history(1)
        if not newest:
            return None
        rows = self._connection.execute(
            select(configurations).where(configurations.c.enabled).order_by(configurations.c.position)
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
        number = (self._connection.execute(select(func.max(history.c.number))).scalar() or 0) + 1
        saved = SavedConfiguration(number, at, strategy, tuple(assignments))
        self._connection.execute(update(configurations).where(configurations.c.enabled).values(enabled=False))
        for position, assignment in enumerate(saved.assignments):
            row = assignment_row(assignment) | {
                "strategy": (Strategy.MANUAL if assignment.by_hand else strategy).value,
                "enabled": True,
                "updated_at": at,
                "position": position,
            }
            same = configurations.c.service_name == assignment.service
            self._put(configurations, same, row, at_first={"created_at": at})
        self._connection.execute(insert(history), history_row(saved))
        self.set_setting(_STRATEGY_KEY, {"default": strategy.value}, at)
        self._connection.execute(delete(history).where(history.c.number <= number - _MAX_HISTORY))
        if publish is not None:
            publish(number)
        return saved

    def record_apply(self, number: int, status: ApplyStatus) -> None:
        """Store the state of applying a configuration. Raises StoreError if there is no such number."""
        found = self._connection.execute(
            update(history).where(history.c.number == number).values(apply=asdict(status))
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
        self._connection.execute(delete(history))
        if entries:
            self._connection.execute(insert(history), [history_row(entry) for entry in entries])

    def is_empty(self) -> bool:
        """Whether no GPU configuration was ever saved."""
        found = select(exists().select_from(configurations), exists().select_from(history))
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
            self._connection.execute(delete(devices).where(moved))
            self._put(devices, devices.c.gpu_index == device.gpu_index, device_row(device))
        for device in seen:
            self._connection.execute(
                update(configurations)
                .where(configurations.c.device_id == device.device_id)
                .values(gpu_index=device.gpu_index)
            )

    def devices(self) -> list[SeenDevice]:
        """Return every GPU seen under its index, in index order."""
        rows = self._connection.execute(select(devices).order_by(devices.c.gpu_index))
        return [device_of(row) for row in rows]

    def settings(self) -> dict[str, Mapping[str, object]]:
        """Return every value of `system_settings`, by key."""
        rows = self._connection.execute(select(settings.c.key, settings.c.value).order_by(settings.c.key))
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
            self._connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))

    def _entries(self, *such: ColumnElement[bool], limit: int | None) -> list[SavedConfiguration]:
        query = select(history).where(*such).order_by(history.c.number.desc()).limit(limit)
        return [history_of(row) for row in self._connection.execute(query)]

    def _put(
        self,
        table: Table,
        same: ColumnElement[bool],
        row: Mapping[str, Any],
        at_first: Mapping[str, Any] | None = None,
    ) -> None:
        """Update the row, or insert it if there is none."""
        if not self._connection.execute(update(table).where(same).values(**row)).rowcount:
            self._connection.execute(insert(table).values(**row, **(at_first or {})))
