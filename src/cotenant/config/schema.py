"""The shape of `cotenant.yaml`: what keys there are and what each takes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cotenant.config import scalars, service_scalars
from cotenant.config.sections import (
    MAX_COUNT,
    MAX_MIB,
    As,
    Batch,
    Cache,
    Command,
    Count,
    Ctx,
    Devices,
    Duration,
    KeepAlive,
    Mib,
    ModelDevices,
    Name,
    PathText,
    ProjectorText,
    Section,
    Switch,
    Text,
    Timeout,
    wrong,
)
from cotenant.config.service_schema import Services
from cotenant.domain.advisors import AdvisorMode
from cotenant.domain.devices import DeviceOrder
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.launching import LauncherKind
from cotenant.domain.models import FlashAttention, ModelKind, SplitMode, SplitPolicy
from cotenant.domain.profiles import Profile
from cotenant.domain.recipes import MAX_PARALLEL
from cotenant.domain.sharing import MpsGroup, MpsMode
from cotenant.domain.units import MIB
from cotenant.scheduling.policy import POLICIES


class Server(Section):
    """Where to listen and who may ask."""

    host: Text | None = Field(default=None, description="address to listen on")
    port: Annotated[int, As(scalars.whole(0, 65535))] | None = Field(
        default=None, description="0: any free one"
    )
    api_keys: list[Annotated[str, As(scalars.api_key())]] | None = Field(
        default=None, description="any of them does"
    )
    api_key_file: PathText | None = Field(default=None, description="file with one key a line")
    insecure: Switch | None = Field(default=None, description="listen on a public address without a key")
    allowed_hosts: list[Text] | None = Field(
        default=None, description="names in public DNS under which browsers may reach it"
    )
    request_log: PathText | None = Field(
        default=None, description="file that gets a line for each request: model and sizes, never content"
    )


class DevicesSection(Section):
    """Which devices are planned on, and how far."""

    use: Devices | None = Field(default=None, description="all, or a list of indices or UUIDs")
    order: Annotated[DeviceOrder, As(scalars.member(DeviceOrder))] | None = None
    reserve_mib: Mib | None = Field(default=None, description="MiB kept free on every device")
    min_budget_mib: Mib | None = Field(default=None, description="a GPU with less than this left is not used")
    overhead_mib: Mib | None = Field(
        default=None, description="MiB per GPU for the CUDA context and its pools"
    )
    gpus: Text | None = Field(
        default=None, description="describe GPUs in place of this machine's, as --gpus does"
    )
    mps: Annotated[MpsMode, As(scalars.member(MpsMode))] | None = Field(
        default=None, description="when engines share cards through CUDA MPS"
    )
    mps_group: Annotated[MpsGroup, As(scalars.member(MpsGroup))] | None = Field(
        default=None, description="which cards one MPS daemon serves"
    )


class RecipeSection(Section):
    """How a model runs: the flags of `serve`, with underscores."""

    ctx: Ctx | None = Field(default=None, description="context in tokens, of all slots together")
    n_ctx: Ctx | None = Field(default=None, description="the same as ctx, by the flag's name")
    parallel: Annotated[int, As(scalars.whole(1, MAX_PARALLEL))] | None = Field(
        default=None, description="requests served at once (slots)"
    )
    n_batch: Batch | None = Field(default=None, description="tokens of a prompt taken at a time")
    n_ubatch: Batch | None = Field(
        default=None, description="tokens computed at a time; sizes the compute buffer"
    )
    cache_type_k: Cache | None = Field(default=None, description="element type of the K cache")
    cache_type_v: Cache | None = Field(default=None, description="element type of the V cache")
    flash_attn: Annotated[FlashAttention, As(scalars.member(FlashAttention))] | None = None
    kv_unified: Switch | None = Field(default=None, description="one KV stream shared by all slots")
    n_gpu_layers: Annotated[int | str, As(scalars.layers())] | None = Field(
        default=None, description="layers on GPUs: a number, auto for the most that fit, -1 for all"
    )
    tensor_split: Annotated[tuple[float, ...], As(scalars.tensor_split())] | None = Field(
        default=None, description="split by hand: proportions or layer counts, devices in planned order"
    )
    smart_split: Switch | None = Field(default=None, description="compute the split from exact layer sizes")
    split_mode: Annotated[SplitMode, As(scalars.member(SplitMode))] | None = None
    split_policy: Annotated[SplitPolicy, As(scalars.member(SplitPolicy))] | None = None
    mmap: Switch | None = Field(default=None, description="map the file instead of reading it into memory")
    mlock: Switch | None = Field(default=None, description="lock the model in RAM")
    keep_alive: KeepAlive | None = Field(
        default=None,
        description="how long it stays loaded after a request; 0: not at all; -1 or forever: always",
    )
    timeout: Timeout | None = Field(default=None, description="how long a request waits for the model")

    @model_validator(mode="after")
    def _one_context(self) -> Self:
        if self.ctx is not None and self.n_ctx is not None:
            raise wrong("it has both ctx and n_ctx, which are the same", "Keep one.")
        return self


class Timeouts(Section):
    """How long a request waits for a model, by what the model is for; before `timeout`."""

    chat: Timeout | None = None
    vision: Timeout | None = Field(default=None, description="of models that take images")
    embeddings: Timeout | None = None
    rerank: Timeout | None = None


class Defaults(RecipeSection):
    """What holds for every model that says nothing of its own."""

    profile: Annotated[Profile, As(scalars.member(Profile))] | None = Field(
        default=None, description="a set of defaults under one name; whatever is set here wins"
    )
    max_loaded: Annotated[int, As(scalars.whole(1, MAX_COUNT))] | None = Field(
        default=None, description="models loaded at once; without it, as many as fit"
    )
    timeouts: Timeouts = Field(default_factory=Timeouts)


class Scheduling(Section):
    """Who waits and who goes."""

    policy: Annotated[str, As(scalars.one_of(POLICIES))] | None = Field(
        default=None, description="how victims of an eviction are valued"
    )
    overdue: Duration | None = Field(
        default=None, description="after this wait a request goes before all others"
    )
    min_residency: Duration | None = Field(
        default=None, description="a loaded model stays at least this long"
    )
    drain_share: Annotated[float, As(scalars.share())] | None = Field(
        default=None, description="share of the time that busy models may be drained for overdue requests"
    )
    drain_limit: Duration | None = Field(default=None, description="longest single drain")
    reclaim_bound: Duration | None = Field(
        default=None, description="how long to wait for memory to be seen free after an engine has gone"
    )
    max_queue: Count | None = Field(default=None, description="requests that may wait for one model")
    max_queue_total: Count | None = Field(default=None, description="requests that may wait in all")
    prefetch: Switch | None = Field(
        default=None, description="load models that are likely next into free memory"
    )


class Alerts(Section):
    """When something is worth telling, and who is told."""

    webhook: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="each alert is posted there as JSON, when it begins and when it ends"
    )
    memory_percent: Annotated[int, As(scalars.whole(1, 100))] | None = Field(
        default=None, description="a GPU fuller than this is told of; 5 below it, that is over"
    )
    for_: Duration | None = Field(
        default=None, alias="for", description="how long a GPU must be that full before it is told of"
    )


class Advisor(Section):
    """A language model that is asked what may be wanted next."""

    mode: Annotated[AdvisorMode, As(scalars.member(AdvisorMode))] | None = Field(
        default=None, description="off; shadow: tell what it would have done; on: follow it within bounds"
    )
    address: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="an OpenAI-compatible address; without it, the model is one served here"
    )
    model: Text | None = Field(default=None, description="the model to ask")
    api_key: Annotated[str, As(scalars.api_key())] | None = Field(
        default=None, description="key of the address"
    )
    every: Timeout | None = Field(default=None, description="how often it is asked")
    timeout: Timeout | None = Field(default=None, description="longest wait for its answer")


class Warm(Section):
    """The page cache as a tier below the GPUs."""

    ram_mib: Mib | None = Field(default=None, description="MiB of model files to keep read ahead in host RAM")

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return {} if data == "off" else data


class Model(RecipeSection):
    """One model, by its file or by where it is served."""

    path: PathText | None = Field(
        default=None,
        description="a GGUF file, the first part of a split one; for vllm, a Hugging Face folder",
    )
    name: Name | None = Field(default=None, description="name that clients use; without it, the file's")
    aliases: list[Name] | None = Field(default=None, description="other names for it")
    engine: Annotated[EngineKind, As(scalars.member(EngineKind))] | None = Field(
        default=None, description="what runs it"
    )
    command: Command | None = Field(
        default=None, description="what starts its server, with {port} and others; for vllm, what vllm is"
    )
    stop: Command | None = Field(default=None, description="what ends that server; without it, SIGTERM")
    health: Annotated[str, As(scalars.url_path())] | None = Field(
        default=None, description="the path that answers 200 once it serves"
    )
    memory: Annotated[int, As(service_scalars.size())] | None = Field(
        default=None, description="what it takes of one device, such as 6GiB; without it, as seen before"
    )
    sleep: Annotated[int, As(scalars.whole(0, 2))] | None = Field(
        default=None, description="the level at which vllm sleeps in place of ending; 0: never"
    )
    address: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="where an ollama or remote model is served"
    )
    model: Text | None = Field(default=None, description="its name there: Ollama's tag, a remote model's id")
    api_key: Annotated[str, As(scalars.api_key())] | None = Field(default=None, description="the key there")
    api_key_env: Annotated[str, As(service_scalars.variable_name())] | None = Field(
        default=None, description="the variable that holds the key"
    )
    kind: Annotated[ModelKind, As(scalars.member(ModelKind))] | None = Field(
        default=None, description="what it is for, where no file says so"
    )
    mmproj: ProjectorText | None = Field(
        default=None, description="its vision projector; without it, the one beside it; none: none"
    )
    image: Text | None = Field(
        default=None, description="the image that its engine runs in; for apptainer, a .sif file"
    )
    launcher: Annotated[LauncherKind, As(scalars.member(LauncherKind))] | None = Field(
        default=None, description="what starts its engine; without it, what suits the image"
    )
    gpus: ModelDevices | None = Field(default=None, description="auto, or a list of indices or UUIDs")
    preload: Switch | None = Field(default=None, description="load it at start")
    pinned: Switch | None = Field(default=None, description="never evict it for another")
    priority: Annotated[int, As(scalars.whole(-100, 100))] | None = Field(
        default=None, description="higher is first"
    )
    env: dict[str, Annotated[str, As(scalars.variable_value())]] | None = Field(
        default=None, description="environment variables of its engine"
    )
    args: list[Text] | None = Field(default=None, description="further arguments of its engine, applied last")
    mps_threads: Annotated[int, As(scalars.percent())] | None = Field(
        default=None, description="its share of a card's multiprocessors under MPS, such as 30%"
    )
    mps_memory_margin_mib: Annotated[float, As(scalars.mib_or_none(MAX_MIB))] | None = Field(
        default=None, description="MiB above the plan that it may take of a card under MPS; none: no limit"
    )


class Ollama(Section):
    """An Ollama daemon, all of whose models are served."""

    address: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="where it listens; without it, http://127.0.0.1:11434"
    )
    gpus: ModelDevices | None = Field(default=None, description="the GPUs that it uses: auto, or a list")


class Settings(BaseSettings, Section):
    """The whole file. Values of flags go before those of the environment, those before the file's."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, case_sensitive=True, title="cotenant.yaml")

    server: Server = Field(default_factory=Server)
    devices: DevicesSection = Field(default_factory=DevicesSection)
    defaults: Defaults = Field(default_factory=Defaults)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    warm: Warm = Field(default_factory=Warm)
    alerts: Alerts = Field(default_factory=Alerts)
    advisor: Advisor = Field(default_factory=Advisor)
    models_dir: PathText | None = Field(
        default=None, description="every GGUF in it is served; watched for changes"
    )
    models: list[Model] = Field(default_factory=list)
    ollama: Ollama | None = Field(default=None, description="serve what an Ollama daemon has")
    services: Services | None = None
    database: Annotated[str, As(service_scalars.database())] | None = Field(
        default=None,
        description="a path, or postgresql+psycopg://…; without it, the state directory's own",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take `flags`, `environment` and `file`, nested mappings each, in this order of precedence."""
        given = init_settings()
        return tuple(
            InitSettingsSource(settings_cls, given.get(source, {}))
            for source in ("flags", "environment", "file")
        )


_RECIPE_NAMES: Final = {"ctx": "n_ctx", "flash_attn": "flash_attention"}
"""Settings that have another name in a Recipe."""
_RECIPE_SETTINGS: Final = tuple(
    key for key in RecipeSection.model_fields if key not in ("keep_alive", "timeout")
)


def recipe_of(section: RecipeSection) -> dict[str, Any]:
    """Return the recipe values that a section gives, by the names of Recipe's fields."""
    values = explicit_values(section, *_RECIPE_SETTINGS)
    return {_RECIPE_NAMES.get(key, key): value for key, value in values.items()}


def explicit_values(section: Any, *keys: str) -> dict[str, Any]:
    """Return those of a section's settings that are given."""
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def keep_alive_of(section: RecipeSection, default: float | None) -> float | None:
    """Return its keep-alive in seconds, None for ever, or the default."""
    if section.keep_alive is None:
        return default
    return None if math.isinf(section.keep_alive) else section.keep_alive


def timeouts_of(section: Timeouts) -> dict[ModelKind, float]:
    """Return seconds by kind of model."""
    kinds = {
        ModelKind.TEXT: section.chat,
        ModelKind.EMBEDDING: section.embeddings,
        ModelKind.RERANK: section.rerank,
    }
    return {kind: seconds for kind, seconds in kinds.items() if seconds is not None}


def mps_shares_of(model: Model) -> dict[str, Any]:
    """Return a model's share of a GPU under MPS, by the names of ModelEntry's fields."""
    shares: dict[str, Any] = {}
    if model.mps_threads is not None:
        shares["mps_threads_percent"] = model.mps_threads
    if model.mps_memory_margin_mib is not None:
        mib = model.mps_memory_margin_mib
        shares["mps_margin_bytes"] = None if math.isinf(mib) else int(mib) * MIB
    return shares
