"""The whole configuration of the daemon, checked and with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cotenant.config.values.nodes import NodesSettings
from cotenant.domain.advisors import AdvisorMode
from cotenant.domain.devices import MpsGroup, MpsMode, MpsTerms
from cotenant.domain.engines import ALONE, NO_OPTIONS, Companions, Endpoint, EngineOptions
from cotenant.domain.keys import ApiKey
from cotenant.domain.launching import ON_HOST, LaunchOptions
from cotenant.domain.models import ModelKind, ModelShape, Projector, Recipe
from cotenant.domain.profiles import Profile
from cotenant.domain.records import ModelOnEngine
from cotenant.domain.requests import NO_RULES, ModelGroup, RequestRules, WaitProgress
from cotenant.domain.residencies import ONE_COPY, Copies
from cotenant.domain.settings import setting
from cotenant.domain.units import MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.model_spec import SchedulerSettings

if TYPE_CHECKING:
    from cotenant.planning.planner import PlanRequest
    from cotenant.services.model import ServicesSettings


class FileSignature(NamedTuple):
    """Changes when a file's content changes. A tuple, since a hundred files are polled twice a second."""

    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen and who has access. The keys of `api_key_file` are read later; `keys` have own rights.

    `allowed_hosts` are names in public DNS under which browsers may reach it. If `request_log` is set, the
    daemon writes a line for each request to that file.
    """

    host: str = setting("127.0.0.1", "address to listen on", group="server", metavar="ADDRESS")
    port: int = setting(
        8080,
        "port to listen on; 0: any free one",
        most=65535,
        group="server",
    )
    api_keys: tuple[str, ...] = setting(
        (),
        "keys with all rights, any of which a client must send",
        flag="api_key",
        reads="api_key",
        shown="none",
    )
    api_key_file: Path | None = setting(None, "file with one key a line", group="server", metavar="FILE")
    keys: tuple[ApiKey, ...] = ()
    insecure: bool = setting(False, "listen on a public address without a key", group="server")
    allowed_hosts: tuple[str, ...] = setting(
        (), "names in public DNS under which browsers may reach it", flag=None, shown="none"
    )
    pulls: bool = setting(
        True, "clients may pull models from the hub into `models_dir` with `/api/pull`", flag=None
    )
    media_hosts: tuple[str, ...] = setting(
        (),
        "hosts from which engines may fetch images, audio and video that requests name; `*`: any",
        flag=None,
        shown="none",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may ask models, such as `https://chat.example.com`; `*`: any",
        flag=None,
        reads="origin",
        shown="none",
    )
    wait_progress: WaitProgress = setting(
        WaitProgress.OFF,
        "how streams are told that they wait for a model: not, in comments, or as its reasoning",
        flag=None,
    )
    request_log: Path | None = setting(
        None,
        "file that gets a line for each request: model and sizes, never content",
        help="write a line for each request: model and sizes, never content",
        group="server",
        metavar="FILE",
    )


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Which devices may be used and how much of each; an empty `use` means all of them.

    `gpus` describes hypothetical GPUs, as `--gpus` does. `mps` says when engines share cards through CUDA's
    Multi-Process Service, `mps_group` which cards one MPS daemon serves.
    """

    use: tuple[str, ...] = setting(
        (), "all, or a list of indices or UUIDs", flag="devices", reads="devices", shown="all"
    )
    drain: tuple[str, ...] = setting(
        (),
        "indices or UUIDs on which nothing is placed: what is there moves away",
        flag=None,
        reads="device",
        shown="none",
    )
    rules: BudgetRules = field(default_factory=BudgetRules)
    gpus: str | None = setting(None, "describe GPUs in place of this machine's, as --gpus does")
    mps: MpsMode = setting(MpsMode.AUTO, "when engines share cards through CUDA MPS", group="engine")
    mps_group: MpsGroup = setting(MpsGroup.ALL, "which cards one MPS daemon serves", group="engine")


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """Defaults for models that do not set a value themselves; `keep_alive_s` None never unloads.

    `timeouts_s` (by kind) and `vision_timeout_s` (models that take images) override `timeout_s`.
    """

    recipe: Recipe = field(default_factory=Recipe)
    keep_alive_s: float | None = setting(
        300.0,
        "how long it stays loaded after a request; 0: not at all; -1 or forever: always",
        key="keep_alive",
        reads="keep_alive",
        shown="5m",
    )
    timeout_s: float = setting(
        600.0,
        "how long a request waits for the model, then for the first byte of its answer and between two; "
        "an answer that is no stream must come whole in this time",
        key="timeout",
        help="how long a request waits for its turn, and then for its answer or the next part of it",
        reads="timeout",
        group="server",
        metavar="TIME",
        shown="10m",
    )
    answer_timeout_s: float | None = setting(
        None, "longest answer in whole, streams too", key="answer_timeout", reads="timeout", group="server"
    )
    profile: Profile | None = setting(
        None,
        "a set of defaults under one name; whatever is set here wins",
        help="low-memory: small context, one slot, quantised cache, as many layers on GPUs as fit; "
        "whatever else is given wins",
    )
    timeouts_s: Mapping[ModelKind, float] = field(default_factory=dict)
    vision_timeout_s: float | None = None

    def timeout_for(self, kind: ModelKind, *, vision: bool) -> float:
        """Return the timeout of a model that does not set one itself."""
        if vision and self.vision_timeout_s is not None:
            return self.vision_timeout_s
        return self.timeouts_s.get(kind, self.timeout_s)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to serve, with what its file says.

    `recipe` has every default filled in. `gpus` are indices or UUIDs, empty for any device. It is unloaded
    `keep_alive_s` after its last request, None never; a request waits for it, and then for its answer,
    `timeout_s` at most; an answer takes `answer_timeout_s` at most.
    `parts` are all its files except the projector and the `companions`; `signature` changes when one of them
    changes. `draft` is what the file of the draft among the companions holds; `adapted` is `shape` with the
    adapters in it, None without any.
    `from_folder` is true if it has no entry and is served because its file is in `models_dir`.
    `path` is None if its file is not read. `options` are further options of its kind of engine, `launch` says
    how its engine is started. `stated_bytes` is the memory that the operator states or, if `stated_is_guess`,
    an estimate from the file size until it is measured.
    Under MPS it gets `mps_threads_percent` of each card's SMs, None for all, and at most `mps_margin_bytes`
    of memory above the plan, None for no limit.
    Whoever connects to `listen` has it loaded, and is passed to it.
    Requests that name it follow `rules`, those that name one of its `variants` the rules of that name.
    """

    name: str
    path: Path | None
    recipe: Recipe
    shape: ModelShape
    signature: tuple[FileSignature, ...]
    parts: tuple[Path, ...]
    projector_path: Path | None = None
    projector: Projector | None = None
    companions: Companions = ALONE
    draft: ModelShape | None = None
    adapted: ModelShape | None = None
    aliases: tuple[str, ...] = setting((), "other names for it", flag=None, reads="name", shown="none")
    gpus: tuple[str, ...] = setting(
        (),
        "auto, or a list of indices or UUIDs; of several machines `b:0`, or `b` for all of b",
        flag=None,
        reads="model_devices",
        shown="auto",
    )
    nodes: tuple[str, ...] = setting(
        (),
        "machines that it may run on, by name, where there are several",
        flag=None,
        reads="node",
        shown="any",
    )
    across_nodes: bool = setting(
        False,
        "where no machine could hold it, spread it over the GPUs of several, which is slow",
        flag=None,
    )
    gpus_fallback: bool = setting(
        True, "while GPUs of `gpus` are not there and it does not fit the others, use any", flag=None
    )
    keep_alive_s: float | None = 300.0
    preload: bool = setting(False, "load it at start, and again if its engine dies", flag=None)
    pinned: bool = setting(False, "never evict it for another; load it again if its engine dies", flag=None)
    priority: int = setting(0, "higher is first", flag=None, least=-100, most=100)
    timeout_s: float = 600.0
    answer_timeout_s: float | None = None
    copies: Copies = setting(
        ONE_COPY,
        "engines that serve it, each on GPUs of its own: a number, or {min: 1, max: 3} to add some while "
        "requests wait",
        flag=None,
        reads="copies",
        shown="1",
    )
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = setting(
        (), "further arguments of its engine, applied last", flag=None, shown="none"
    )
    from_folder: bool = False
    mps_threads_percent: int | None = setting(
        None,
        "its share of a card's multiprocessors under MPS, such as 30%",
        key="mps_threads",
        flag=None,
        reads="percent",
        shown="all",
    )
    mps_margin_bytes: int | None = setting(
        512 * MIB,
        "MiB above the plan that it may take of a card under MPS; none: no limit",
        key="mps_memory_margin_mib",
        flag=None,
        reads="mib_or_none",
    )
    listen: Endpoint | None = setting(
        None,
        "a port of its own, or HOST:PORT, whose connections load it and are passed to it as they are, for "
        "kind any; nobody is asked for a key there",
        flag=None,
        reads="listen",
        shown="none",
    )
    rules: RequestRules = NO_RULES
    variants: Mapping[str, RequestRules] = field(default_factory=dict)
    options: EngineOptions = NO_OPTIONS
    launch: LaunchOptions = ON_HOST
    stated_bytes: int | None = None
    stated_is_guess: bool = False

    @property
    def mps_terms(self) -> MpsTerms:
        """What its engine gets of cards that it shares."""
        return MpsTerms(self.mps_margin_bytes, self.mps_threads_percent)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that clients may use: its own, the aliases, the variants."""
        return (self.name, *self.aliases, *self.variants)

    @property
    def on_engine(self) -> ModelOnEngine:
        """What its memory is learned by."""
        return ModelOnEngine(self.name, self.recipe.engine)

    @property
    def loaded(self) -> ModelShape:
        """What is loaded of the model: with its adapters."""
        return self.adapted or self.shape

    @property
    def request(self) -> PlanRequest:
        """The request for the planner."""
        from cotenant.planning.planner import PlanRequest

        return PlanRequest(
            self.name,
            self.loaded,
            self.recipe,
            self.projector,
            self.stated_bytes,
            self.draft,
            self.across_nodes,
        )


