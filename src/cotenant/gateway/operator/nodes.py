"""Routes of the machines of the fleet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from cotenant.domain import errors
from cotenant.domain.decisions import NodeStatus
from cotenant.domain.errors import UnknownNode
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Parameter, Reply, Route
from cotenant.gateway.operator.moves import DRY_RUN, DrainResponse
from cotenant.interfaces import NodeBook

_NAME: Final = Parameter(
    "name", "the machine's name", {"type": "string"}, place="path", required=True, example="b"
)
_NO_NODE: Final = (errors.UnknownNode, errors.UnknownRoute, errors.BadRequest, errors.StoreError)


class NodesResponse(BaseModel):
    """The machines of the fleet."""

    nodes: Sequence[NodeStatus]


@dataclass(frozen=True)
class NodeRoutes:
    """Handles requests about machines; without `_book` there are none."""

    _book: NodeBook | None

    @Route(
        "GET /api/nodes",
        "List the machines of the fleet; none if `nodes:` is not configured",
        Reply(NodesResponse, "machines"),
        (errors.UnknownRoute,),
    )
    async def _list(self, request: ApiRequest) -> object:
        return {"nodes": () if self._book is None else self._book.nodes()}

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

    def _named(self, request: ApiRequest) -> NodeBook:
        if self._book is None:
            raise UnknownNode(
                f"there is no machine {request.name[:80]!r}", hint="No `nodes:` are configured."
            )
        return self._book
