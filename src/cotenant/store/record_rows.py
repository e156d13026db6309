"""The rows of footprints and loads as records, and the reverse."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from cotenant.domain.models import Parts
from cotenant.domain.records import FootprintRecord, LoadRecord, Warmth

PARTS: Final = ("weights", "kv", "compute", "overhead")
"""The columns of a footprint, predicted and reported: `predicted_weights_bytes` and so on."""


def footprint_row(record: FootprintRecord) -> dict[str, Any]:
    """Render a record for `footprints`."""
    row = asdict(record)
    for whose in ("predicted", "reported"):
        parts = row.pop(whose) or {}
        row |= {f"{whose}_{part}_bytes": parts.get(part) for part in PARTS}
    return row


def footprint_of(row: Mapping[str, Any]) -> FootprintRecord:
    """Read a row of `footprints`."""
    values = {**row}
    del values["id"]
    for whose in ("predicted", "reported"):
        parts = {part: values.pop(f"{whose}_{part}_bytes") for part in PARTS}
        values[whose] = None if None in parts.values() else Parts(**parts)
    return FootprintRecord(**values)


def load_row(record: LoadRecord) -> dict[str, Any]:
    """Render a record for `loads`."""
    return {**asdict(record), "warmth": record.warmth.value}


def load_of(row: Mapping[str, Any]) -> LoadRecord:
    """Read a row of `loads`."""
    return LoadRecord(row["at"], row["model"], row["seconds"], row["bytes"], Warmth(row["warmth"]))
