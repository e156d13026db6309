"""The bodies of requests and responses about GPU configuration, and what makes them of `services.model`.

Memory is counted in MB of 2^20 bytes and budgets in GB of 2^30, as drivers and applications do. An unknown
value is null.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import from_json

from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.units import MIB
from cotenant.gateway.http.bodies import RequestModel, ResponseModel, whole_number
from cotenant.services.model import (
    TITLES,
    ApplyState,
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ProgressState,
    SeenDevice,
    ServiceRole,
    ServicesView,
    Strategy,
    WarningKind,
)

MAX_NUMBER: Final = 2**31 - 1
_NO_GPUS: Final = "No GPUs detected"
_STRATEGIES: Final = [
    {"name": name, "title": TITLES[name], "description": description}
    for name, description in (
        (Strategy.MANUAL, "You control each assignment."),
        (Strategy.VRAM_BASED, "Largest models on the GPU with most free memory."),
        (Strategy.LATENCY_OPTIMIZED, "Critical path models on the fastest GPU."),
        (Strategy.ISOLATION_FIRST, "The LLM gets a GPU of its own."),
        (Strategy.BALANCED, "GPUs are filled evenly."),
    )
]


GpuIndex = Annotated[int, Field(ge=0, le=1023), BeforeValidator(whole_number)]
Number = Annotated[int, Field(ge=1, le=MAX_NUMBER), BeforeValidator(whole_number)]
Mb = Annotated[int, BeforeValidator(lambda count_bytes: round(count_bytes / MIB))]
WarningText = Annotated[str, BeforeValidator(attrgetter("text"))]
ServiceName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class GpuRequest(RequestModel):
    """A GPU of a service."""

    gpu_index: GpuIndex | None = None
    gpu_uuid: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="used if gpu_index is null: a GPU that is absent now keeps its service",
    )


class AssignmentRequest(GpuRequest):
    """A service and its GPUs; without one the strategy chooses, and manual leaves it unpinned."""

    service: ServiceName
    more_gpus: Annotated[list[GpuRequest], Field(max_length=64)] = Field(
        default_factory=list, description="further GPUs, for a service that uses several"
    )
    gpu_count: Annotated[int, Field(ge=1, le=64)] | Literal["all"] | None = Field(
        default=None,
        description="how many GPUs it gets, those with the most free memory unless as many are named; or all",
    )
    vram_budget_override: Annotated[float, Field(gt=0, le=1_000_000.0)] | None = Field(
        default=None, description="GB that the service gets in its budget variable"
    )


class PreviewRequest(RequestModel):
    """Assignments to try. Services that are left out are placed by the strategy; manual unpins them."""

    strategy: Strategy
    assignments: Annotated[list[AssignmentRequest], Field(max_length=1000)] = Field(default_factory=list)


class ConfigurationRequest(PreviewRequest):
    """Assignments to save. Services that are left out are placed by the strategy; manual unpins them."""

    force: bool = Field(default=False, description="overwrite generated files that were edited")


def valid_assignments(body: bytes) -> Iterator[AssignmentRequest]:
    """Yield the valid fields of each assignment of an invalid body; "" stands for an invalid name."""
    fields = from_json(body)
    listed = fields.get("assignments") if isinstance(fields, dict) else None
    for each in listed[:1000] if isinstance(listed, list) else ():
        valid = {k: each[k] for k in AssignmentRequest.model_fields if isinstance(each, dict) and k in each}
        try:
            AssignmentRequest.model_validate(valid)
        except ValidationError as error:
            for fault in error.errors():
                valid.pop(str(fault["loc"][0]), None)
        name = valid.pop("service", "")
        yield AssignmentRequest.model_validate({**valid, "service": "a"}).model_copy(update={"service": name})


class ApplyRequest(RequestModel):
    """How to apply."""

    force: bool = Field(default=False, description="overwrite generated files that were edited")


class RollbackRequest(RequestModel):
    """The configuration to go back to."""

    number: Number | None = Field(
        default=None, description="a configuration of the history; without it, the one applied before"
    )


class Gpu(ResponseModel):
    """A GPU and its memory use."""

    index: int
    name: str
    vram_total_mb: Mb | None = Field(validation_alias="total_bytes")
    vram_used_mb: Mb | None = Field(validation_alias="used_bytes")
    compute_capability: str | None
    uuid: str
    utilisation_percent: float | None


class Gpus(ResponseModel):
    """The GPUs detected; `problems` says if there is none."""

    gpus: list[Gpu]
    problems: list[str] = Field(default_factory=list)


class GpuResponse(ResponseModel):
    """A GPU of a service."""

    gpu_index: int | None
    gpu_uuid: str | None = Field(validation_alias="device_id")


class AssignmentResponse(GpuResponse):
    """A service and its GPUs. With a UUID and no index, a GPU is absent now.

    `more_gpus` are those after the first, `gpu_count` is how many were asked for without naming them.
    """

    service: str
    vram_budget_override: float | None = Field(validation_alias="vram_budget_gb")
    more_gpus: list[GpuResponse] = Field(validation_alias="more")
    gpu_count: int | Literal["all"] | None = Field(validation_alias="count")


class WarningResponse(ResponseModel):
    """A warning about a service, a GPU, or both. It does not prevent saving or applying."""

    kind: WarningKind
    text: str
    service: str | None
    gpu_index: int | None


class ChangeResponse(ResponseModel):
    """How a service's assignment differs from that of its container; null where it has none.

    `reason` says why the container is recreated although they are the same.
    """

    service: str
    before: AssignmentResponse | None
    after: AssignmentResponse | None
    reason: str | None


class StrategyResponse(ResponseModel):
    """A strategy that may be chosen."""

    name: Strategy
    title: str
    description: str


class ServiceResponse(ResponseModel):
    """A service as described in the configuration."""

    name: str
    model: str | None
    vram_mb: Mb | None = Field(validation_alias="vram_bytes")
    role: ServiceRole
    latency_critical: bool
    enabled: bool
    gpu_count: int | Literal["all"] | None
    vram_budget_env: str | None = Field(validation_alias="budget_env")
    health_url: str | None


class ServiceGpu(ResponseModel):
    """A GPU in the view of strategies: `vram_occupied_mb` is used by processes other than the services."""

    index: int
    name: str
    uuid: str = Field(validation_alias="id")
    vram_total_mb: Mb = Field(validation_alias="total_bytes")
    vram_occupied_mb: Mb = Field(validation_alias="occupied_bytes")
    healthy: bool


class ProgressResponse(ResponseModel):
    """The progress of one service; `more_gpus` are those after the first."""

    service: str
    state: ProgressState
    gpu_index: int | None
    more_gpus: list[GpuResponse] = Field(validation_alias="more")
    container_id: str | None
    message: str | None


class ApplyResponse(ResponseModel):
    """The state of an apply, and each service that it recreates."""

    number: int
    state: ApplyState
    running: bool
    started_at: datetime
    finished_at: datetime | None
    message: str | None
    services: list[ProgressResponse]


class SavedConfigurationResponse(ResponseModel):
    """A saved configuration, and the state of its apply; null if it was never applied."""

    number: int
    saved_at: datetime = Field(validation_alias="at")
    strategy: Strategy
    assignments: list[AssignmentResponse]
    apply: ApplyResponse | None


class ConfigurationResponse(ResponseModel):
    """Everything about the pinning of services, as it is now.

    `assignments` are those saved last, with the services whose budget Cotenant computed and those whose GPU
    an operator chose; `applied` is the configuration applied last; `changes` is what applying would recreate.
    """

    strategy: Strategy
    assignments: list[AssignmentResponse]
    automatic_budgets: list[str]
    set_by_hand: list[str]
    strategies: list[StrategyResponse]
    services: list[ServiceResponse]
    gpus: list[ServiceGpu] = Field(validation_alias="devices")
    saved: SavedConfigurationResponse | None
    applied: SavedConfigurationResponse | None
    changes: list[ChangeResponse]
    warnings: list[WarningText]
    warning_details: list[WarningResponse] = Field(validation_alias="warnings")
    problems: list[str]
    edited_files: list[Annotated[str, BeforeValidator(str)]] = Field(validation_alias="edited")


class SaveResponse(ResponseModel):
    """The saved assignments, with warnings.

    `automatic_budgets` are the services whose budget Cotenant computed, and computes anew with every save.
    """

    success: bool
    warnings: list[WarningText]
    warning_details: list[WarningResponse] = Field(validation_alias="warnings")
    strategy: Strategy
    assignments: list[AssignmentResponse]
    automatic_budgets: list[str]


class PreviewResponse(ResponseModel):
    """What a strategy would assign, and how that differs from what is applied. Nothing is changed."""

    strategy: Strategy
    assignments: list[AssignmentResponse]
    automatic_budgets: list[str]
    warnings: list[WarningText]
    warning_details: list[WarningResponse] = Field(validation_alias="warnings")
    diff: list[ChangeResponse]


class ContainerResponse(ResponseModel):
    """A service's container, with the assignment it was created with."""

    service: str
    container_id: str | None
    running: bool
    healthy: bool | None
    assignment: AssignmentResponse | None


