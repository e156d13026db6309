"""Routes that move models, and drain devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from cotenant.domain import errors
from cotenant.domain.errors import BadRequest
from cotenant.domain.moves import MovePlan
from cotenant.gateway.http.model_list import resolve_copy
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Parameter, Reply, Route
from cotenant.gateway.operator.models import MODEL, NAME, NO_SUCH_MODEL
from cotenant.interfaces import Mover, Router

_TO: Final = Parameter(
    "to",
    "GPUs with commas: on one of them, or over several if it needs them",
    {"type": "string"},
    required=True,
    example="1",
)
DRY_RUN: Final = Parameter(
    "dry_run", "1 changes nothing: the plan is the answer", {"type": "integer", "enum": [0, 1], "default": 0}
)
_GPU: Final = Parameter(
    "name", "a GPU's index, or its UUID", {"type": "string"}, place="path", required=True, example="0"
)
_CANNOT: Final = (*NO_SUCH_MODEL, errors.CannotMove, errors.UnknownDevice, errors.BadRequest)
_NO_DEVICE: Final = (errors.UnknownDevice, errors.UnknownRoute, errors.BadRequest, errors.StoreError)


class DrainResponse(BaseModel):
    """What becomes of each model on a device."""

    models: Sequence[MovePlan]


@dataclass(frozen=True)
class MoveRoutes:
    """Handles moves and drains."""

    _router: Router
    _mover: Mover

    @Route(
        f"POST {MODEL}/move",
        "Move a loaded model to other GPUs, without ending a request",
        Reply(MovePlan, "the move, once the model is served there"),
        _CANNOT,
        (NAME, _TO, DRY_RUN),
    )
    async def _move(self, request: ApiRequest) -> object:
        name = resolve_copy(request.name, self._router)
        gpus = [gpu.strip() for gpu in (request.text("to") or "").split(",")]
        if not all(gpus):
            raise BadRequest("a move needs `to`", hint="It names GPUs, as ?to=1 or ?to=0,1.")
        if request.switch("dry_run", False):
            return self._mover.plan_move(name, gpus)
        return await self._mover.move(name, gpus)

    @Route(
        f"DELETE {MODEL}/move",
        "Have a model that moves stay where it is",
        Reply(dict[str, str], "the model's name"),
        NO_SUCH_MODEL,
        (NAME,),
    )
    async def _cancel(self, request: ApiRequest) -> object:
        name = resolve_copy(request.name, self._router)
        self._mover.cancel_move(name)
        return {"name": name}

    @Route(
        "POST /api/devices/{name}/drain",
        "Drain a GPU: nothing new is placed there, and its models move away, or unload when idle",
        Reply(DrainResponse, "what becomes of each model there"),
        _NO_DEVICE,
        (_GPU, DRY_RUN),
    )
    async def _drain(self, request: ApiRequest) -> object:
        plans = self._mover.plan_drain(request.name)
        if not request.switch("dry_run", False):
            await self._mover.drain(request.name, True)
        return {"models": plans}

    @Route(
        "POST /api/devices/{name}/undrain",
        "Use a drained GPU again",
        Reply(DrainResponse, "no models"),
        _NO_DEVICE,
        (_GPU,),
    )
    async def _undrain(self, request: ApiRequest) -> object:
        await self._mover.drain(request.name, False)
        return {"models": ()}
