"""The schema of `cotenant.yaml`: its keys and their values."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cotenant.config import scalars, service_scalars
from cotenant.config.configuration import ModelEntry
from cotenant.config.fields import SECTIONS, recipe_settings, values_of
from cotenant.config.sections import (
    As,
    Command,
    Ctx,
    Mib,
    ModelDevices,
    Name,
    PathText,
    ProjectorText,
    Section,
    Text,
    Timeout,
    section_of,
    wrong,
)
from cotenant.config.service_schema import Services
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.launching import LauncherKind
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.settings import settings_of

_Server: Any = section_of(SECTIONS["server"])
_Devices: Any = section_of(SECTIONS["devices"])
_Recipe: Any = section_of(recipe_settings())
_Defaults: Any = section_of(SECTIONS["defaults"])
_Scheduling: Any = section_of(SECTIONS["scheduling"])
_Alerts: Any = section_of(SECTIONS["alerts"])
_Advisor: Any = section_of(SECTIONS["advisor"])
_Model: Any = section_of(settings_of(ModelEntry))


class Server(_Server):  # type: ignore[misc]
    """Where to listen and who has access."""


class DevicesSection(_Devices):  # type: ignore[misc]
    """Which devices are used, and how much of each."""


class RecipeSection(_Recipe):  # type: ignore[misc]
    """How a model runs: the flags of `serve`, with underscores."""

    ctx_by_flag: Ctx | None = Field(
        default=None, alias="n_ctx", description="the same as ctx, under the flag's name"
    )

    @model_validator(mode="after")
    def _one_context(self) -> Self:
        if self.n_ctx is not None and self.ctx_by_flag is not None:
            raise wrong("it has both ctx and n_ctx, which are the same", "Keep one.")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """The values for a Recipe, by field name."""
        context = {} if self.ctx_by_flag is None else {"n_ctx": self.ctx_by_flag}
        return {**values_of(self, Recipe), **context}


class Timeouts(Section):
    """How long a request waits for a model, by the model's purpose; these override `timeout`."""

    chat: Timeout | None = None
    vision: Timeout | None = Field(default=None, description="for models that accept images")
    embeddings: Timeout | None = None
    rerank: Timeout | None = None

    @property
    def by_kind(self) -> dict[ModelKind, float]:
        """Seconds by kind of model."""
        kinds = {
            ModelKind.TEXT: self.chat,
            ModelKind.EMBEDDING: self.embeddings,
            ModelKind.RERANK: self.rerank,
        }
        return {kind: seconds for kind, seconds in kinds.items() if seconds is not None}


class Defaults(RecipeSection, _Defaults):  # type: ignore[misc]
    """Defaults for models that do not set a value themselves."""

    timeouts: Timeouts = Field(default_factory=Timeouts)


class Scheduling(_Scheduling):  # type: ignore[misc]
    """Which requests wait and which models are evicted."""


class Alerts(_Alerts):  # type: ignore[misc]
    """When alerts are raised, and where they are sent."""


class Advisor(_Advisor):  # type: ignore[misc]
    """A language model that predicts which models will be requested next."""


class Warm(Section):
    """Model files that are kept in the page cache of host RAM."""

    ram_mib: Mib | None = Field(default=None, description="MiB of model files to keep read ahead in host RAM")

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return {} if data == "off" else data


class Model(RecipeSection, _Model):  # type: ignore[misc]
    """One model: its file, or the address where it is served."""

    path: PathText | None = Field(
        default=None,
        description="a GGUF file, the first part of a split one; for vllm, a Hugging Face folder",
    )
    name: Name | None = Field(default=None, description="name that clients use; default: the file's name")
    engine: Annotated[EngineKind, As(scalars.member(EngineKind))] | None = Field(
        default=None, description="kind of engine that runs it"
    )
    command: Command | None = Field(
        default=None, description="command of its server, with {port} and others; for vllm, that of vllm"
    )
    stop: Command | None = Field(default=None, description="command that stops the server; default: SIGTERM")
    health: Annotated[str, As(scalars.url_path())] | None = Field(
        default=None, description="path that returns 200 when it is ready"
    )
    memory: Annotated[int, As(service_scalars.size())] | None = Field(
        default=None, description="memory it needs on one device, such as 6GiB; default: as measured before"
    )
    sleep: Annotated[int, As(scalars.whole(0, 2))] | None = Field(
        default=None, description="sleep level that vllm uses in place of stopping; 0: never"
    )
    address: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="URL where an ollama or remote model is served"
    )
    model: Text | None = Field(default=None, description="its name there: Ollama's tag, a remote model's id")
    api_key: Annotated[str, As(scalars.api_key())] | None = Field(default=None, description="API key for it")
    api_key_env: Annotated[str, As(service_scalars.variable_name())] | None = Field(
        default=None, description="environment variable that contains the key"
    )
    kind: Annotated[ModelKind, As(scalars.member(ModelKind))] | None = Field(
        default=None, description="purpose of the model, if no file states it"
    )
    mmproj: ProjectorText | None = Field(
        default=None, description="its vision projector; default: the one in its folder; none: none"
    )
    image: Text | None = Field(
        default=None, description="container image of its engine; for apptainer, a .sif file"
    )
    launcher: Annotated[LauncherKind, As(scalars.member(LauncherKind))] | None = Field(
        default=None, description="program that starts its engine; default: one that suits the image"
    )
    env: dict[str, Annotated[str, As(scalars.variable_value())]] | None = Field(
        default=None, description="environment variables of its engine"
    )


class Ollama(Section):
    """An Ollama daemon: all its models are served."""

    address: Annotated[str, As(scalars.web_address())] | None = Field(
        default=None, description="URL where it listens; default: http://127.0.0.1:11434"
    )
    gpus: ModelDevices | None = Field(default=None, description="the GPUs that it uses: auto, or a list")


class Settings(BaseSettings, Section):
    """The whole file. Flags override environment variables, which override the file."""

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
    ollama: Ollama | None = Field(default=None, description="serve the models of an Ollama daemon")
    services: Services | None = None
    database: Annotated[str, As(service_scalars.database())] | None = Field(
        default=None,
        description="a path, or postgresql+psycopg://…; default: a file in the state directory",
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
        """Read the nested mappings `flags`, `environment` and `file`, in this order of precedence."""
        sources = init_settings()
        return tuple(
            InitSettingsSource(settings_cls, sources.get(source, {}))
            for source in ("flags", "environment", "file")
        )
