"""The types of what is answered about models, devices and decisions, for the OpenAPI document.

The answers themselves are made from the domain's values; these types are made from the same values where they
can be, and a test holds answers to the document.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, Literal, get_type_hints

from pydantic import BaseModel, create_model

from cotenant.domain.alerts import AlertKind
from cotenant.domain.decisions import DecisionKind, DeviceStatus, ModelStatus
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ModelFile
from cotenant.gateway.plans.schema import RecipeTold

Bytes = dict[str, int | None]


class EngineTold(BaseModel):
    """The program that runs a model."""

    kind: str
    form: str
    version: str | None
    program: str | None


class ComparedTold(BaseModel):
    """Planned bytes by part beside those that the engine reports, null where it did not."""

    planned: Bytes
    reported: Bytes | None
    difference_bytes: int | None


class ShareTold(ComparedTold):
    """What a device bears of a model: its layers from first to last, null for the output layer alone."""

    index: int | None
    name: str
    uuid: str
    layers: list[int] | None


class PlacementTold(BaseModel):
    """Where a model sits."""

    n_layers: int
    n_gpu_layers: int
    n_ctx: int
    parallel: int
    tensor_split: list[int]
    devices: list[ShareTold]
    host: ComparedTold
    estimated: list[str]
    warnings: list[str]


class ServedRecipeTold(RecipeTold):
    """How a model runs; the context is shared by its slots."""

    engine: EngineKind


class ServedTold(BaseModel):
    """What a model is, and where it sits if it is loaded."""

    name: str
    aliases: list[str]
    kind: ModelKind
    state: str
    created_at: int
    engine: EngineTold | None
    log_path: str | None
    placement: PlacementTold | None
    recipe: ServedRecipeTold | None
    file: ModelFile | None
    vision: bool


class DevicesTold(BaseModel):
    """How every device's memory is shared, in bytes."""

    devices: list[DeviceStatus]


class AlertTold(BaseModel):
    """Something that has begun to be wrong, or is so no longer; `time` is local, with its offset."""

    alert: AlertKind
    subject: str
    active: bool
    at: float
    time: str
    text: str


class AlertsTold(BaseModel):
    """What is wrong now, and the last beginnings and ends; oldest first."""

    active: list[AlertTold]
    recent: list[AlertTold]


class DeviceCurves(BaseModel):
    """A device's last points, oldest first, null for unknown."""

    uuid: str
    index: int | None
    name: str
    total_bytes: int | None
    used_bytes: list[int | None]
    utilisation_percent: list[float | None]


class ModelCurves(BaseModel):
    """A model's last points, oldest first, null for unknown."""

    name: str
    requests_per_s: list[float | None]
    tokens_per_s: list[float | None]
    first_token_s: list[float | None]


class CurvesTold(BaseModel):
    """The last ten minutes; all curves have `points` points, `step_s` apart, the last at `end`."""

    step_s: float
    points: int
    end: str
    devices: list[DeviceCurves]
    models: list[ModelCurves]


class DecisionTold(BaseModel):
    """One step of a model's story; `time` is local, with its offset."""

    number: int
    at: float
    time: str
    kind: DecisionKind
    model: str | None
    text: str
    cause: str
    facts: dict[str, float | int | str]


class DecisionsTold(BaseModel):
    """The last decisions about anything, oldest first."""

    decisions: list[DecisionTold]


class WhyTold(BaseModel):
    """The last decisions about a model, oldest first."""

    model: str
    decisions: list[DecisionTold]


class ReloadTold(BaseModel):
    """What a reload changed, a sentence each."""

    changed: list[str]


class FindingTold(BaseModel):
    """What the doctor saw; why it matters and what mends it may be empty."""

    area: str
    level: Literal["problem", "warning", "unknown", "ok"]
    seen: str
    matters: str
    mend: str


class FindingsTold(BaseModel):
    """All findings, and how many there are of each level."""

    counts: dict[str, int]
    findings: list[FindingTold]


class HealthTold(BaseModel):
    """That the daemon answers, and how many models are in which state."""

    status: Literal["ok"]
    models: dict[str, int]


class OpenAiModelTold(BaseModel):
    """A model as OpenAI lists it; `meta` is ours."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: dict[str, Any]


class OpenAiModelsTold(BaseModel):
    """The models served."""

    object: Literal["list"]
    data: list[OpenAiModelTold]


class FaultTold(BaseModel):
    """A fault in OpenAI's form; `param` names the field at fault, `cause` what ended an engine."""

    message: str
    type: str
    param: str | None
    code: str
    cause: Cause | None = None


class ErrorTold(BaseModel):
    """The envelope of every fault."""

    error: FaultTold


def _with_status(base: type[BaseModel]) -> type[BaseModel]:
    """Add what is known of a model where there is an operator, by the fields of ModelStatus."""
    hints = get_type_hints(ModelStatus)
    added: dict[str, Any] = {
        field.name: (hints[field.name] | None, None)
        for field in fields(ModelStatus)
        if field.name not in base.model_fields
    }
    return create_model("ModelTold", __base__=base, __doc__="What a model is and how it does.", **added)


ModelTold: Final = _with_status(ServedTold)
ModelsTold: Final = create_model("ModelsTold", __doc__="Every model.", models=(list[ModelTold], ...))  # type: ignore[valid-type]
