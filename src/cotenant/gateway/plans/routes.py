"""Routes of plans, which load nothing.

POST /api/plan                              a served model, a file on this machine, or uploaded headers
POST /api/plan/headers?name=NAME&size=N     the beginning of a file on another machine
"""

from functools import partial
from typing import Any, Final

from cotenant.clock import Clock
from cotenant.concurrency.thread_gate import ThreadGate
from cotenant.domain import errors
from cotenant.domain.errors import (
    BadAssignment,
    BadRequest,
    HeaderIncomplete,
    ModelFileError,
    QueueFull,
    UnsupportedMediaType,
)
from cotenant.domain.placements import PlanAnswer, PlanQuery
from cotenant.domain.units import MIB
from cotenant.gateway.http.bodies import read_body
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.http.model_list import resolve
from cotenant.gateway.http.problems import UNREADABLE_MODEL, send_problem
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route
from cotenant.gateway.http.streams import unless_disconnected
from cotenant.gateway.plans.command import changes_of, plan_command, serve_command
from cotenant.gateway.plans.headers import Headers, join_headers, read_header
from cotenant.gateway.plans.schema import FileResponse, HeaderResponse, PlanRequest, PlanResponse
from cotenant.interfaces import Planner, Router
from cotenant.planning.describe import plan_as_json

