"""What API keys have used, in a row for each key and day."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cotenant.domain.keys import KeyUse, KeyUses
from cotenant.domain.records import KeyUseRecord
from cotenant.store.tables import Count, metadata

_COUNTED: Final = tuple(each.name for each in fields(KeyUse))

key_use: Final = sa.Table(
    "key_use",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    *(sa.Column(name, sa.Float if name == "wait_s" else Count, nullable=False) for name in _COUNTED),
)


@dataclass(frozen=True, slots=True)
class KeyUseRepository:
    """The rows of `key_use`, as one connection sees them; several daemons may add to one."""

    connection: sa.Connection

    def add(self, records: Sequence[KeyUseRecord]) -> None:
        """Add to the rows of the records' keys and days, making them where there are none."""
        sums: dict[tuple[str, str], KeyUse] = {}
        for record in records:
            at = record.key, record.day
            sums[at] = sums.get(at, KeyUse()) + record.use
        dialect: Any = postgresql if self.connection.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(key_use).values(
            [
                {"key": key, "day": day, **dict(zip(_COUNTED, astuple(use), strict=True))}
                for (key, day), use in sorted(sums.items())
            ]
        )
        added = {name: key_use.c[name] + insert.excluded[name] for name in _COUNTED}
        self.connection.execute(insert.on_conflict_do_update(index_elements=["key", "day"], set_=added))

    def all(self) -> Sequence[KeyUseRecord]:
        """Return all rows."""
        return [
            KeyUseRecord(row.day, row.key, KeyUse(*(getattr(row, name) for name in _COUNTED)))
            for row in self.connection.execute(sa.select(key_use))
        ]

    def totals(self, day: str) -> Mapping[str, KeyUses]:
        """Return what each key has used in all, and on one day."""
        columns = [key_use.c[name] for name in _COUNTED]
        on_day = [sa.func.sum(sa.case((key_use.c.day == day, column), else_=0)) for column in columns]
        query = sa.select(key_use.c.key, *on_day, *map(sa.func.sum, columns)).group_by(key_use.c.key)
        return {
            key: KeyUses(_use(sums[: len(_COUNTED)]), _use(sums[len(_COUNTED) :]))
            for key, *sums in self.connection.execute(query)
        }


def _use(sums: Sequence[Any]) -> KeyUse:
    """Return the sums of a row; PostgreSQL's are decimals."""
    requests, prompt_tokens, completion_tokens, wait_s = sums
    return KeyUse(int(requests), int(prompt_tokens), int(completion_tokens), float(wait_s))
