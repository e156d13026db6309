"""What each route of the operator's API takes and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.domain import errors
from cotenant.domain.errors import CotenantError
from cotenant.gateway.access.schema import SessionRequest, SessionResponse
from cotenant.gateway.openapi import examples
from cotenant.gateway.openapi.schema import (
    AlertsResponse,
    CurvesResponse,
    DecisionsResponse,
    DevicesResponse,
    FindingsResponse,
    HealthResponse,
    ModelResponse,
    ModelsResponse,
    OpenAiModelResponse,
    OpenAiModelsResponse,
    ReloadResponse,
    WhyResponse,
)
from cotenant.gateway.plans.schema import AskedPlan, HeaderTold, PlanTold
from cotenant.gateway.services.schema import (
    ApplyRequest,
    ApplyResponse,
    ConfigurationRequest,
    ConfigurationResponse,
    DetectResponse,
    Gpus,
    HistoryResponse,
    PreviewRequest,
    PreviewResponse,
    RollbackRequest,
    SaveResponse,
    StatusResponse,
)
from cotenant.services.model import Strategy

_TEXT: Final = "text/plain"
_MAX_WHOLE: Final = 999_999_999


@dataclass(frozen=True, slots=True)
class Answer:
    """One way a request may end well. `type` is None for plain text."""

    type: Any
    description: str
    status: int = 200
    content_type: str = "application/json"
    example: Any = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a path or a query says."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"
    required: bool = False
    example: Any = None

    def as_json(self) -> dict[str, Any]:
        """Describe it as OpenAPI does."""
        described = {
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.description,
            "schema": dict(self.schema),
        }
        return described if self.example is None else {**described, "example": self.example}


@dataclass(frozen=True, slots=True)
class Operation:
    """A route's description: answers, and the faults that are its own, whose statuses `problems` knows."""

    summary: str
    answers: tuple[Answer, ...]
    faults: tuple[type[CotenantError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    body_required: bool = False
    body_content_type: str = "application/json"
    body_examples: Mapping[str, Any] = field(default_factory=dict)


_NAME: Final = Parameter(
    "name",
    "the model's name or alias; slashes may be written %2F",
    {"type": "string", "minLength": 1},
    place="path",
    required=True,
    example="llama",
)
_WAIT: Final = Parameter(
    "wait", "0 returns at once, before it is done", {"type": "integer", "enum": [0, 1], "default": 1}
)
_ONE: Final = Answer(ModelResponse, "the model as it is then")
_ORDERED: Final = (_ONE, Answer(ModelResponse, "the model as it is now: the order is being carried out", 202))
_NO_SUCH_MODEL: Final = (errors.UnknownModel, errors.UnknownRoute)
_LOADING: Final = (
    errors.DoesNotFit,
    errors.EngineMissing,
    errors.EngineLacksDevice,
    errors.EngineLoadFailed,
    errors.EngineLoadTimeout,
    errors.EngineDied,
)
_BODY: Final = (errors.BadRequest, errors.BadAssignment, errors.UnsupportedMediaType)
_APPLYING: Final = (
    errors.ApplyRunning,
    errors.NothingToRollBack,
    errors.ContainerEngineMissing,
    errors.ComposeFileError,
    errors.GeneratedFileEdited,
    errors.GeneratedFileFailed,
    errors.StoreError,
)
_NO_SERVICES: Final = errors.UnknownRoute
_BEGUN: Final = Answer(ApplyResponse, "the apply as it begins", 202, example=examples.APPLY)

_MODELS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", "/api/models"): Operation(
        "List every model and how it does", (Answer(ModelsResponse, "models"),)
    ),
    ("GET", "/api/models/{name}"): Operation(
        "Tell what a model is and how it does", (_ONE,), _NO_SUCH_MODEL, (_NAME,)
    ),
    ("GET", "/api/models/{name}/why"): Operation(
        "Tell the last decisions about a model",
        (
            Answer(WhyResponse, "decisions, oldest first"),
            Answer(None, "the same in words", content_type=_TEXT),
        ),
        _NO_SUCH_MODEL,
        (_NAME,),
    ),
    ("GET", "/api/models/{name}/logs"): Operation(
        "Show the log of a model's engine",
        (Answer(None, "lines of the log", content_type=_TEXT),),
        (*_NO_SUCH_MODEL, errors.BadRequest),
        (
            _NAME,
            Parameter(
                "tail",
                "how many of the last lines",
                {"type": "integer", "minimum": 0, "maximum": _MAX_WHOLE, "default": 100},
            ),
            Parameter("follow", "1 goes on as lines come", {"type": "integer", "enum": [0, 1], "default": 0}),
        ),
    ),
    ("POST", "/api/models/{name}/load"): Operation(
        "Load a model", _ORDERED, (*_NO_SUCH_MODEL, *_LOADING, errors.BadRequest), (_NAME, _WAIT)
    ),
    ("POST", "/api/models/{name}/unload"): Operation(
        "Unload a model once its requests are answered",
        _ORDERED,
        (*_NO_SUCH_MODEL, errors.BadRequest),
        (_NAME, _WAIT),
    ),
    ("POST", "/api/models/{name}/pin"): Operation(
        "Keep a model loaded whatever happens", (_ONE,), _NO_SUCH_MODEL, (_NAME,)
    ),
    ("POST", "/api/models/{name}/unpin"): Operation(
        "Let a model be evicted again", (_ONE,), _NO_SUCH_MODEL, (_NAME,)
    ),
    ("GET", "/api/decisions"): Operation(
        "Tell the last decisions about anything",
        (Answer(DecisionsResponse, "decisions, oldest first"),),
        (errors.UnknownRoute, errors.BadRequest),
        (
            Parameter(
                "limit",
                "how many, 500 at most",
                {"type": "integer", "minimum": 0, "maximum": _MAX_WHOLE, "default": 100},
            ),
        ),
    ),
    ("GET", "/api/doctor"): Operation(
        "Examine the daemon's machine, which takes some seconds",
        (Answer(FindingsResponse, "what was found"),),
        (errors.UnknownRoute,),
    ),
    ("GET", "/api/session"): Operation(
        "Tell whether a key is needed and this browser has signed in; needs no key",
        (Answer(SessionResponse, "the session"),),
    ),
    ("POST", "/api/session"): Operation(
        "Sign a browser in with an API key: sets a cookie that stands for it",
        (Answer(SessionResponse, "the session that has begun"),),
        (errors.BadRequest, errors.BadAssignment, errors.UnsupportedMediaType, errors.TooManyAttempts),
        body=SessionRequest,
        body_required=True,
    ),
    ("POST", "/api/session/end"): Operation(
        "Sign a browser out", (Answer(SessionResponse, "no session any more"),)
    ),
    ("GET", "/api/devices"): Operation(
        "Tell how each device's memory is shared",
        (Answer(DevicesResponse, "devices"),),
        (errors.UnknownRoute,),
    ),
    ("GET", "/api/alerts"): Operation(
        "Tell what is wrong now, and what has been lately", (Answer(AlertsResponse, "alerts"),)
    ),
    ("GET", "/api/history"): Operation(
        "Tell the last ten minutes of devices and models, as curves", (Answer(CurvesResponse, "curves"),)
    ),
    ("GET", "/api/events"): Operation(
        "Follow decisions, the steps of an apply (`event: apply`) and alerts (`event: alert`)",
        (Answer(None, "server-sent events", content_type="text/event-stream"),),
        (errors.UnknownRoute,),
    ),
    ("POST", "/api/reload"): Operation(
        "Read the configuration again",
        (Answer(ReloadResponse, "what changed"),),
        # A broken configuration is a client's fault here: problems.BROKEN_CONFIGURATION.
        (errors.UnknownRoute, errors.BadAssignment),
    ),
}

