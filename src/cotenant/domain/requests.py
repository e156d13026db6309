"""What clients ask for."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain.engines import EngineBuild, EngineReport
from cotenant.domain.models import ModelKind
from cotenant.domain.placements import Placement


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that clients may name; `created_at` is Unix seconds. What is not known yet is None."""

    name: str
    kind: ModelKind
    created_at: int
    aliases: tuple[str, ...] = ()
    state: str = "ready"
    placement: Placement | None = None
    build: EngineBuild | None = None
    report: EngineReport | None = None
    log_path: str | None = None
