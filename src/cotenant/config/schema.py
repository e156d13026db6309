"""The shape of `cotenant.yaml`: what keys there are and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cotenant.config import scalars
from cotenant.config.configuration import EvictionPolicy
from cotenant.config.scalars import Scalar
from cotenant.domain.devices import DeviceOrder
from cotenant.domain.errors import UsageError
from cotenant.domain.models import CacheType, EngineKind, FlashAttention, SplitMode, SplitPolicy
from cotenant.domain.recipes import MAX_BATCH, MAX_CTX, MAX_PARALLEL

COMPLAINT = "complaint"
"""The type of pydantic's errors that carry our own words."""
_MAX_MIB = 1 << 30
_MAX_COUNT = 1_000_000


def wrong(what: str, hint: str) -> PydanticCustomError:
    """Return an error that carries what is wrong and what to do."""
    return PydanticCustomError(COMPLAINT, "{what}", {"what": what, "hint": hint})


@dataclass(frozen=True, slots=True, eq=False)
class As:
    """Has pydantic read a value as a Scalar does; equal to itself alone, since pydantic hashes it."""

    scalar: Scalar

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.scalar.json)

    def _read(self, value: Any) -> Any:
        try:
            return self.scalar.read(value)
        except UsageError as error:
            raise wrong(error.message, error.hint) from None


Text = Annotated[str, As(scalars.text())]
Name = Annotated[str, As(scalars.name())]
PathText = Annotated[str, As(scalars.path())]
ProjectorText = Annotated[str, As(scalars.path(absent="none"))]
Switch = Annotated[bool, As(scalars.switch())]
Duration = Annotated[float, As(scalars.duration())]
Timeout = Annotated[float, As(scalars.duration(least=0.001))]
KeepAlive = Annotated[float, As(scalars.keep_alive())]
Mib = Annotated[int, As(scalars.whole(0, _MAX_MIB))]
Count = Annotated[int, As(scalars.whole(0, _MAX_COUNT))]
Ctx = Annotated[int, As(scalars.whole(1, MAX_CTX))]
Batch = Annotated[int, As(scalars.whole(1, MAX_BATCH))]
Cache = Annotated[CacheType, As(scalars.member(CacheType))]
Devices = Annotated[tuple[str, ...], As(scalars.words(everything="all"))]
ModelDevices = Annotated[tuple[str, ...], As(scalars.words(everything="auto"))]


class Section(BaseModel):
    """A mapping with known keys; one that is left empty counts as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


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


class Defaults(RecipeSection):
    """What holds for every model that says nothing of its own."""

    max_loaded: Annotated[int, As(scalars.whole(1, _MAX_COUNT))] | None = Field(
        default=None, description="models loaded at once; without it, as many as fit"
    )


class Scheduling(Section):
    """Who waits and who goes."""

    policy: Annotated[EvictionPolicy, As(scalars.member(EvictionPolicy))] | None = Field(
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


class Warm(Section):
    """The page cache as a tier below the GPUs."""

    ram_mib: Mib | None = Field(default=None, description="MiB of model files to keep read ahead in host RAM")

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return {} if data == "off" else data


class Model(RecipeSection):
    """One model, by its file."""

    path: PathText = Field(description="a GGUF file, the first part of a split one")
    name: Name | None = Field(default=None, description="name that clients use; without it, the file's")
    aliases: list[Name] | None = Field(default=None, description="other names for it")
    engine: Annotated[EngineKind, As(scalars.engine())] | None = Field(
        default=None, description="what runs it"
    )
    mmproj: ProjectorText | None = Field(
        default=None, description="its vision projector; without it, the one beside it; none: none"
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


class Settings(BaseSettings, Section):
    """The whole file. Values of flags go before those of the environment, those before the file's."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, case_sensitive=True, title="cotenant.yaml")

    server: Server = Field(default_factory=Server)
    devices: DevicesSection = Field(default_factory=DevicesSection)
    defaults: Defaults = Field(default_factory=Defaults)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    warm: Warm = Field(default_factory=Warm)
    models_dir: PathText | None = Field(
        default=None, description="every GGUF in it is served; watched for changes"
    )
    models: list[Model] = Field(default_factory=list)

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
