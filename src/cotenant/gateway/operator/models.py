"""Routes of models and devices: their state, and commands to load, unload and pin models.

Slashes in names are written %2F, or as they are where that is not ambiguous.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

from cotenant.asgi import JSON_TYPE, TEXT_TYPE, encode_json, send_body, send_json, send_stream
from cotenant.domain import errors
from cotenant.domain.decisions import LeaseStatus, ModelStatus, SlotStatus, WarmStatus
from cotenant.domain.errors import BadSetting, CotenantError, UnknownModel, UnknownRoute
from cotenant.domain.fragmentation import Defragmentation
from cotenant.domain.keys import KeyScope
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.bodies import read_body
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.http.model_list import admin_model, find_model, resolve, resolve_copy
from cotenant.gateway.http.problems import BROKEN_CONFIGURATION, send_problem
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route, integer
from cotenant.gateway.operator import remote_logs
from cotenant.gateway.operator.engine_logs import MAX_LINES, LogReader
from cotenant.gateway.operator.schema import (
    DevicesResponse,
    ModelResponse,
    ModelsResponse,
    NamedModelRequest,
    ReloadResponse,
    SuccessResponse,
)
from cotenant.gateway.services.examples import GPUS
from cotenant.gateway.services.schema import Gpus, gpus_response
from cotenant.interfaces import Lessor, Operator, RemoteLog, Router

_log = logging.getLogger("cotenant.gateway")

MODEL: Final = "/api/models/{name}"
NAME: Final = Parameter(
    "name",
    "the model's name or alias; slashes may be written %2F",
    {"type": "string", "minLength": 1},
    place="path",
    required=True,
    example="llama",
)
NO_SUCH_MODEL: Final = (errors.UnknownModel, errors.UnknownRoute)
_WAIT: Final = Parameter(
    "wait", "0 returns at once, before the command is done", {"type": "integer", "enum": [0, 1], "default": 1}
)
_FOLLOW: Final = Parameter(
    "follow", "1 continues with new lines", {"type": "integer", "enum": [0, 1], "default": 0}
)
_FOR: Final = Parameter(
    "model", "the model that is to fit; by default one that waits, or the largest", {"type": "string"}
)
_AFTER: Final = Reply(ModelResponse, "the model after that")
_BEGUN: Final = Reply(ModelResponse, "the model now, while the command is running", 202)
_LOADING: Final = (
    errors.DoesNotFit,
    errors.EngineMissing,
    errors.EngineLacksDevice,
    errors.EngineLoadFailed,
    errors.EngineLoadTimeout,
    errors.EngineDied,
)
_LINES: Final = 100
_STATUS_FIELDS: Final = tuple(each.name for each in fields(ModelStatus))


@dataclass(frozen=True)
class ModelRoutes:
    """Handles requests about models and devices, and passes commands to the operator."""

    _router: Router
    _operator: Operator
    _lessor: Lessor
    _timing: Timing
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    def close(self) -> None:
        """Cancel commands that run in the background."""
        for task in self._background:
            task.cancel()

    @Route(
        "GET /api/models",
        "List all models with their state, and leases of memory",
        Reply(ModelsResponse, "models"),
    )
    async def _list(self, request: ApiRequest) -> None:
        operator, leases = self._operator, [*self._lessor.leases()]
        now = self._router.models(), operator.statuses(), operator.warm(), operator.saved_slots(), leases
        # Of thousands of models this takes long, and nothing of it can change meanwhile.
        body = await asyncio.to_thread(_listed, *now)
        await send_body(request.send, 200, body, JSON_TYPE)

    @Route(f"GET {MODEL}", "Return a model with its state", _AFTER, NO_SUCH_MODEL, (NAME,))
    async def _one(self, request: ApiRequest) -> object:
        return self._model(request.name)

    @Route(
        f"GET {MODEL}/logs",
        "Return the log of a model's engine",
        Reply(None, "lines of the log", content_type="text/plain"),
        (*NO_SUCH_MODEL, errors.BadRequest),
        (NAME, Parameter("tail", "number of last lines", integer(default=_LINES)), _FOLLOW),
    )
    async def _logs(self, request: ApiRequest) -> None:
        name = resolve_copy(request.name, self._router)
        tail = request.integer("tail", _LINES, MAX_LINES)
        follow = request.switch("follow", False)
        if self._operator.remote_log(name) is not None:
            await self._remote_logs(request, name, tail, follow=follow)
            return
        path = self._operator.log_path(name)
        if path is None:
            failure = next(
                (each.last_failure for each in self._operator.statuses() if each.name == name), None
            )
            why = f"No engine was started: {failure}" if failure else ""
            raise UnknownRoute(
                f"{name} has no log yet", hint=why or "Its engine writes one when the model is loaded."
            )
        if follow and request.method == "GET":
            pieces = LogReader(partial(_log_path, self._operator, name), tail).follow(self._timing.log_poll_s)
            await send_stream(request.receive, request.send, [TEXT_TYPE], pieces, request.ended)
            return
        # The operator must be called in the event loop's thread.
        reader = LogReader(lambda: path, tail)
        try:
            text = await asyncio.to_thread(reader.read)
        finally:
            reader.close()
        await send_body(request.send, 200, text, TEXT_TYPE)

    async def _remote_logs(self, request: ApiRequest, name: str, tail: int, *, follow: bool) -> None:
        def find() -> RemoteLog | None:
            try:
                return self._operator.remote_log(name)
            except UnknownModel:  # the model was removed while its log is followed
                return None

        if follow and request.method == "GET":
            pieces = remote_logs.follow(find, tail, self._timing.log_poll_s)
            await send_stream(request.receive, request.send, [TEXT_TYPE], pieces, request.ended)
        elif (log := find()) is not None:
            text, _ = await remote_logs.last_lines(log, tail)
            await send_body(request.send, 200, text, TEXT_TYPE)

    @Route(
        f"POST {MODEL}/load",
        "Load a model",
        _AFTER,
        (*NO_SUCH_MODEL, *_LOADING, errors.BadRequest),
        (NAME, _WAIT),
        other_replies=(_BEGUN,),
    )
    async def _load(self, request: ApiRequest) -> object:
        return await self._order(request, self._operator.load)

    @Route(
        f"POST {MODEL}/unload",
        "Unload a model after its requests are complete",
        _AFTER,
        (*NO_SUCH_MODEL, errors.BadRequest),
        (NAME, _WAIT),
        other_replies=(_BEGUN,),
    )
    async def _unload(self, request: ApiRequest) -> object:
        return await self._order(request, self._operator.unload)

    @Route(
        "POST /models/load",
        "Begin to load a model, as llama-server's router does",
        Reply(SuccessResponse, "the model is being loaded"),
        (*NO_SUCH_MODEL, *BODY_ERRORS),
        body=Body(NamedModelRequest, required=True, examples={"a model": {"model": "llama3.2"}}),
    )
    async def _router_load(self, request: ApiRequest) -> object:
        return await self._routers_order(request, self._operator.load)

    @Route(
        "POST /models/unload",
        "Begin to unload a model, as llama-server's router does; Open WebUI asks for it",
        Reply(SuccessResponse, "the model is unloaded once its requests are complete"),
        (*NO_SUCH_MODEL, *BODY_ERRORS),
        body=Body(NamedModelRequest, required=True, examples={"a model": {"model": "llama3.2"}}),
    )
    async def _router_unload(self, request: ApiRequest) -> object:
        return await self._routers_order(request, self._operator.unload)

    @Route(f"POST {MODEL}/pin", "Pin a model: it is never evicted", _AFTER, NO_SUCH_MODEL, (NAME,))
    async def _pin(self, request: ApiRequest) -> object:
        return self._pinned(request, True)

    @Route(f"POST {MODEL}/unpin", "Unpin a model: it may be evicted again", _AFTER, NO_SUCH_MODEL, (NAME,))
    async def _unpin(self, request: ApiRequest) -> object:
        return self._pinned(request, False)

    @Route(
        "GET /api/devices",
        "Return how each device's memory is used",
        Reply(DevicesResponse, "devices"),
        (errors.UnknownRoute,),
    )
    async def _devices(self, request: ApiRequest) -> object:
        return {"devices": self._operator.devices(), "fragmentation": await self._operator.fragmentation()}

    @Route(
        "GET /api/defragmentation",
        "Return the fewest moves of loaded models after which another one fits",
        Reply(Defragmentation, "the moves, in an order in which they can be made"),
        (*NO_SUCH_MODEL, errors.QueueFull),
        (_FOR,),
    )
    async def _defragmentation(self, request: ApiRequest) -> object:
        return await self._operator.defragmentation(self._named(request))

    @Route(
        "POST /api/defragmentation",
        "Make these moves, one after another; requests to the models are served meanwhile",
        Reply(Defragmentation, "the moves that were made"),
        (*NO_SUCH_MODEL, errors.CannotMove, errors.QueueFull),
        (_FOR,),
    )
    async def _defragment(self, request: ApiRequest) -> object:
        return await self._operator.defragment(self._named(request))

    @Route(
        "GET /api/system/gpus",
        "List the detected GPUs and their memory use",
        Reply(Gpus, "GPUs", example=GPUS),
        (errors.UnknownRoute,),
    )
    async def _gpus(self, request: ApiRequest) -> object:
        return gpus_response(self._operator.devices())

    # A bad setting is sent as problems.BROKEN_CONFIGURATION here.
    @Route(
        "POST /api/reload",
        "Read the configuration again",
        Reply(ReloadResponse, "what changed"),
        (errors.UnknownRoute, errors.BadAssignment),
        scope=KeyScope.ADMIN,
    )
    async def _reload(self, request: ApiRequest) -> object:
        try:
            return {"changed": await self._operator.reload()}
        except BadSetting as error:
            whole = BadSetting("; ".join(error.problems), hint=error.hint)
            await send_problem(request.send, whole, problem=BROKEN_CONFIGURATION)
            return None

    def _named(self, request: ApiRequest) -> str | None:
        name = request.text("model")
        return resolve(name, self._router) if name else None

    async def _order(self, request: ApiRequest, order: Callable[[str], Coroutine[Any, Any, None]]) -> object:
        name = resolve(request.name, self._router)
        if request.switch("wait", True):
            await order(name)
            return self._model(name)
        self._begin(order, name)
        await send_json(request.send, 202, self._model(name))
        return None

    async def _routers_order(
        self, request: ApiRequest, order: Callable[[str], Coroutine[Any, Any, None]]
    ) -> object:
        asked = read_body(NamedModelRequest, await request.body())
        self._begin(order, resolve(asked.model, self._router))
        return SuccessResponse()

    def _begin(self, order: Callable[[str], Coroutine[Any, Any, None]], name: str) -> None:
        async def run() -> None:
            """Log a failure: the result is in the model's decisions."""
            try:
                await order(name)
            except CotenantError as error:
                _log.warning("%s %s failed: %s", order.__name__, name, error.message)

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _pinned(self, request: ApiRequest, pinned: bool) -> object:
        name = resolve(request.name, self._router)
        self._operator.pin(name, pinned)
        return self._model(name)

    def _model(self, name: str) -> dict[str, Any]:
        model = find_model(name, self._router)
        status = next((each for each in self._operator.statuses() if each.name == model.name), None)
        return _described(model, status)


def _listed(
    models: Sequence[ServedModel],
    statuses: Sequence[ModelStatus],
    warm: WarmStatus | None,
    saved_slots: SlotStatus | None,
    leases: Sequence[LeaseStatus],
) -> bytes:
    known = {status.name: status for status in statuses}
    found = [_described(model, known.get(model.name)) for model in models if not model.members]
    groups = [{"name": model.name, "members": model.members} for model in models if model.members]
    more = {"leases": leases, "warm": warm, "saved_slots": saved_slots}
    return encode_json({"models": found, "groups": groups, **more})


def _described(model: ServedModel, status: ModelStatus | None) -> dict[str, Any]:
    """Describe a model with its status. Infinite seconds become None, as JSON has no infinity."""
    described = admin_model(model)
    if status is not None:
        for name in _STATUS_FIELDS:
            value = getattr(status, name)
            described[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return described


def _log_path(operator: Operator, name: str) -> Any:
    try:
        return operator.log_path(name)
    except UnknownModel:  # the model was removed while its log is followed
        return None
