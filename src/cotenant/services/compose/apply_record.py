"""How an apply stands, on disk, so that a daemon that was killed in the middle of it can tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.atomic_files import write_durably
from cotenant.domain.devices import DeviceId
from cotenant.services.model import ApplyState, ApplyStatus, Assignment, ProgressState, ServiceProgress

_NAME: Final = "apply.json"


@dataclass(frozen=True, slots=True)
class ApplyRecord:
    """An apply: how it stands, and each service's assignments around it."""

    status: ApplyStatus
    before: Mapping[str, Assignment]
    after: Mapping[str, Assignment]


def save_record(folder: Path, record: ApplyRecord) -> None:
    """Keep a record in place of the last one. Raises OSError."""
    write_durably(folder / _NAME, json.dumps(asdict(record), indent=1).encode())


def load_record(folder: Path) -> ApplyRecord | None:
    """Return the record kept last; None if there is none, or none that can be read."""
    try:
        told = json.loads((folder / _NAME).read_bytes())
        return ApplyRecord(
            _status(told["status"]),
            _assignments(told["before"]),
            _assignments(told["after"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _status(told: Mapping[str, Any]) -> ApplyStatus:
    services = tuple(
        ServiceProgress(**{**each, "state": ProgressState(each["state"])}) for each in told["services"]
    )
    return ApplyStatus(**{**told, "state": ApplyState(told["state"]), "services": services})


def _assignments(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Assignment]:
    return {
        service: Assignment(
            **{**each, "device_id": None if each["device_id"] is None else DeviceId(each["device_id"])}
        )
        for service, each in told.items()
    }
