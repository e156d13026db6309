"""What requests and answers about plans look like; docs/design.md fixes the plan's own fields."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from cotenant.domain.models import (
    ALL_LAYERS,
    MOST_LAYERS,
    CacheType,
    FlashAttention,
    ModelKind,
    SplitMode,
    SplitPolicy,
)
from cotenant.domain.recipes import MAX_BATCH, MAX_CTX, MAX_PARALLEL
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


Mib = Annotated[int, Field(ge=0, le=_MAX_MIB), BeforeValidator(_whole)]
Batch = Annotated[int, Field(ge=1, le=MAX_BATCH), BeforeValidator(_whole)]
Layers = (
    Annotated[int, Field(ge=0, le=_MAX_LAYERS), BeforeValidator(_whole)]
    | Annotated[str, Field(pattern=f"^({ALL_LAYERS}|{MOST_LAYERS})$")]
)


class AskedRecipe(RequestModel):
    """How the model would run; what is left out is as the model is served, or as configured."""

    n_ctx: Annotated[int, Field(ge=1, le=MAX_CTX), BeforeValidator(_whole)] | None = None
    parallel: Annotated[int, Field(ge=1, le=MAX_PARALLEL), BeforeValidator(_whole)] | None = None
    n_batch: Batch | None = None
    n_ubatch: Batch | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    flash_attention: FlashAttention | None = None
    kv_unified: bool | None = None
    n_gpu_layers: Layers | None = Field(
        default=None, description="a number, the output layer being one; auto: the most that fit; all"
    )
    split_mode: SplitMode | None = None
    split_policy: SplitPolicy | None = None
    tensor_split: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=_MAX_DEVICES)] | None = None
    smart_split: bool | None = None
    mmap: bool | None = None
    mlock: bool | None = None


class AskedPlan(RequestModel):
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
    recipe: AskedRecipe = Field(default_factory=AskedRecipe)
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


class PartsTold(ResponseModel):
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
    parts: PartsTold
    left_out: str | None


class ShortfallTold(ResponseModel):
    """How far a device's budget is from what would go there."""

    uuid: str
    needed_bytes: int
    budget_bytes: int
    missing_bytes: int


class RemedyTold(ResponseModel):
    """One change after which it fits: in words, as flags, and as what would be asked here."""

    text: str
    flags: str
    changes: dict[str, int | str]


class RecipeTold(ResponseModel):
    """The recipe that was planned."""

    n_ctx: int
    parallel: int
    n_batch: int
    n_ubatch: int
    cache_type_k: CacheType
    cache_type_v: CacheType
    flash_attention: FlashAttention
    kv_unified: bool
    n_gpu_layers: int | str
    split_mode: SplitMode
    split_policy: SplitPolicy
    tensor_split: list[float]
    smart_split: bool
    mmap: bool
    mlock: bool


class FileTold(ResponseModel):
    """What the model file says of itself; `path` is null where it is not on this machine."""

    path: str | None
    name: str
    kind: ModelKind
    architecture: str
    quantisation: str | None
    parameters: int
    file_bytes: int
    n_ctx_train: int | None


class PlanTold(ResponseModel):
    """How a model would lie over the devices, in planned order, or why it would not and what would fit."""

    fits: bool
    model: str
    n_layers: int
    n_gpu_layers: int
    tensor_split: list[int]
    devices: list[PlannedDevice]
    host: PartsTold | None
    estimated: list[str]
    warnings: list[str]
    refusal: str | None
    shortfalls: list[ShortfallTold]
    remedies: list[RemedyTold]
    recipe: RecipeTold
    reserve_mib: int
    min_budget_mib: int
    overhead_mib: int
    file: FileTold
    gpus: str | None = Field(description="the GPUs described; null for the detected ones")
    problems: list[str]
    command: str = Field(description="serves the model so")
    plan_command: str = Field(description="shows this plan in a terminal")


class HeaderTold(ResponseModel):
    """A header that was understood: `id` names it in a plan for as long as it is kept, half an hour or so.

    `parts` is how many files the model is split into, `part` which of them this is, counted from 1.
    """

    id: str
    name: str
    kind: ModelKind | None
    architecture: str | None
    parts: int
    part: int
