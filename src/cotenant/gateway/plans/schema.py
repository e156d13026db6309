"""What requests and answers about plans look like; docs/design.md fixes the plan's own fields."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, create_model

from cotenant.domain.models import ALL_LAYERS, MOST_LAYERS, ModelKind, Recipe
from cotenant.domain.settings import Setting, settings_of
from cotenant.gateway.http.bodies import RequestModel, ResponseModel

MAX_HEADERS: Final = 64
_MAX_LAYERS: Final = 1 << 16
_MAX_MIB: Final = 1 << 24
_MAX_SPEC: Final = 4096
_MAX_PATH: Final = 4096
_MAX_DEVICES: Final = 64


def _whole(value: Any) -> Any:
    """Take 3.0 for 3: JSON does not tell them apart, and JSON schema calls both an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _request_type(setting: Setting) -> Any:
    """Return what a request may say of a field of the recipe."""
    if setting.reads == "layers":
        number = Annotated[int, Field(ge=0, le=_MAX_LAYERS), BeforeValidator(_whole)]
        return number | Annotated[str, Field(pattern=f"^({ALL_LAYERS}|{MOST_LAYERS})$")]
    if setting.reads == "tensor_split":
        return Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=_MAX_DEVICES)]
    if setting.type is int:
        return Annotated[int, Field(ge=setting.least, le=setting.most), BeforeValidator(_whole)]
    return setting.type


def _response_type(setting: Setting) -> Any:
    return list[float] if setting.reads == "tensor_split" else setting.type


_DESCRIPTIONS: Final = {"layers": "a number, the output layer being one; auto: the most that fit; all"}
_REQUESTED: Final[dict[str, Any]] = {
    each.name: (
        _request_type(each) | None,
        Field(default=None, description=_DESCRIPTIONS.get(each.reads)),
    )
    for each in settings_of(Recipe)
}
_ANSWERED: Final[dict[str, Any]] = {each.name: (_response_type(each), ...) for each in settings_of(Recipe)}
_RecipeRequest: Any = create_model("_RecipeRequest", __base__=RequestModel, **_REQUESTED)
_RecipeResponse: Any = create_model("_RecipeResponse", __base__=ResponseModel, **_ANSWERED)
Mib = Annotated[int, Field(ge=0, le=_MAX_MIB), BeforeValidator(_whole)]


class RecipeRequest(_RecipeRequest):  # type: ignore[misc]
    """How the model would run; what is left out is as the model is served, or as configured."""


class PlanRequest(RequestModel):
    """What to plan: exactly one of model, path and headers."""

    model: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="a model that is served, by name or alias"
    )
    path: Annotated[str, Field(min_length=1, max_length=_MAX_PATH)] | None = Field(
        default=None, description="a GGUF file or Hugging Face folder beside the models that are served"
    )
    headers: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=64)]],
            Field(min_length=1, max_length=MAX_HEADERS),
        ]
        | None
    ) = Field(default=None, description="ids of headers that were sent: of every part, and of its projector")
    recipe: RecipeRequest = Field(default_factory=RecipeRequest)
    gpus: Annotated[str, Field(min_length=1, max_length=_MAX_SPEC)] | None = Field(
        default=None,
        description="GPUs in place of the detected ones: 24GiB,24GiB or RTX A400:4094:329 "
        "(name:total MiB:used MiB)",
    )
    beside_loaded: bool = Field(
        default=False, description="what is loaded now stays loaded; otherwise it may go"
    )
    reserve_mib: Mib | None = None
    min_budget_mib: Mib | None = None
    overhead_mib: Mib | None = None


class PartsResponse(ResponseModel):
    """Bytes by what they are for."""

    weights: int
    kv: int
    compute: int
    overhead: int


class PlannedDevice(ResponseModel):
    """What a device would bear. `layers` are the first and the last block; `left_out` says why it is not
    used."""

    index: int | None
    name: str
    uuid: str
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: int
    planned_bytes: int
    layers: list[int] | None
    parts: PartsResponse
    left_out: str | None


class ShortfallResponse(ResponseModel):
    """How far a device's budget is from what would go there."""

    uuid: str
    needed_bytes: int
    budget_bytes: int
    missing_bytes: int


class RemedyResponse(ResponseModel):
    """One change after which it fits: in words, as flags, and as what would be asked here."""

    text: str
    flags: str
    changes: dict[str, int | str]


class RecipeResponse(_RecipeResponse):  # type: ignore[misc]
    """The recipe that was planned."""


class FileResponse(ResponseModel):
    """What the model file says of itself; `path` is null where it is not on this machine."""

    path: str | None
    name: str
    kind: ModelKind
    architecture: str
    quantisation: str | None
    parameters: int
    file_bytes: int
    n_ctx_train: int | None


class PlanResponse(ResponseModel):
    """How a model would lie over the devices, in planned order, or why it would not and what would fit."""

    fits: bool
    model: str
    n_layers: int
    n_gpu_layers: int
    tensor_split: list[int]
    devices: list[PlannedDevice]
    host: PartsResponse | None
    estimated: list[str]
    warnings: list[str]
    refusal: str | None
    shortfalls: list[ShortfallResponse]
    remedies: list[RemedyResponse]
    recipe: RecipeResponse
    reserve_mib: int
    min_budget_mib: int
    overhead_mib: int
    file: FileResponse
    gpus: str | None = Field(description="the GPUs described; null for the detected ones")
    problems: list[str]
    command: str = Field(description="serves the model so")
    plan_command: str = Field(description="shows this plan in a terminal")


class HeaderResponse(ResponseModel):
    """A header that was understood: `id` names it in a plan for as long as it is kept, half an hour or so.

    `parts` is how many files the model is split into, `part` which of them this is, counted from 1.
    """

    id: str
    name: str
    kind: ModelKind | None
    architecture: str | None
    parts: int
    part: int
