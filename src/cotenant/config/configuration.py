"""Everything that the daemon is told, checked and with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cotenant.config.library import FileSignature
from cotenant.domain.models import ModelShape, Recipe
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest


class EvictionPolicy(StrEnum):
    """How victims of an eviction are valued."""

    LRU = "lru"
    GDSF = "gdsf"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen and who may ask; keys of `api_key_file` are still to be read."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Which devices may be planned on and how far; an empty `use` means all of them.

    `gpus` describes hypothetical GPUs, as `--gpus` does.
    """

    use: tuple[str, ...] = ()
    rules: BudgetRules = field(default_factory=BudgetRules)
    gpus: str | None = None


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Who waits, who goes, and how many may wait at all (`max_queue` of each model)."""

    policy: EvictionPolicy = EvictionPolicy.GDSF
    overdue_s: float = 120.0
    min_residency_s: float = 1.0
    drain_share: float = 0.1
    drain_limit_s: float = 60.0
    reclaim_bound_s: float = 10.0
    max_queue: int = 256
    max_queue_total: int = 1024
    max_loaded: int | None = None
    prefetch: bool = False


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What holds for a model that says nothing of its own; `keep_alive_s` None never unloads."""

    recipe: Recipe = field(default_factory=Recipe)
    keep_alive_s: float | None = 300.0
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to serve, its file read.

    `recipe` has every default filled in. `gpus` are indices or UUIDs, empty for any device. It is unloaded
    `keep_alive_s` after its last request, None never; a request waits for it `timeout_s` at most.
    `parts` are all its files, the projector's aside; `signature` changes whenever one of them does.
    `from_folder` says that it is served for being in `models_dir`, without an entry of its own.
    """

    name: str
    path: Path
    recipe: Recipe
    shape: ModelShape
    signature: tuple[FileSignature, ...]
    parts: tuple[Path, ...]
    projector_path: Path | None = None
    projector_bytes: int = 0
    aliases: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    keep_alive_s: float | None = 300.0
    preload: bool = False
    pinned: bool = False
    priority: int = 0
    timeout_s: float = 600.0
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    from_folder: bool = False

    @property
    def request(self) -> PlanRequest:
        """What the planner is asked for it."""
        return PlanRequest(self.name, self.shape, self.recipe, self.projector_bytes)


@dataclass(frozen=True, slots=True)
class Problem:
    """What stops nothing but should be known: a file that is not served, a name that was changed."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of it. `path` is None where no file was read; `warm_ram_bytes` is None where the tier is off."""

    path: Path | None = None
    server: ServerSettings = field(default_factory=ServerSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    warm_ram_bytes: int | None = None
    models_dir: Path | None = None
    models: tuple[ModelEntry, ...] = ()
    problems: tuple[Problem, ...] = ()
