"""Everything that the daemon is told, checked and with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.config.model_file_cache import FileSignature
from cotenant.domain.advisors import AdvisorMode
from cotenant.domain.engine_options import NO_OPTIONS, EngineOptions
from cotenant.domain.engines import Endpoint
from cotenant.domain.launching import ON_HOST, LaunchOptions
from cotenant.domain.models import ModelKind, ModelShape, Recipe
from cotenant.domain.sharing import MpsGroup, MpsMode
from cotenant.domain.units import MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest
from cotenant.scheduling.policy import DEFAULT_POLICY
from cotenant.services.settings import ServicesSettings


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen and who may ask; keys of `api_key_file` are still to be read.

    `allowed_hosts` are names in public DNS under which browsers may reach it. A line for each request goes to
    the file `request_log`, if there is one.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    request_log: Path | None = None


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Which devices may be planned on and how far; an empty `use` means all of them.

    `gpus` describes hypothetical GPUs, as `--gpus` does. `mps` is when engines share cards through CUDA's
    Multi-Process Service, `mps_group` which cards one daemon of it serves.
    """

    use: tuple[str, ...] = ()
    rules: BudgetRules = field(default_factory=BudgetRules)
    gpus: str | None = None
    mps: MpsMode = MpsMode.AUTO
    mps_group: MpsGroup = MpsGroup.ALL


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Who waits, who goes, and how many may wait at all (`max_queue` of each model)."""

    policy: str = DEFAULT_POLICY
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
    """What holds for a model that says nothing of its own; `keep_alive_s` None never unloads.

    `timeouts_s` go before `timeout_s`: by kind, and `vision_timeout_s` for models that take images.
    """

    recipe: Recipe = field(default_factory=Recipe)
    keep_alive_s: float | None = 300.0
    timeout_s: float = 600.0
    timeouts_s: Mapping[ModelKind, float] = field(default_factory=dict)
    vision_timeout_s: float | None = None

    def timeout_for(self, kind: ModelKind, *, vision: bool) -> float:
        """Return how long a request waits for a model that sets nothing of its own."""
        of_kind = self.timeouts_s.get(kind, self.timeout_s)
        return of_kind if not vision or self.vision_timeout_s is None else self.vision_timeout_s


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to serve, its file read.

    `recipe` has every default filled in. `gpus` are indices or UUIDs, empty for any device. It is unloaded
    `keep_alive_s` after its last request, None never; a request waits for it `timeout_s` at most.
    `parts` are all its files, the projector's aside; `signature` changes whenever one of them does.
    `from_folder` says that it is served for being in `models_dir`, without an entry of its own.
    `path` is None where its file is not read; `options` are what its kind of engine needs besides,
    `launch` in what it runs, and `stated_bytes` what the operator says that it takes or, if
    `stated_is_guess`, what its file suggests until it is seen.
    Under MPS it gets `mps_threads_percent` of each card's SMs, None for all, and at most `mps_margin_bytes`
    of memory beyond what is planned, None for no such limit.
    """

    name: str
    path: Path | None
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
    mps_threads_percent: int | None = None
    mps_margin_bytes: int | None = 512 * MIB
    options: EngineOptions = NO_OPTIONS
    launch: LaunchOptions = ON_HOST
    stated_bytes: int | None = None
    stated_is_guess: bool = False

    @property
    def request(self) -> PlanRequest:
        """What the planner is asked for it."""
        return PlanRequest(self.name, self.shape, self.recipe, self.projector_bytes, self.stated_bytes)


@dataclass(frozen=True, slots=True)
class OllamaSettings:
    """An Ollama daemon, all of whose models are served; it uses the GPUs of `gpus`, empty for any."""

    address: Endpoint
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """When something is worth telling; `webhook` is posted to, None for nowhere.

    A card that is fuller than `memory_percent` for `memory_for_s` is told of.
    """

    webhook: str | None = None
    memory_percent: int = 90
    memory_for_s: float = 60.0


@dataclass(frozen=True, slots=True)
class AdvisorSettings:
    """Whom to ask for advice, and how often; without `address` the model is one that we serve."""

    mode: AdvisorMode = AdvisorMode.OFF
    address: str | None = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    every_s: float = 60.0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What stops nothing but should be known: a file that is not served, a name that was changed."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of it. `path` is None where no file was read; `warm_ram_bytes` is None where the tier is off.

    `services` is None without a section of that name. `database` is a path or a URL, None for the file in
    the state directory.
    """

    path: Path | None = None
    server: ServerSettings = field(default_factory=ServerSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    advisor: AdvisorSettings = field(default_factory=AdvisorSettings)
    warm_ram_bytes: int | None = None
    models_dir: Path | None = None
    models: tuple[ModelEntry, ...] = ()
    services: ServicesSettings | None = None
    database: str | None = None
    ollama: OllamaSettings | None = None
    problems: tuple[Problem, ...] = ()
