"""Routes of GPU configuration: which service is pinned to which GPU, previewed, saved, applied, rolled back.

GET, PUT /api/system/gpu-config            POST …/apply, …/rollback, …/detect
GET …/preview?strategy=NAME, POST …/preview   GET  …/recommend, …/status, …/history?limit=N
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from cotenant.domain import errors
from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import BadAssignment, UnknownRoute
from cotenant.domain.keys import KeyScope
from cotenant.gateway.http.bodies import read_body
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route, integer
from cotenant.gateway.services import examples
from cotenant.gateway.services.recommendation import RecommendationResponse
from cotenant.gateway.services.schema import (
    MAX_NUMBER,
    ApplyRequest,
    ApplyResponse,
    AssignmentRequest,
    ConfigurationRequest,
    ConfigurationResponse,
    DetectResponse,
    HistoryResponse,
    PreviewRequest,
    PreviewResponse,
    RollbackRequest,
    SaveResponse,
    StatusResponse,
    configuration_response,
    detect_response,
    preview_response,
    save_response,
    valid_assignments,
)
from cotenant.services.model import Assignment, GpuRef, Strategy
from cotenant.services.operator import Services

_Request = TypeVar("_Request", bound=PreviewRequest)
_PATH: Final = "/api/system/gpu-config"
_HISTORY: Final = 20
_BEGUN: Final = Reply(ApplyResponse, "the apply as it begins", 202, example=examples.APPLY)
_PREVIEW: Final = Reply(PreviewResponse, "assignments and what they change", example=examples.PREVIEW)
_STRATEGY: Final = Parameter(
    "strategy",
    "the strategy to try",
    {"type": "string", "enum": [str(each) for each in Strategy]},
    required=True,
    example="vram_based",
)
_NUMBER: Final = Parameter(
    "number", "a configuration in the history, used if the body has none; default: the one before", integer(1)
)
_NO_SERVICES: Final = UnknownRoute
_READING: Final = (errors.StoreError, errors.ComposeFileError)
_APPLYING: Final = (
    errors.ApplyRunning,
    errors.NothingToRollBack,
    errors.ContainerEngineMissing,
    errors.ComposeFileError,
    errors.GeneratedFileEdited,
    errors.GeneratedFileFailed,
    errors.StoreError,
)


class GpuConfigRoutes:
    """Handles requests about GPU configuration. Without services, the error says how to configure them."""

    def __init__(self, services: Services | None) -> None:
        self._services = services

    @Route(
        f"GET {_PATH}",
        "Return which service is pinned to which GPU, and the available strategies",
        Reply(ConfigurationResponse, "everything about the pinning of services"),
        (_NO_SERVICES, *_READING),
    )
    async def _show(self, request: ApiRequest) -> object:
        return configuration_response(await self._needed().view())

    @Route(
        f"PUT {_PATH}",
        "Save assignments to the database and both files, or to none",
        Reply(SaveResponse, "the assignments as saved", example=examples.SAVED),
        (
            _NO_SERVICES,
            *BODY_ERRORS,
            errors.ApplyRunning,
            errors.GeneratedFileEdited,
            errors.GeneratedFileFailed,
            *_READING,
        ),
        body=Body(ConfigurationRequest, required=True, examples=examples.SAVES),
        scope=KeyScope.ADMIN,
    )
    async def _save(self, request: ApiRequest) -> object:
        services = self._needed()
        body = await self._read(ConfigurationRequest, request)
        plan = await services.save(body.strategy, _assignments(body.assignments), force=body.force)
        return save_response(plan)

    @Route(
        f"POST {_PATH}/apply",
        "Begin to recreate the services whose assignment changed",
        _BEGUN,
        (_NO_SERVICES, *BODY_ERRORS, *_APPLYING),
        body=Body(ApplyRequest, examples={"plain": {}, "over edited files": {"force": True}}),
        scope=KeyScope.ADMIN,
    )
    async def _apply(self, request: ApiRequest) -> object:
        services = self._needed()
        body = read_body(ApplyRequest, await request.body() or b"{}")
        return ApplyResponse.model_validate(await services.apply(force=body.force))

    @Route(
        f"GET {_PATH}/status",
        "Return the state of the last apply and of the containers",
        Reply(StatusResponse, "the apply and the containers", example=examples.STATUS),
        (_NO_SERVICES, errors.ContainerEngineMissing, errors.StoreError),
    )
    async def _status(self, request: ApiRequest) -> object:
        apply, containers = await self._needed().status()
        return StatusResponse.model_validate({"apply": apply, "containers": containers})

    @Route(
        f"POST {_PATH}/detect",
        "Detect GPUs again",
        Reply(DetectResponse, "all GPUs that were ever detected", example=examples.DETECTED),
        (_NO_SERVICES, errors.StoreError),
        scope=KeyScope.ADMIN,
    )
    async def _detect(self, request: ApiRequest) -> object:
        services = self._needed()
        seen = await services.detect()
        return detect_response(seen, await services.view())

    @Route(
        f"GET {_PATH}/preview",
        "Return what a strategy would assign, without changing anything",
        _PREVIEW,
        (_NO_SERVICES, errors.BadAssignment, *_READING),
        (_STRATEGY,),
    )
    async def _preview(self, request: ApiRequest) -> object:
        services = self._needed()
        return preview_response(*await services.preview(_strategy(request)))

    @Route(
        f"POST {_PATH}/preview",
        "Return what saving assignments would do, without saving them",
        _PREVIEW,
        (_NO_SERVICES, *BODY_ERRORS, *_READING),
        body=Body(PreviewRequest, required=True, examples=examples.SAVES),
        changes=False,
    )
    async def _preview_assignments(self, request: ApiRequest) -> object:
        services = self._needed()
        body = await self._read(PreviewRequest, request)
        return preview_response(*await services.preview(body.strategy, _assignments(body.assignments)))

    @Route(
        f"GET {_PATH}/recommend",
        "Score what every strategy would assign now, and recommend one",
        Reply(RecommendationResponse, "the strategies, with scores"),
        (_NO_SERVICES, errors.QueueFull, errors.StoreError),
    )
    async def _recommend(self, request: ApiRequest) -> object:
        return RecommendationResponse.model_validate(await self._needed().recommend())

    @Route(
        f"POST {_PATH}/rollback",
        "Begin to roll back to an earlier configuration",
        _BEGUN,
        (_NO_SERVICES, *BODY_ERRORS, *_APPLYING),
        (_NUMBER,),
        Body(RollbackRequest, examples={"to the one before": {}, "to an earlier one": {"number": 3}}),
        scope=KeyScope.ADMIN,
    )
    async def _rollback(self, request: ApiRequest) -> object:
        services = self._needed()
        body = read_body(RollbackRequest, await request.body() or b"{}")
        number = body.number
        if number is None and request.text("number") is not None:
            number = request.integer("number", 0, MAX_NUMBER)
            if not number:
                raise BadAssignment("number=0 is not in the history", field="number")
        return ApplyResponse.model_validate(await services.rollback(number))

    @Route(
        f"GET {_PATH}/history",
        "List the configurations saved, newest first",
        Reply(HistoryResponse, "configurations", example=examples.HISTORY),
        (_NO_SERVICES, errors.BadRequest, errors.StoreError),
        (Parameter("limit", "how many, 100 at most", integer(default=_HISTORY)),),
    )
    async def _history(self, request: ApiRequest) -> object:
        limit = request.integer("limit", _HISTORY, 100)
        return HistoryResponse.model_validate({"history": await self._needed().history(limit)})

    async def _read(self, kind: type[_Request], request: ApiRequest) -> _Request:
        """Read assignments. Raises BadAssignment, of an invalid body also with what its valid fields name."""
        body = await request.body()
        try:
            return read_body(kind, body)
        except BadAssignment as invalid:
            try:
                await self._needed().preview(Strategy.MANUAL, _assignments([*valid_assignments(body)]))
            except errors.CotenantError as error:
                raise BadAssignment.of(*invalid.faults, *getattr(error, "faults", ())) from None
            raise

    def _needed(self) -> Services:
        if self._services is None:
            raise UnknownRoute(
                "no services are configured here",
                hint="Add a `services:` section to cotenant.yaml; `cotenant services import` writes one from "
                "compose files.",
            )
        return self._services


def _assignments(requested: Sequence[AssignmentRequest]) -> list[Assignment]:
    """Return the requested assignments."""
    return [
        Assignment(each.service, vram_budget_gb=each.vram_budget_override, count=each.gpu_count).on(
            GpuRef(gpu.gpu_index, DeviceId(gpu.gpu_uuid) if gpu.gpu_uuid else None)
            for gpu in (each, *each.more_gpus)
            if gpu.gpu_index is not None or gpu.gpu_uuid
        )
        for each in requested
    ]


def _strategy(request: ApiRequest) -> Strategy:
    text = request.text("strategy")
    if text is None or text not in list(Strategy):
        what = "no strategy is given" if text is None else f"{text[:60]!r} is not a strategy"
        raise BadAssignment(what, hint=f"Add ?strategy= one of {', '.join(Strategy)}.", field="strategy")
    return Strategy(text)
