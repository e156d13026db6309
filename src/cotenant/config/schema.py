"""The schema of `cotenant.yaml`: its keys and their values, and the settings that are valid by it."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from cotenant.config import companions, keys, scalars
from cotenant.config.configuration import ModelEntry
from cotenant.config.fields import MAX_MIB, SECTIONS, is_list, recipe_settings, scalar_of, values_of
from cotenant.config.issues import ConfigIssue, KeyPath, refusal, wrong
from cotenant.config.sections import Section, optional
from cotenant.config.values import request_fields
from cotenant.config.yaml_document import Document
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Adapter
from cotenant.domain.launching import LauncherKind
from cotenant.domain.models import MAX_CTX, ModelKind, Recipe
from cotenant.domain.requests import GroupUse, RequestRules
from cotenant.domain.settings import Setting, settings_of
from cotenant.scheduling.model_spec import MAX_COUNT
from cotenant.services.model import DeviceNames, GpuCount, OnFailure, ServiceRole, Strategy

Text = Annotated[str, scalars.text]
PathText = Annotated[str, scalars.path]
Url = Annotated[str, scalars.web_address]
Variable = Annotated[str, scalars.variable_name]
Adapters = Annotated[tuple[Adapter, ...], companions.adapters]
Switch = Annotated[bool, scalars.switch]
Timeout = Annotated[float, scalars.duration(least=0.001)]
Mib = Annotated[int, scalars.whole(0, MAX_MIB)]
Command = Annotated[tuple[str, ...], scalars.command(everything="")]


def _no_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def of_defaults() -> Any:
    """Declare a section that may be left out.

    Its default is validated with the whole: built by its own class, that class would need a validator too,
    which takes each command longer than all of the rest of the configuration.
    """
    return Field(default={}, validate_default=True, json_schema_extra=_no_default)


def section_of(settings: Iterable[Setting]) -> Any:
    """Return a section with an optional field for each setting; the alias of a field is its key."""
    declared: dict[str, Any] = {}
    for each in settings:
        item = Annotated[Any, scalar_of(each)]
        kind = list[item] if is_list(each) else item
        alias = each.key if each.key != each.name else None
        declared[each.name] = (kind | None, optional(each.text, alias))
    return create_model("Section", __base__=Section, **declared)


class Key(section_of(SECTIONS["server.keys"])):  # type: ignore[misc]
    """A key with rights of its own."""

    name: Annotated[str, keys.key_name] = Field(description="its name in logs, metrics and the console")
    digest: Annotated[bytes, keys.key_or_hash] = Field(
        alias="key", description="the key, or `sha256:` and the 64 hex digits of its SHA-256"
    )


class Server(section_of(SECTIONS["server"])):  # type: ignore[misc]
    """Where to listen and who has access."""

    keys: list[Key] = Field(default_factory=list, description="keys with rights of their own")


class DevicesSection(section_of(SECTIONS["devices"])):  # type: ignore[misc]
    """Which devices are used, and how much of each."""


class RecipeSection(section_of(recipe_settings())):  # type: ignore[misc]
    """How a model runs: the flags of `serve`, with underscores."""

    ctx_by_flag: Annotated[int, scalars.whole(1, MAX_CTX)] | None = optional(
        "the same as ctx, under the flag's name", "n_ctx"
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
    """How long a request waits for a model, and for its answer, by the model's purpose, over `timeout`."""

    chat: Timeout | None = None
    vision: Timeout | None = optional("for models that accept images")
    embeddings: Timeout | None = None
    rerank: Timeout | None = None
    speech: Timeout | None = None
    transcription: Timeout | None = None
    image: Timeout | None = None

    @property
    def by_kind(self) -> dict[ModelKind, float]:
        """Seconds by kind of model."""
        kinds = {
            ModelKind.TEXT: self.chat,
            ModelKind.EMBEDDING: self.embeddings,
            ModelKind.RERANK: self.rerank,
            ModelKind.SPEECH: self.speech,
            ModelKind.TRANSCRIPTION: self.transcription,
            ModelKind.IMAGE: self.image,
        }
        return {kind: seconds for kind, seconds in kinds.items() if seconds is not None}


class Defaults(RecipeSection, section_of(SECTIONS["defaults"])):  # type: ignore[misc]
    """Defaults for models that do not set a value themselves."""

    timeouts: Timeouts = of_defaults()


class Scheduling(section_of(SECTIONS["scheduling"])):  # type: ignore[misc]
    """Which requests wait and which models are evicted."""


class Alerts(section_of(SECTIONS["alerts"])):  # type: ignore[misc]
    """When alerts are raised, and where they are sent."""


class Advisor(section_of(SECTIONS["advisor"])):  # type: ignore[misc]
    """A language model that predicts which models will be requested next."""