_SERVICES: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", "/api/system/gpus"): Operation(
        "Tell the GPUs detected and how full they are",
        (Answer(Gpus, "GPUs", example=examples.GPUS),),
        (errors.UnknownRoute,),
    ),
    ("GET", "/api/system/gpu-config"): Operation(
        "Tell which service is pinned to which GPU, and the strategies there are",
        (Answer(ConfigurationResponse, "everything about the pinning of services"),),
        (_NO_SERVICES, errors.StoreError, errors.ComposeFileError),
    ),
    ("PUT", "/api/system/gpu-config"): Operation(
        "Save assignments to the database and both files, or to none",
        (Answer(SaveResponse, "the assignments as saved", example=examples.SAVED),),
        (
            _NO_SERVICES,
            *_BODY,
            errors.GeneratedFileEdited,
            errors.GeneratedFileFailed,
            errors.StoreError,
            errors.ComposeFileError,
        ),
        body=ConfigurationRequest,
        body_required=True,
        body_examples=examples.SAVES,
    ),
    ("POST", "/api/system/gpu-config/apply"): Operation(
        "Begin to recreate the services whose assignment changed",
        (_BEGUN,),
        (_NO_SERVICES, *_BODY, *_APPLYING),
        body=ApplyRequest,
        body_examples={"plain": {}, "over edited files": {"force": True}},
    ),
    ("GET", "/api/system/gpu-config/status"): Operation(
        "Tell how the last apply stands and how the containers do",
        (Answer(StatusResponse, "the apply and the containers", example=examples.STATUS),),
        (_NO_SERVICES, errors.ContainerEngineMissing, errors.StoreError),
    ),
    ("POST", "/api/system/gpu-config/detect"): Operation(
        "Look for GPUs again",
        (Answer(DetectResponse, "every GPU that was ever seen", example=examples.DETECTED),),
        (_NO_SERVICES, errors.StoreError),
    ),
    ("GET", "/api/system/gpu-config/preview"): Operation(
        "Tell what a strategy would assign, without changing anything",
        (Answer(PreviewResponse, "assignments and what they change", example=examples.PREVIEW),),
        (_NO_SERVICES, errors.BadAssignment, errors.StoreError, errors.ComposeFileError),
        (
            Parameter(
                "strategy",
                "the strategy to try",
                {"type": "string", "enum": [str(each) for each in Strategy]},
                required=True,
                example="vram_based",
            ),
        ),
    ),
    ("POST", "/api/system/gpu-config/preview"): Operation(
        "Tell what saving assignments would do, without saving them",
        (Answer(PreviewResponse, "assignments and what they change", example=examples.PREVIEW),),
        (_NO_SERVICES, *_BODY, errors.StoreError, errors.ComposeFileError),
        body=PreviewRequest,
        body_required=True,
        body_examples=examples.SAVES,
    ),
    ("POST", "/api/system/gpu-config/rollback"): Operation(
        "Begin to go back to an earlier configuration",
        (_BEGUN,),
        (_NO_SERVICES, *_BODY, *_APPLYING),
        (
            Parameter(
                "number",
                "a configuration of the history, if the body names none; else the one applied before",
                {"type": "integer", "minimum": 1, "maximum": _MAX_WHOLE},
            ),
        ),
        body=RollbackRequest,
        body_examples={"to the one before": {}, "to an earlier one": {"number": 3}},
    ),
    ("GET", "/api/system/gpu-config/history"): Operation(
        "List the configurations saved, newest first",
        (Answer(HistoryResponse, "configurations", example=examples.HISTORY),),
        (_NO_SERVICES, errors.BadRequest, errors.StoreError),
        (
            Parameter(
                "limit",
                "how many, 100 at most",
                {"type": "integer", "minimum": 0, "maximum": _MAX_WHOLE, "default": 20},
            ),
        ),
    ),
}