class StatusResponse(ResponseModel):
    """The last apply, running or ended, and the present containers."""

    apply: ApplyResponse | None
    containers: list[ContainerResponse]


class SeenGpu(ResponseModel):
    """A GPU as it was last seen; `present` is false if it is not detected now."""

    index: int = Field(validation_alias="gpu_index")
    name: str | None
    uuid: str = Field(validation_alias="device_id")
    vram_total_mb: Mb | None = Field(validation_alias="total_bytes")
    vram_available_mb: Mb | None = Field(validation_alias="available_bytes")
    compute_capability: str | None
    last_seen_at: datetime
    present: bool


class DetectResponse(ResponseModel):
    """All GPUs that were ever detected."""

    gpus: list[SeenGpu]
    problems: list[str] = Field(default_factory=list)


class HistoryResponse(ResponseModel):
    """The configurations saved, newest first."""

    history: list[SavedConfigurationResponse]


def gpus_response(devices: Iterable[DeviceStatus]) -> Gpus:
    """Return the GPUs among the devices, sorted by index."""
    gpus = [device for device in devices if device.index is not None]
    gpus.sort(key=lambda device: device.index or 0)
    return Gpus.model_validate({"gpus": gpus, "problems": [] if gpus else [_NO_GPUS]})


def configuration_response(view: ServicesView) -> ConfigurationResponse:
    """Return the whole view; services without a saved assignment are unpinned."""
    saved = {} if view.saved is None else {each.service: each for each in view.saved.assignments}
    names = dict.fromkeys([*(service.name for service in view.services), *saved])
    assignments = [saved.get(name, Assignment(name)) for name in names]
    return ConfigurationResponse.model_validate(
        {
            **_fields(view),
            "assignments": assignments,
            "automatic_budgets": _automatic(assignments),
            "set_by_hand": [each.service for each in assignments if each.by_hand],
            "strategies": _STRATEGIES,
            "problems": _problems(view),
        }
    )