class Warm(Section):
    """What is kept in host RAM: model files, and KV caches of unloaded models."""

    ram_mib: Mib | None = optional(
        "MiB of files to keep at most, 0 for none; default: half of the available memory"
    )

    kv_mib: Mib | None = optional(
        "MiB of KV caches to keep over unloads at most, 0 for none; default: 1/16 of the RAM"
    )
    kv_dir: PathText | None = optional("folder for them, on a disk too; default: one in RAM")

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return {"ram_mib": 0, "kv_mib": 0} if data in ("off", False) else data


class RulesSection(Section):
    """What is changed in the fields of requests."""

    set_fields: Annotated[dict[str, Any], request_fields.values] | None = optional(
        "fields of requests to set, in place of what clients send", "set"
    )
    strip_fields: list[Annotated[str, request_fields.name]] | None = optional(
        "fields of requests to remove", "strip"
    )
    limits: Annotated[dict[str, float], request_fields.limits] | None = optional(
        "fields of requests with the most that their numbers may be", "limit"
    )

    @property
    def rules(self) -> RequestRules:
        """The rules as the gateway applies them."""
        return RequestRules(self.set_fields or {}, tuple(self.strip_fields or ()), self.limits or {})


class Variant(RulesSection):
    """Another name of a model, `MODEL:NAME`, whose requests follow further rules."""


class Model(RecipeSection, RulesSection, section_of(settings_of(ModelEntry))):  # type: ignore[misc]
    """One model: its file, or the address where it is served."""

    path: PathText | None = optional(
        "a GGUF file, the first part of a split one; for vllm, a Hugging Face folder"
    )
    name: Annotated[str, scalars.name] | None = optional("name that clients use; default: the file's name")
    engine: Annotated[EngineKind, scalars.member(EngineKind)] | None = optional("kind of engine that runs it")
    command: Command | None = optional("its server's command, with {port} and others; for vllm, vllm's")
    llama_server: PathText | None = optional(
        "the llama-server that runs it; default: --llama-server, else the best of this machine"
    )
    stop: Command | None = optional("command that stops the server; default: SIGTERM")
    health: Annotated[str, scalars.url_path] | None = optional("path that returns 200 when it is ready")
    memory: Annotated[int, scalars.size] | None = optional(
        "memory it needs on one device, such as 6GiB; default: as measured before"
    )
    sleep: Annotated[int, scalars.whole(0, 2)] | None = optional(
        "sleep level that vllm uses in place of stopping; 0: never"
    )
    address: Url | None = optional("URL where an ollama or remote model is served")
    model: Text | None = optional("its name there: Ollama's tag, a remote model's id")
    api_key: Annotated[str, scalars.api_key] | None = optional("API key for it")
    api_key_env: Variable | None = optional("environment variable that contains the key")
    kind: Annotated[ModelKind, scalars.member(ModelKind)] | None = optional(
        "purpose of the model, if no file states it"
    )
    mmproj: Annotated[str, scalars.projector] | None = optional(
        "its vision projector; default: the one in its folder; none: none"
    )
    base: Text | None = optional("model whose engine serves this entry, with the adapters of `lora` alone")
    lora: Adapters | None = optional("LoRA adapters, each a path or {path: FILE, scale: 1.0}")
    control_vectors: Adapters | None = optional("control vectors, as `lora`; they hold for all requests")
    draft: PathText | None = optional("a smaller GGUF of the same vocabulary, which guesses tokens for it")
    image: Text | None = optional("container image of its engine; for apptainer, a .sif file")
    launcher: Annotated[LauncherKind, scalars.member(LauncherKind)] | None = optional(
        "program that starts its engine; default: one that suits the image"
    )
    env: dict[str, Annotated[str, scalars.variable_value]] | None = optional(
        "environment variables of its engine"
    )
    variants: dict[Annotated[str, request_fields.variant], Variant] = Field(
        default_factory=dict, description="names MODEL:NAME for it, whose requests follow further rules"
    )


class Group(RulesSection):
    """A name for several models, of which one serves each request."""

    name: Annotated[str, scalars.name] = Field(description="name that clients use")
    members: list[Annotated[str, scalars.name]] = Field(
        description="models, by name or alias, the preferred one first", min_length=1
    )
    use: Annotated[GroupUse, scalars.member(GroupUse)] | None = optional(
        "warm: a member that is loaded, else the first; first: the first; default: warm"
    )
    spill_over: Annotated[int, scalars.whole(1, MAX_COUNT)] | None = optional(
        "a member with so many requests is passed over while another has fewer; default: never"
    )


class Compose(Section):
    """The compose files, and the command that starts them."""

    files: Annotated[tuple[str, ...], scalars.paths] = Field(
        description="the compose files, in the order of their -f flags"
    )
    command: Annotated[tuple[str, ...], scalars.command(everything="auto")] | None = optional(
        "auto, or the compose command: a list of arguments, or one text"
    )
    project: Annotated[str, scalars.compose_project] | None = optional(
        "the compose project; default: by compose's own rule"
    )


