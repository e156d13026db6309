"""Routes of leases: memory for commands that are not ours."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field

from cotenant.asgi import disconnected, encode_json, send_stream
from cotenant.domain import errors
from cotenant.domain.decisions import LeaseStatus
from cotenant.domain.errors import BadRequest
from cotenant.domain.requests import GuestTerms
from cotenant.gateway.http.bodies import RequestModel, read_body, whole_number
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route
from cotenant.interfaces import Lessor

LINES: Final = "application/x-ndjson"
_ALIVE_S: Final = 15.0
_NAME: Final = Parameter(
    "name",
    "the lease's name",
    {"type": "string", "minLength": 1},
    place="path",
    required=True,
    example="lease~1",
)
_NO_LEASE: Final = (errors.UnknownLease, errors.UnknownRoute)
_YEARS_S: Final = 1e9


class LeaseRequest(RequestModel):
    """What to lease: `bytes` of one device, any or `gpu` (index or UUID), for `lasts_s`, null without an end.

    It waits `wait_s` at most. `pid` is the process that will use it, or one that this descends from, on the
    daemon's machine: what they hold then counts as the lease's. With `hold` the answer stays open, and the
    lease ends with the connection.
    """

    bytes: Annotated[int, Field(ge=1, le=1 << 60), BeforeValidator(whole_number)]
    gpu: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    lasts_s: Annotated[float, Field(gt=0, le=_YEARS_S)] | None = None
    wait_s: Annotated[float, Field(ge=0, le=_YEARS_S)] = 600.0
    pid: Annotated[int, Field(ge=1, le=1 << 31), BeforeValidator(whole_number)] | None = None
    hold: bool = False


class LeasesResponse(BaseModel):
    """All leases, the oldest first."""

    leases: list[LeaseStatus]


@dataclass(frozen=True)
class LeaseRoutes:
    """Handles leases."""

    _lessor: Lessor

    @Route("GET /api/leases", "List the leases of memory", Reply(LeasesResponse, "leases"))
    async def _list(self, request: ApiRequest) -> object:
        return {"leases": self._lessor.leases()}

    @Route(
        "POST /api/leases",
        "Lease memory of a GPU to a command that is not ours; room is made for it as for a model",
        Reply(LeaseStatus, "the lease, once its memory is free"),
        (*BODY_ERRORS, errors.UnknownDevice, errors.DoesNotFit, errors.QueueFull, errors.WaitTimeout),
        body=Body(LeaseRequest, required=True, examples={"12 GiB": {"bytes": 12884901888, "lasts_s": 7200}}),
        other_replies=(
            Reply(None, "with `hold`: the lease, and at its end why, a line each", content_type=LINES),
        ),
    )
    async def _lease(self, request: ApiRequest) -> object:
        asked = read_body(LeaseRequest, await request.body())
        terms = GuestTerms(asked.bytes, asked.gpu, asked.lasts_s, asked.wait_s, asked.pid)
        granting = asyncio.ensure_future(self._lessor.lease(terms))
        leaving = asyncio.ensure_future(disconnected(request.receive))
        try:
            await asyncio.wait({granting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not granting.done():
                raise BadRequest("the client has left before its lease was granted")
            lease = granting.result()
        finally:
            for each in (granting, leaving):
                each.cancel()
            await asyncio.gather(granting, leaving, return_exceptions=True)
        if not asked.hold:
            return lease
        await send_stream(
            request.receive,
            request.send,
            [(b"content-type", LINES.encode())],
            self._held(lease),
            request.ended,
        )
        with contextlib.suppress(errors.UnknownLease):
            self._lessor.end(lease.name, "its client has left")
        return None

    @Route(
        "DELETE /api/leases/{name}",
        "End a lease",
        Reply(dict[str, str], "the lease's name"),
        _NO_LEASE,
        (_NAME,),
    )
    async def _end(self, request: ApiRequest) -> object:
        self._lessor.end(request.name, "it was given back")
        return {"name": request.name}

    async def _held(self, lease: LeaseStatus) -> AsyncGenerator[bytes, None]:
        """Yield the lease, an empty line now and then, and why it has ended."""
        ended = asyncio.ensure_future(self._lessor.ended(lease.name))
        try:
            yield encode_json(lease) + b"\n"
            while not (await asyncio.wait({ended}, timeout=_ALIVE_S))[0]:
                yield b"\n"
            yield encode_json({"ended": ended.result()}) + b"\n"
        finally:
            ended.cancel()