def save_response(plan: AssignmentPlan) -> SaveResponse:
    """Return what was saved."""
    automatic = _automatic(plan.assignments)
    return SaveResponse.model_validate({**_fields(plan), "automatic_budgets": automatic, "success": True})


def preview_response(plan: AssignmentPlan, changes: Sequence[Change]) -> PreviewResponse:
    """Return what a strategy would do."""
    automatic = _automatic(plan.assignments)
    return PreviewResponse.model_validate({**_fields(plan), "automatic_budgets": automatic, "diff": changes})


def _automatic(assignments: Iterable[Assignment]) -> list[str]:
    return [each.service for each in assignments if each.budget_auto]


def apply_event(status: ApplyStatus) -> bytes:
    """Render a step of an apply as an event named `apply`."""
    return b"event: apply\ndata: %b\n\n" % ApplyResponse.model_validate(status).model_dump_json().encode()


def detect_response(seen: Iterable[SeenDevice], view: ServicesView) -> DetectResponse:
    """Return the GPUs that are present and those that were."""
    present = {device.id for device in view.devices}
    gpus = [{**_fields(each), "present": each.device_id in present} for each in seen]
    return DetectResponse.model_validate({"gpus": gpus, "problems": _problems(view)})


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; unlike `asdict`, their values stay what they are."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _problems(view: ServicesView) -> list[str]:
    without_gpu = not view.devices and not any(_NO_GPUS in problem for problem in view.problems)
    return [*([_NO_GPUS] if without_gpu else []), *view.problems]