class ServiceItem(Section):
    """One container that uses a GPU."""

    name: Annotated[str, scalars.compose_service] = Field(description="its name in the compose file")
    model: Text | None = optional("the model in it, for display")
    vram_mib: Mib | None = optional("MiB of GPU memory that it needs")
    vram: Annotated[int, scalars.size] | None = optional("the same with a unit, such as 6.8GiB")
    role: Annotated[ServiceRole, scalars.member(ServiceRole)] | None = None
    latency_critical: Switch | None = optional("it belongs on the fastest GPU")
    enabled: Switch | None = optional("false: leave it where it is")
    gpu_count: Annotated[GpuCount, scalars.gpu_count] | None = optional(
        "how many GPUs a strategy gives it, or all; default: 1"
    )
    budget_env: Variable | None = optional(
        "environment variable for its VRAM budget in GB", "vram_budget_env"
    )
    health_url: Annotated[str, scalars.health] | None = optional(
        "URL that answers when it is healthy, or its port", "health"
    )
    health_timeout_s: Timeout | None = optional("longest time to become healthy", "health_timeout")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.vram is not None and self.vram_mib is not None:
            raise wrong("it has both vram and vram_mib, which are the same", "Keep one.")
        return self


class Services(Section):
    """Containers that are pinned to GPUs through an override of their compose files."""

    compose: Compose
    strategy: Annotated[Strategy, scalars.member(Strategy)] | None = optional(
        "the rule that assigns services to GPUs"
    )
    items: list[ServiceItem] = Field(default_factory=list)
    output_dir: PathText | None = optional(
        "folder for generated files; default: config next to the first compose file"
    )
    device_ids: Annotated[DeviceNames, scalars.member(DeviceNames)] | None = optional(
        "how the override names GPUs"
    )
    on_failure: Annotated[OnFailure, scalars.member(OnFailure)] | None = optional(
        "what to do if a service does not become healthy again"
    )
    parallel: Annotated[int, scalars.whole(1, 64)] | None = optional("services recreated at once, at most")
    command_timeout_s: Timeout | None = optional(
        "longest run of the compose command for one service", "command_timeout"
    )


class Ollama(Section):
    """An Ollama daemon: all its models are served."""

    address: Url | None = optional("URL where it listens; default: http://127.0.0.1:11434")
    gpus: Annotated[tuple[str, ...], scalars.words(everything="auto")] | None = optional(
        "the GPUs that it uses: auto, or a list"
    )


class Nodes(section_of(SECTIONS["nodes"])):  # type: ignore[misc]
    """Other machines whose GPUs are used."""


class Settings(Section):
    """The whole file. Flags override environment variables, which override the file."""

    model_config = ConfigDict(title="cotenant.yaml")

    server: Server = of_defaults()
    devices: DevicesSection = of_defaults()
    defaults: Defaults = of_defaults()
    scheduling: Scheduling = of_defaults()
    warm: Warm = of_defaults()
    alerts: Alerts = of_defaults()
    advisor: Advisor = of_defaults()
    models_dir: PathText | None = optional("every GGUF in it is served; watched for changes")
    models: list[Model] = Field(default_factory=list)
    groups: list[Group] = Field(default_factory=list, description="names for several models each")
    ollama: Ollama | None = optional("serve the models of an Ollama daemon")
    services: Services | None = None
    nodes: Nodes | None = None
    database: Annotated[str, scalars.database] | None = optional(
        "a path, or postgresql+psycopg://…; default: a file in the state directory"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings that are valid one by one, the source of each, and the issues that were found with them."""

    settings: Settings
    document: Document | None
    sources: Mapping[KeyPath, str]
    issues: list[ConfigIssue] = dataclasses.field(default_factory=list)
    faulty: list[KeyPath] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> Path | None:
        """The file that was read."""
        return Path(self.document.name) if self.document and self.document.name else None

    def absolute(self, text: str) -> Path:
        """Return an absolute path; relative ones start from the file's folder."""
        return Path(os.path.abspath((self.path.absolute().parent if self.path else Path.cwd()) / text))

    def report(self, key: KeyPath, what: str, hint: str) -> None:
        """Note an issue with a setting, and where it was given; not one that follows from a `faulty` one."""
        if any(fault[: len(key)] == key for fault in self.faulty):
            return
        for length in range(len(key), 0, -1):
            if source := self.sources.get(key[:length]):
                self.issues.append(ConfigIssue(source, what, hint))
                return
        name = str(self.path or "the configuration")
        line = self.document.line_of(key) if self.document and self.path else None
        self.issues.append(ConfigIssue(name, what, hint, key, line))

    def refuse(self, partial: object = None) -> None:
        """Raise BadSetting with all issues, if there are any, and with what could be read."""
        if self.issues:
            error = refusal(sorted(self.issues, key=lambda issue: issue.line or 0))
            error.partial = partial
            raise error
