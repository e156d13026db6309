"""Response types for models, devices and decisions.

The dataclasses are sent as they are. The pydantic models describe what is rendered from the domain's values,
for the OpenAPI document; a test compares responses with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_type_hints

from pydantic import BaseModel, create_model

from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import DecisionKind, DeviceStatus, ModelStatus
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ModelFile
from cotenant.gateway.plans.schema import RecipeResponse

Bytes = dict[str, int | None]


class EngineResponse(BaseModel):
    """The program that runs a model."""

    kind: str
    form: str
    version: str | None
    program: str | None


class ComparedResponse(BaseModel):
    """Planned bytes by part beside those that the engine reports, null where it did not."""

    planned: Bytes
    reported: Bytes | None
    difference_bytes: int | None


class ShareResponse(ComparedResponse):
    """What a device bears of a model: its layers from first to last, null for the output layer alone."""

    index: int | None
    name: str
    uuid: str
    layers: list[int] | None


class PlacementResponse(BaseModel):
    """Where a model sits."""

    n_layers: int
    n_gpu_layers: int
    n_ctx: int
    parallel: int
    tensor_split: list[int]
    devices: list[ShareResponse]
    host: ComparedResponse
    estimated: list[str]
    warnings: list[str]


class ServedRecipeResponse(RecipeResponse):
    """How a model runs; the context is shared by its slots."""

    engine: EngineKind


class ServedResponse(BaseModel):
    """What a model is, and where it sits if it is loaded."""

    name: str
    aliases: list[str]
    kind: ModelKind
    state: str
    created_at: int
    engine: EngineResponse | None
    log_path: str | None
    placement: PlacementResponse | None
    recipe: ServedRecipeResponse | None
    file: ModelFile | None
    vision: bool


class DevicesResponse(BaseModel):
    """How every device's memory is shared, in bytes."""

    devices: list[DeviceStatus]


@dataclass(frozen=True, slots=True)
class AlertResponse:
    """Something that has begun to be wrong, or is so no longer; `time` is local, with its offset."""

    alert: AlertKind
    subject: str
    active: bool
    at: float
    time: str
    text: str


class AlertsResponse(BaseModel):
    """What is wrong now, and the last beginnings and ends; oldest first."""

    active: list[AlertResponse]
    recent: list[AlertResponse]


@dataclass(frozen=True, slots=True)
class DecisionResponse:
    """One step of a model's story; `time` is local, with its offset."""

    number: int
    at: float
    time: str
    kind: DecisionKind
    model: str | None
    text: str
    cause: str
    facts: Mapping[str, float | int | str]


class DecisionsResponse(BaseModel):
    """The last decisions about anything, oldest first."""

    decisions: list[DecisionResponse]


class WhyResponse(BaseModel):
    """The last decisions about a model, oldest first."""

    model: str
    decisions: list[DecisionResponse]


class ReloadResponse(BaseModel):
    """What a reload changed, a sentence each."""

    changed: list[str]


class FindingResponse(BaseModel):
    """What the doctor saw; why it matters and what mends it may be empty."""

    area: str
    level: Literal["problem", "warning", "unknown", "ok"]
    seen: str
    matters: str
    mend: str


class FindingsResponse(BaseModel):
    """All findings, and how many there are of each level."""

    counts: dict[str, int]
    findings: list[FindingResponse]


class HealthResponse(BaseModel):
    """That the daemon answers, and how many models are in which state."""

    status: Literal["ok"]
    models: dict[str, int]


class OpenAiModelResponse(BaseModel):
    """A model as OpenAI lists it; `meta` is ours."""

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
    """Add what is known of a model where there is an operator, by the fields of ModelStatus."""
    hints = get_type_hints(ModelStatus)
    added: dict[str, Any] = {
        field.name: (hints[field.name] | None, None)
        for field in fields(ModelStatus)
        if field.name not in base.model_fields
    }
    return create_model("ModelResponse", __base__=base, __doc__="What a model is and how it does.", **added)


ModelResponse: Final = _with_status(ServedResponse)


class ModelsResponse(BaseModel):
    """Every model."""

    models: list[ModelResponse]  # type: ignore[valid-type]