_PLANS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", "/api/plan"): Operation(
        "Plan a model without loading it: a served one, a file, or headers that were sent",
        (Answer(PlanTold, "where it would lie, or why it would not and what would fit"),),
        (
            *_BODY,
            errors.UnknownRoute,
            errors.UnknownModel,
            errors.HeaderGone,
            errors.BadDeviceSpec,
            errors.BadRecipe,
            errors.BadSplit,
        ),
        body=AskedPlan,
        body_required=True,
        body_examples=examples.PLANS,
    ),
    ("POST", "/api/plan/headers"): Operation(
        "Send the beginning of a GGUF file that lies elsewhere, to plan it. 416 says in "
        "X-Cotenant-Needed-Bytes how much to send",
        (Answer(HeaderTold, "what it is, and its id for a plan"),),
        # A file that cannot be read is a client's fault here: problems.UNREADABLE_MODEL.
        (
            errors.BadAssignment,
            errors.UnknownRoute,
            errors.BadRequest,
            errors.UnsupportedMediaType,
            errors.HeaderIncomplete,
        ),
        (
            Parameter(
                "name", "the file's name", {"type": "string", "minLength": 1}, required=True, example="a.gguf"
            ),
            Parameter(
                "size",
                "the whole file's size in bytes",
                {"type": "integer", "minimum": 0},
                required=True,
                example=4_920_739_232,
            ),
        ),
        body=bytes,
        body_required=True,
        body_content_type="application/octet-stream",
    ),
}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    **_MODELS,
    **_PLANS,
    **_SERVICES,
    ("GET", "/health"): Operation(
        "Tell that the daemon answers; needs no key", (Answer(HealthResponse, "ok"),)
    ),
    ("GET", "/metrics"): Operation(
        "Metrics for Prometheus",
        (
            Answer(None, "metrics", content_type=_TEXT),
            Answer(None, "the same as OpenMetrics", content_type="application/openmetrics-text"),
        ),
    ),
    ("GET", "/v1/models"): Operation(
        "List the models served, as OpenAI does", (Answer(OpenAiModelsResponse, "models"),)
    ),
    ("GET", "/v1/models/{name}"): Operation(
        "Tell one model, as OpenAI does",
        (Answer(OpenAiModelResponse, "the model"),),
        (errors.UnknownModel,),
        (_NAME,),
    ),
    ("GET", "/openapi.json"): Operation("This document", (Answer(dict[str, Any], "OpenAPI 3.1"),)),
}
"""Every route by method and template; a test holds it to those that are answered."""