OCTETS: Final = "application/octet-stream"
NEEDED: Final = b"x-cotenant-needed-bytes"
_MAX_NAME: Final = 255
_EXAMPLES: Final[dict[str, Any]] = {
    "a served model": {"model": "llama3.2"},
    "a file on other GPUs": {
        "path": "/models/Llama-3.3-70B-Instruct-Q4_K_M.gguf",
        "recipe": {"n_ctx": 16384, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        "gpus": "2xRTX 3090",
    },
}

_NAME: Final = Parameter(
    "name", "the file's name", {"type": "string", "minLength": 1}, required=True, example="a.gguf"
)
_SIZE: Final = Parameter(
    "size",
    "the whole file's size in bytes",
    {"type": "integer", "minimum": 0},
    required=True,
    example=4_920_739_232,
)


class PlanRoutes:
    """Handles requests about plans."""

    def __init__(self, planner: Planner, router: Router, clock: Clock, limits: Limits) -> None:
        self._planner = planner
        self._router = router
        self._limits = limits
        self._headers = Headers(clock)
        self._reading = ThreadGate(lambda: QueueFull("many headers are being read", hint="Try again later."))

    @Route(
        "POST /api/plan",
        "Plan a model without loading it: a served one, a file, or uploaded headers",
        Reply(PlanResponse, "where it would be placed, or why it does not fit and what would"),
        (
            *BODY_ERRORS,
            errors.UnknownRoute,
            errors.UnknownModel,
            errors.HeaderGone,
            errors.BadDeviceSpec,
            errors.BadRecipe,
            errors.BadSplit,
            errors.QueueFull,
        ),
        body=Body(PlanRequest, required=True, examples=_EXAMPLES),
        changes=False,
    )
    async def _plan(self, request: ApiRequest) -> object:
        asked = read_body(PlanRequest, await request.body() or b"{}")
        try:
            found = await unless_disconnected(request.receive, self._planned(asked))
        except ModelFileError as error:
            await send_problem(request.send, error, problem=UNREADABLE_MODEL)
            return None
        return None if found is None else plan_answer(found)

    # An invalid file is sent as problems.UNREADABLE_MODEL here.
    @Route(
        "POST /api/plan/headers",
        "Upload the beginning of a GGUF file on another machine, to plan it. 416 says in "
        "X-Cotenant-Needed-Bytes how much to send",
        Reply(HeaderResponse, "what the file is, and its id for plans"),
        (
            errors.BadAssignment,
            errors.UnknownRoute,
            errors.BadRequest,
            errors.UnsupportedMediaType,
            errors.HeaderIncomplete,
            errors.QueueFull,
        ),
        (_NAME, _SIZE),
        Body(bytes, required=True, content_type=OCTETS),
        changes=False,
    )
    async def _take_header(self, request: ApiRequest) -> object:
        name, size = _file_name(request), _file_size(request)
        given = request.header(b"content-type") or OCTETS.encode()
        if given.partition(b";")[0].strip().lower() != OCTETS.encode():
            raise UnsupportedMediaType(
                f"the body is {given.decode('latin-1')[:80]!r}, not the beginning of a file",
                hint=f"Send it with Content-Type: {OCTETS}.",
            )
        first = await request.octets(self._limits)
        try:
            sent = await self._reading.run(partial(read_header, name, size, first))
        except HeaderIncomplete as error:
            needed = b"%d" % (error.needed_bytes or size)
            await send_problem(request.send, error, ((NEEDED, needed),))
            return None
        except ModelFileError as error:
            await send_problem(request.send, error, problem=UNREADABLE_MODEL)
            return None
        self._headers.keep(sent)
        return HeaderResponse.model_validate(sent)

    async def _planned(self, asked: PlanRequest) -> PlanAnswer:
        """Plan what a request asks for. Raises BadAssignment, HeaderGone, and what a planner raises."""
        named = [name for name in ("model", "path", "headers") if getattr(asked, name) is not None]
        if len(named) != 1:
            what = f"{' and '.join(named)} are given" if named else "no model is given"
            raise BadAssignment(what, hint="Give one of model, path and headers.", field="model")
        sent = [self._headers.find(id_) for id_ in asked.headers or ()]
        name, shape, projector = (
            await self._reading.run(partial(join_headers, sent)) if sent else ("", None, None)
        )
        recipe = asked.recipe.model_dump(exclude_none=True)
        if "tensor_split" in recipe:
            recipe["tensor_split"] = tuple(recipe["tensor_split"])
        query = PlanQuery(
            model=None if asked.model is None else resolve(asked.model, self._router),
            path=asked.path,
            shape=shape,
            name=name,
            projector=projector,
            recipe=recipe,
            gpus=asked.gpus,
            beside_loaded=asked.beside_loaded,
            reserve_bytes=_bytes(asked.reserve_mib),
            min_budget_bytes=_bytes(asked.min_budget_mib),
            overhead_bytes=_bytes(asked.overhead_mib),
        )
        return await self._planner.plan(query)


def plan_answer(found: PlanAnswer) -> PlanResponse:
    """Return the plan, with the fields of docs/design.md, and its inputs."""
    planned: Any = plan_as_json(found.result, found.budgets, found.shape.n_layers)
    budgets = {budget.device.id: budget for budget in found.budgets}
    devices: list[dict[str, Any]] = [
        {**device, "total_bytes": budget.device.total_bytes, "left_out": budget.left_out}
        for device in planned["devices"]
        for budget in [budgets[device["uuid"]]]
    ]
    remedies = [{**remedy, "changes": changes_of(remedy["flags"])} for remedy in planned["remedies"]]
    shape = found.shape
    stated = {name: getattr(shape, name) for name in FileResponse.model_fields if name != "path"}
    return PlanResponse.model_validate(
        {
            "shortfalls": [],
            **planned,
            "devices": devices,
            "remedies": remedies,
            "recipe": found.recipe,
            "reserve_mib": found.reserve_bytes // MIB,
            "min_budget_mib": found.min_budget_bytes // MIB,
            "overhead_mib": found.overhead_bytes // MIB,
            "file": {"path": found.path, **stated},
            "gpus": found.gpus,
            "problems": list(found.problems),
            "command": serve_command(found),
            "plan_command": plan_command(found),
            "load_costs": found.load_costs,
        }
    )


def _file_name(request: ApiRequest) -> str:
    """Read `?name=`. Raises BadRequest."""
    name = (request.text("name") or "").replace("\\", "/").rpartition("/")[2]
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise BadRequest("the file has no name", hint="Add ?name=FILE.gguf&size=BYTES.")
    return name


def _file_size(request: ApiRequest) -> int:
    """Read `?size=`, of the whole file. Raises BadRequest."""
    text = request.text("size") or ""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(
            f"size={text[:40]!r} is not a number of bytes", hint="Add the whole file's size: ?size=BYTES."
        )
    return int(text)


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB
