"""The bodies of requests and responses about plans; docs/design.md defines the fields of a plan."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, create_model

from cotenant.domain.models import ALL_LAYERS, FEWEST_EXPERTS, MOST_LAYERS, ModelKind, Recipe
from cotenant.domain.nodes import LoadCost
from cotenant.domain.settings import Setting, settings_of
from cotenant.gateway.http.bodies import RequestModel, ResponseModel, whole_number

_WORDS: Final = {"layers": f"{ALL_LAYERS}|{MOST_LAYERS}", "expert_blocks": FEWEST_EXPERTS}
"""What may stand in place of a number."""


def _request_type(setting: Setting) -> Any:
    """Return the type of a recipe's field in a request."""
    if words := _WORDS.get(setting.reads):
        number = Annotated[int, Field(ge=0, le=1 << 16), BeforeValidator(whole_number)]
        return number | Annotated[str, Field(pattern=f"^({words})$")]
    if setting.reads == "tensor_split":
        return Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=64)]
    if setting.type is int:
        return Annotated[int, Field(ge=setting.least, le=setting.most), BeforeValidator(whole_number)]
    return setting.type


_DESCRIPTIONS: Final = {
    "layers": "a number, with the output layer counted; auto: as many as fit; all",
    "expert_blocks": "a number of blocks, from the first; auto: the fewest with which the model fits",
}
_REQUESTED: Final[dict[str, Any]] = {
    each.name: (
        _request_type(each) | None,
        Field(default=None, description=_DESCRIPTIONS.get(each.reads)),
    )
    for each in settings_of(Recipe)
}
_ANSWERED: Final[dict[str, Any]] = {
    each.name: (list[float] if each.reads == "tensor_split" else each.type, ...)
    for each in settings_of(Recipe)
}
_RecipeRequest: Any = create_model("_RecipeRequest", __base__=RequestModel, **_REQUESTED)
_RecipeResponse: Any = create_model("_RecipeResponse", __base__=ResponseModel, **_ANSWERED)
Mib = Annotated[int, Field(ge=0, le=1 << 24), BeforeValidator(whole_number)]


class RecipeRequest(_RecipeRequest):  # type: ignore[misc]
    """How the model runs; the default of each field is that of the served model, or as configured."""


class PlanRequest(RequestModel):
    """What to plan: exactly one of model, path and headers."""

    model: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="a model that is served, by name or alias"
    )
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="a GGUF file or Hugging Face folder; models must be served from its folder",
    )
    headers: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=64)]],
            Field(min_length=1, max_length=64),
        ]
        | None
    ) = Field(default=None, description="ids of uploaded headers: of all parts, and of the projector")
    recipe: RecipeRequest = Field(default_factory=RecipeRequest)
    gpus: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="GPUs in place of the detected ones: 24GiB,24GiB or RTX A400:4094:329 "
        "(name:total MiB:used MiB)",
    )
    beside_loaded: bool = Field(
        default=False, description="models that are loaded now stay loaded; otherwise they may be unloaded"
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
    """A device's part of a plan. `layers` are the first and last block; `left_out` is why it is not used."""

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
    node: str | None = Field(None, description="its machine, where there are several")


class ShortfallResponse(ResponseModel):
    """How much memory a device lacks for its part of the model."""

    uuid: str
    needed_bytes: int
    budget_bytes: int
    missing_bytes: int


class RemedyResponse(ResponseModel):
    """A change with which the model fits: as text, as flags, and as fields of a request."""

    text: str
    flags: str
    changes: dict[str, int | str]


class RecipeResponse(_RecipeResponse):  # type: ignore[misc]
    """The recipe that was planned."""


class FileResponse(ResponseModel):
    """What the model file says; `path` is null if the file is not on this machine."""

    path: str | None
    name: str
    kind: ModelKind
    architecture: str
    quantisation: str | None
    parameters: int
    file_bytes: int
    n_ctx_train: int | None


class PlanResponse(ResponseModel):
    """Where a model would be placed, devices in planned order, or why it does not fit and what would."""

    fits: bool
    model: str
    n_layers: int
    n_gpu_layers: int
    n_cpu_moe: int
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
    command: str = Field(description="command that serves the model with this plan")
    plan_command: str = Field(description="command that shows this plan in a terminal")
    load_costs: dict[str, LoadCost] = Field(
        description="how soon it loads on each machine that has reported its files; empty for one machine"
    )


class HeaderResponse(ResponseModel):
    """A header that was parsed: `id` refers to it in requests for plans, for half an hour after its last use.

    `parts` is the number of files that the model is split into, `part` the number of this file, from 1.
    """

    id: str
    name: str
    kind: ModelKind | None
    architecture: str | None
    parts: int
    part: int
