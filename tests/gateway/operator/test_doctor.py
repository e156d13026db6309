import asyncio
import threading

from cotenant.asgi import encode_json
from cotenant.domain.engines import Endpoint
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import RouteTable, dispatch
from cotenant.gateway.operator.doctor import DoctorRoutes
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.support.waiting import until

NOWHERE = Endpoint("127.0.0.1", 1)
FOUND = {"counts": {"ok": 1}, "findings": []}


async def test_without_an_examiner_it_says_what_to_run():
    async with serving(SlotRouter(NOWHERE)) as port:
        reply = await fetch(port, "GET", "/api/doctor")
    assert reply.status == 404
    assert "cotenant doctor" in reply.error["message"]


async def test_who_asks_while_the_machine_is_examined_gets_the_same_answer():
    runs: list[int] = []
    go_on = threading.Event()

    def examine():
        runs.append(1)
        assert go_on.wait(10)
        return FOUND

    scope = {"method": "GET", "path": "/api/doctor", "headers": []}
    handlers, _ = RouteTable(DoctorRoutes(examine)).find(scope)
    assert handlers is not None
    told: list[bytes] = []

    async def send(message):
        told.append(message.get("body", b""))

    asked = [
        asyncio.create_task(dispatch(ApiRequest(scope, None, send, asyncio.Event().wait), handlers))
        for _ in range(3)
    ]
    await until(lambda: bool(runs))
    go_on.set()
    await asyncio.gather(*asked)
    assert (len(runs), b"".join(told)) == (1, encode_json(FOUND) * 3)
    await dispatch(ApiRequest(scope, None, send, asyncio.Event().wait), handlers)
    assert len(runs) == 2


async def test_an_examination_holds_nobody_up():
    go_on = threading.Event()

    def examine():
        assert go_on.wait(10)
        return FOUND

    async with serving(SlotRouter(NOWHERE), examine=examine) as port:
        asked = asyncio.create_task(fetch(port, "GET", "/api/doctor"))
        assert (await fetch(port, "GET", "/health")).status == 200
        go_on.set()
        assert (await asked).json() == FOUND
