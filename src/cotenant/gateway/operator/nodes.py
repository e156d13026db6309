"""Routes of the machines of the fleet."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Final, Protocol, TypeVar

from pydantic import BaseModel, Field

from cotenant.asgi import encode_json, send_stream
from cotenant.domain import errors, nodes
from cotenant.domain.decisions import NodeStatus
from cotenant.domain.engines import FoundBuilds, InstallOrder, InstallStep
from cotenant.domain.errors import CotenantError, UnknownNode
from cotenant.domain.hub import PullStep
from cotenant.domain.keys import KeyScope
from cotenant.gateway.http.bodies import RequestModel, read_body
from cotenant.gateway.http.problems import envelope
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route
from cotenant.gateway.http.streams import unless_disconnected
from cotenant.gateway.operator.leases import LINES
from cotenant.gateway.operator.moves import DRY_RUN, DrainResponse
from cotenant.gateway.operator.schema import FindingsResponse
from cotenant.interfaces import NodeBook

_NAME: Final = Parameter(
    "name", "the machine's name", {"type": "string"}, place="path", required=True, example="b"
)
_LINES: Final = (b"content-type", LINES.encode())
_ON_NODE: Final = (errors.UnknownNode, errors.UnknownRoute, nodes.NodeUnreachable)
_NO_NODE: Final = (errors.UnknownNode, errors.UnknownRoute, errors.BadRequest, errors.StoreError)


class Machines(NodeBook, Protocol):
    """The machines of the fleet, and what their agents do. What names one raises UnknownNode."""

    @property
    def problem(self) -> str | None:
        """Why no machine can be reached, if so."""

    async def doctor(self, name: str) -> Mapping[str, object]:
        """What `cotenant doctor --json` finds on a machine. Raises NodeUnreachable."""

    async def engines(self, name: str) -> FoundBuilds:
        """The programs of a machine that can run models. Raises NodeUnreachable or EngineMissing."""

    def install(self, name: str, order: InstallOrder) -> AsyncGenerator[InstallStep, None]:
        """Install a build on a machine. Raises NodeUnreachable, BadRequest or EngineInstallFailed.

        It goes on if nobody listens any more.
        """

    def pull(self, name: str, model: str) -> AsyncGenerator[PullStep, None]:
        """Have a machine fetch the files of a served model that it lacks; it goes on if nobody listens.

        Raises UnknownModel, ModelFileMissing, NodeUnreachable or HubError.
        """


class NodesResponse(BaseModel):
    """The machines of the fleet; `problem` says why none can be reached, if so.

    `launcher` starts their agents; it is null if `nodes:` is not configured.
    """

    nodes: Sequence[NodeStatus]
    launcher: str | None
    problem: str | None


class InstallRequest(RequestModel):
    """What to install: `cuda`, `rocm`, `vulkan` or `cpu`, null for what the machine's GPUs need.

    `index` is where the wheel is taken from in place of upstream's. With `dry_run` nothing is installed.
    """

    flavour: Annotated[str, Field(max_length=40)] | None = None
    index: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    verify: bool = True
    newest: bool = False
    dry_run: bool = False


class PullRequest(RequestModel):
    """A served model, by its name, an alias, or its name on the hub."""

    model: Annotated[str, Field(min_length=1, max_length=200)]


_Step = TypeVar("_Step", InstallStep, PullStep)


@dataclass(frozen=True)
class NodeRoutes:
    """Handles requests about machines; without `_book` there are none."""

    _book: Machines | None

    @Route(
        "GET /api/nodes",
        "List the machines of the fleet; none if `nodes:` is not configured",
        Reply(NodesResponse, "machines"),
        (errors.UnknownRoute,),
    )
    async def _list(self, request: ApiRequest) -> object:
        book = self._book
        if book is None:
            return {"nodes": (), "launcher": None, "problem": None}
        return {"nodes": book.nodes(), "launcher": "ray", "problem": book.problem}

    @Route(
        "POST /api/nodes/{name}/drain",
        "Drain a machine: nothing new is placed there, and its models move away, or unload when idle",
        Reply(DrainResponse, "what becomes of each model there"),
        _NO_NODE,
        (_NAME, DRY_RUN),
    )
    async def _drain(self, request: ApiRequest) -> object:
        book = self._named(request)
        plans = book.plan_drain(request.name)
        if not request.switch("dry_run", False):
            await book.drain(request.name, True)
        return {"models": plans}

    @Route(
        "POST /api/nodes/{name}/undrain",
        "Use a drained machine again",
        Reply(DrainResponse, "no models"),
        _NO_NODE,
        (_NAME,),
    )
    async def _undrain(self, request: ApiRequest) -> object:
        await self._named(request).drain(request.name, False)
        return {"models": ()}

    @Route(
        "DELETE /api/nodes/{name}",
        "Miss a lost machine no more; it comes back if it answers again",
        Reply(dict[str, str], "the machine's name"),
        _NO_NODE,
        (_NAME,),
    )
    async def _forget(self, request: ApiRequest) -> object:
        self._named(request).forget(request.name)
        return {"name": request.name}

    @Route(
        "GET /api/nodes/{name}/doctor",
        "Check a machine, which takes some seconds",
        Reply(FindingsResponse, "the findings"),
        _ON_NODE,
        (_NAME,),
    )
    async def _doctor(self, request: ApiRequest) -> object:
        return await self._named(request).doctor(request.name)

    @Route(
        "GET /api/nodes/{name}/engines",
        "List the programs of a machine that can run models, and the GPUs that each sees",
        Reply(FoundBuilds, "the programs"),
        (*_ON_NODE, errors.EngineMissing),
        (_NAME,),
    )
    async def _engines(self, request: ApiRequest) -> object:
        return await self._named(request).engines(request.name)

    @Route(
        "POST /api/nodes/{name}/engines/install",
        "Install a build of llama.cpp on a machine; the install goes on if the client leaves",
        Reply(None, "what happens, a line each, and at the end the build or an error", content_type=LINES),
        (*_ON_NODE, *BODY_ERRORS, errors.EngineInstallFailed),
        (_NAME,),
        Body(InstallRequest, examples={"for its GPUs": {}, "for the CPU": {"flavour": "cpu"}}),
        scope=KeyScope.ADMIN,
    )
    async def _install(self, request: ApiRequest) -> None:
        book, body = self._named(request), await request.body()
        order = InstallOrder(**read_body(InstallRequest, body or b"{}").model_dump())
        async with aclosing(book.install(request.name, order)) as steps:
            # The first step is awaited before the response begins, so that errors have their own status.
            first = await unless_disconnected(request.receive, anext(steps))
            if first is not None:
                pieces = _lines(first, steps)
                await send_stream(request.receive, request.send, [_LINES], pieces, request.ended)

    @Route(
        "POST /api/nodes/{name}/pull",
        "Have a machine fetch the files of a served model that it lacks; it goes on if the client leaves",
        Reply(None, "the progress, a line each, and at the end the files or an error", content_type=LINES),
        (*_ON_NODE, *BODY_ERRORS, errors.UnknownModel, errors.PullFailed, errors.NoRoomOnDisk),
        (_NAME,),
        Body(PullRequest, required=True, examples={"a served model": {"model": "llama3.2"}}),
        scope=KeyScope.ADMIN,
    )
    async def _pull(self, request: ApiRequest) -> None:
        book, body = self._named(request), await request.body()
        async with aclosing(book.pull(request.name, read_body(PullRequest, body or b"{}").model)) as steps:
            first = await unless_disconnected(request.receive, anext(steps))
            if first is not None:
                pieces = _lines(first, steps)
                await send_stream(request.receive, request.send, [_LINES], pieces, request.ended)

    def _named(self, request: ApiRequest) -> Machines:
        if self._book is None:
            raise UnknownNode(
                f"there is no machine {request.name[:80]!r}", hint="No `nodes:` are configured."
            )
        return self._book


async def _lines(first: _Step, steps: AsyncGenerator[_Step, None]) -> AsyncGenerator[bytes, None]:
    yield encode_json(first) + b"\n"
    try:
        async for step in steps:
            yield encode_json(step) + b"\n"
    except CotenantError as error:
        yield envelope(error) + b"\n"
