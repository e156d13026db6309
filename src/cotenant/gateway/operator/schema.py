"""Types of requests and responses for models, devices and decisions.

The dataclasses are sent as they are. The pydantic models only describe responses that are made from the
domain's values, for the OpenAPI document; a test compares responses with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import (
    DecisionKind,
    DeviceStatus,
    LeaseStatus,
    ModelStatus,
    SlotStatus,
    WarmStatus,
)
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Companions
from cotenant.domain.fragmentation import Defragmentation, Fragmentation
from cotenant.domain.models import ModelKind
from cotenant.domain.nodes import LoadCost
from cotenant.domain.requests import ModelFile, RequestRules
from cotenant.gateway.http.bodies import RequestModel
from cotenant.gateway.plans.schema import RecipeResponse

Bytes = dict[str, int | None]


class EngineResponse(BaseModel):
    """The program that runs a model."""

    kind: str
    form: str
    version: str | None
    program: str | None


class ComparedResponse(BaseModel):
    """Bytes by part: planned, and reported by the engine, null where it reports none."""

    planned: Bytes
    reported: Bytes | None
    difference_bytes: int | None


class ShareResponse(ComparedResponse):
    """A device's share of a model: its first and last layer, null if it has only the output layer."""

    index: int | None
    name: str
    uuid: str
    layers: list[int] | None


class PlacementResponse(BaseModel):
    """Where a model is placed."""

    n_layers: int
    n_gpu_layers: int
    n_cpu_moe: int
    n_ctx: int
    parallel: int
    tensor_split: list[int]
    devices: list[ShareResponse]
    host: ComparedResponse
    estimated: list[str]
    warnings: list[str]


class ServedRecipeResponse(RecipeResponse):
    """How a model runs; its slots share the context."""

    engine: EngineKind


class ServedResponse(BaseModel):
    """A model, and its placement if it is loaded; `log_node` is the machine with its log, if another one."""

    name: str
    aliases: list[str]
    kind: ModelKind
    state: str
    created_at: int
    engine: EngineResponse | None
    log_path: str | None
    log_node: str | None
    placement: PlacementResponse | None
    recipe: ServedRecipeResponse | None
    file: ModelFile | None
    vision: bool
    hearing: bool
    companions: Companions
    rules: RequestRules
    variants: dict[str, RequestRules]


class DevicesResponse(BaseModel):
    """How the memory of each device is used, and how much of what is free no model can use, in bytes."""

    devices: list[DeviceStatus]
    fragmentation: Fragmentation


@dataclass(frozen=True, slots=True)
class AlertResponse:
    """The beginning or the end of an alert; `time` is local, with its offset."""

    alert: AlertKind
    subject: str
    active: bool
    at: float
    time: str
    text: str


class AlertsResponse(BaseModel):
    """The active alerts, and the last beginnings and ends; oldest first."""

    active: list[AlertResponse]
    recent: list[AlertResponse]


@dataclass(frozen=True, slots=True)
class DecisionResponse:
    """A decision about a model; `time` is local, with its offset."""

    number: int
    at: float
    time: str
    kind: DecisionKind
    model: str | None
    text: str
    cause: str
    facts: Mapping[str, float | int | str]


class DecisionsResponse(BaseModel):
    """The last decisions, oldest first."""

    decisions: list[DecisionResponse]


class WhyResponse(BaseModel):
    """The last decisions about a model, or a lease, and the moves of others that would let the model fit.

    `load_costs` are how soon it loads on each of several machines.
    """

    model: str
    decisions: list[DecisionResponse]
    defragmentation: Defragmentation | None
    load_costs: dict[str, LoadCost]


class ReloadResponse(BaseModel):
    """The changes of a reload, one sentence each."""

    changed: list[str]


class FindingResponse(BaseModel):
    """A finding of the doctor: what it saw; `matters` (why) and `mend` (how to fix it) may be empty."""

    area: str
    level: Literal["problem", "warning", "unknown", "ok"]
    seen: str
    matters: str
    mend: str


class FindingsResponse(BaseModel):
    """All findings, and their number by level."""

    counts: dict[str, int]
    findings: list[FindingResponse]


class NamedModelRequest(RequestModel):
    """A model, by any of its names; whatever else clients send is left out."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, defer_build=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]


class SuccessResponse(BaseModel):
    """What llama-server's router answers."""

    success: bool = True


class AudioModel(BaseModel):
    """A model that speaks."""

    id: str
    name: str


class AudioModelsResponse(BaseModel):
    """The models that speak, in the form that Open WebUI reads."""

    models: list[AudioModel]


class HealthResponse(BaseModel):
    """Whether the daemon can serve; `models` is the number of models by state.

    `degraded`: a device is lost; `unhealthy`: none is left, and no model is loaded. `reason` says which.
    """

    status: Literal["ok", "degraded", "unhealthy"]
    models: dict[str, int]
    reason: str | None = None


class OpenAiModelResponse(BaseModel):
    """A model in OpenAI's form; `meta` is our addition."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: dict[str, Any]


class OpenAiModelsResponse(BaseModel):
    """The models served."""

    object: Literal["list"]
    data: list[OpenAiModelResponse]


def _with_status(base: type[BaseModel]) -> type[BaseModel]:
    """Add the fields of ModelStatus, all of them optional."""
    hints = get_type_hints(ModelStatus)
    added: dict[str, Any] = {
        field.name: (hints[field.name] | None, None)
        for field in fields(ModelStatus)
        if field.name not in base.model_fields
    }
    return create_model("ModelResponse", __base__=base, __doc__="A model with its state.", **added)


ModelResponse: Final = _with_status(ServedResponse)


class GroupResponse(BaseModel):
    """A name for several models: the member that would serve a request now is the first."""

    name: str
    members: list[str]


class ModelsResponse(BaseModel):
    """All models, groups and leases of memory, and what is kept in host RAM: null if nothing is to be.

    `warm` are model files, `saved_slots` the KV caches of unloaded models.
    """

    models: list[ModelResponse]  # type: ignore[valid-type]
    groups: list[GroupResponse]
    leases: list[LeaseStatus]
    warm: WarmStatus | None
    saved_slots: SlotStatus | None