@dataclass(frozen=True, slots=True)
class OllamaSettings:
    """An Ollama daemon: all its models are served. It uses the GPUs in `gpus`, empty for any."""

    address: Endpoint
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """When alerts are raised, and the URL of the webhook, None for no webhook.

    A card raises an alert when its memory use is above `memory_percent` for `memory_for_s` seconds.
    """

    webhook: str | None = setting(
        None,
        "URL that gets each alert as JSON, when it begins and when it ends",
        flag=None,
        reads="web_address",
    )
    memory_percent: int = setting(
        90, "raise an alert above this usage of a GPU; clear it 5 points below", flag=None, least=1, most=100
    )
    memory_for_s: float = setting(
        60.0, "how long a GPU must be above it", key="for", flag=None, reads="duration"
    )


@dataclass(frozen=True, slots=True)
class AdvisorSettings:
    """The model that gives advice, and how often it is asked; without `address`, a model served here."""

    mode: AdvisorMode = setting(
        AdvisorMode.OFF,
        "off; shadow: report what it would have done; on: follow it within bounds",
        flag=None,
    )
    address: str | None = setting(
        None,
        "an OpenAI-compatible address; without it, the model is one served here",
        flag=None,
        reads="web_address",
    )
    model: str | None = setting(None, "the model to ask", flag=None)
    api_key: str | None = setting(None, "key of the address", flag=None, reads="api_key", secret=True)
    every_s: float = setting(60.0, "how often it is asked", key="every", flag=None, reads="timeout")
    timeout_s: float = setting(30.0, "longest wait for its answer", key="timeout", flag=None, reads="timeout")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that does not stop the daemon: a file that is not served, a name that was changed."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The whole configuration. `path` is None if no file was read.

    At most `warm_ram_bytes` of model files are kept in host RAM, 0 for none, None for half of what is free;
    of KV caches `warm_kv_bytes`, None for 1/16 of the RAM, in `warm_kv_dir`, None for a folder in RAM.

    `is_empty` says that there is no file or that no setting is in it.

    `nodes` and `services` are None without such a section. `database` is a path or a URL, None for the file
    in the state directory.
    """

    path: Path | None = None
    is_empty: bool = True
    server: ServerSettings = field(default_factory=ServerSettings)
    devices: DeviceSettings = field(default_factory=DeviceSettings)
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    scheduling: SchedulerSettings = field(default_factory=SchedulerSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    nodes: NodesSettings | None = None
    advisor: AdvisorSettings = field(default_factory=AdvisorSettings)
    warm_ram_bytes: int | None = None
    warm_kv_bytes: int | None = None
    warm_kv_dir: Path | None = None
    models_dir: Path | None = None
    models: tuple[ModelEntry, ...] = ()
    groups: tuple[ModelGroup, ...] = ()
    services: ServicesSettings | None = None
    database: str | None = None
    ollama: OllamaSettings | None = None
    problems: tuple[Problem, ...] = ()
