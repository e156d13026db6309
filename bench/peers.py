"""The proxies compared, each in a process of its own: `python -m bench.peers NAME ENGINE_PORT`.

All three run on uvloop, keep connections to the engine open, pass streams on as they come, and log no access.
Ours parses the request and looks up its model too; the others are spared that.
"""

import asyncio
import socket
import sys
from typing import Any

import uvloop

HOST = "127.0.0.1"
PATH = "/v1/chat/completions"


async def cotenant(engine_port: int) -> None:
    """Run our gateway, with a router that always has a slot."""
    from tests.support.daemon.plain_gateway import plain_gateway

    from cotenant.domain.engines import Endpoint
    from cotenant.domain.models import ModelKind
    from cotenant.domain.requests import ServedModel
    from cotenant.gateway.server import bind, serve

    class Free:
        endpoint = Endpoint(HOST, engine_port)
        silence_s = 600.0
        answer_s = None

        async def death(self, within_s: float) -> None:
            pass

        def release(self, *, abandoned: bool = False) -> None:
            pass

    class AlwaysFree:
        def __init__(self):
            self._models = {"stub": ServedModel("stub", ModelKind.TEXT, created_at=1)}

        def models(self):
            return list(self._models.values())

        def resolve(self, name):
            return name

        def rules(self, name):
            return None

        def has_copies(self, name):
            return False

        def try_lease(self, name, terms):
            return Free() if name in self._models else None

        async def lease(self, name, terms):
            raise NotImplementedError

    sock = bind(HOST, 0)
    print(sock.getsockname()[1], flush=True)
    await serve(plain_gateway(AlwaysFree()), sock, stop=asyncio.Event(), grace_s=0)


async def scheduled(engine_port: int) -> None:
    """Run our gateway with the daemon's own loop and scheduler, its one engine being the stub."""
    from pathlib import Path

    from tests.support.daemon.plain_gateway import plain_gateway
    from tests.support.models.shapes import dense

    from cotenant.clock import SystemClock
    from cotenant.config.configuration import ModelEntry
    from cotenant.daemon.core.effects import Effects
    from cotenant.daemon.core.fleet import spec_of
    from cotenant.daemon.core.loop import Loop
    from cotenant.daemon.core.operator import FleetOperator
    from cotenant.daemon.core.router import FleetRouter
    from cotenant.domain.devices import HOST_ID, Device, DeviceKind
    from cotenant.domain.engine_kinds import EngineKind
    from cotenant.domain.engines import Endpoint, EngineBuild, EngineForm
    from cotenant.domain.models import Recipe
    from cotenant.gateway.server import bind, serve
    from cotenant.interfaces import EngineOrder
    from cotenant.planning.budgets import BudgetRules
    from cotenant.planning.ledger import DeviceReading
    from cotenant.scheduling.events import DevicesRead, ModelsChanged
    from cotenant.scheduling.model_spec import SchedulerSettings
    from cotenant.scheduling.scheduler import Scheduler

    class Stub:
        endpoint = Endpoint(HOST, engine_port)
        pid = 0
        build = EngineBuild(EngineKind.LLAMA_CPP, EngineForm.SERVER, "stub", "0")
        log_path = Path("stub.log")

        async def wait_ready(self, timeout_s: float) -> None:
            pass

        async def wait_exit(self) -> str:
            await asyncio.Event().wait()
            return "never"

        async def busy_slots(self) -> int:
            return 0

        def report(self) -> None:
            return None

    class Host:
        async def start(self, order: EngineOrder) -> Any:
            return Stub()

    async def nothing_to_reload() -> list[str]:
        return []

    clock = SystemClock()
    effects = Effects(Host(), clock, cpu_fallback=lambda entry, placement: placement, load_timeout_s=10)
    loop = Loop(Scheduler(SchedulerSettings()), clock, effects)
    host = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=1 << 40)
    loop.post(DevicesRead(clock.now(), (DeviceReading(host, clock.now(), 1 << 40, 1 << 40, live=False),)))
    entry = ModelEntry("stub", Path("stub"), Recipe(parallel=64), dense(2, 1 << 20), (), ())
    loop.serve([entry], ModelsChanged(clock.now(), (spec_of(entry, BudgetRules(), None),)))
    operator = FleetOperator(loop, nothing_to_reload)
    await operator.load("stub")
    sock = bind(HOST, 0)
    print(sock.getsockname()[1], flush=True)
    await serve(plain_gateway(FleetRouter(loop), operator), sock, stop=asyncio.Event(), grace_s=0)


async def aiohttp(engine_port: int) -> None:
    """Run aiohttp's server and client."""
    from aiohttp import ClientSession, TCPConnector, web

    url = f"http://{HOST}:{engine_port}{PATH}"

    async def proxy(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"content-type": "application/json"}
        async with session.post(url, data=body, headers=headers) as reply:
            kept = {"content-type": reply.headers["content-type"]}
            if reply.content_length is not None:
                return web.Response(status=reply.status, headers=kept, body=await reply.read())
            response = web.StreamResponse(status=reply.status, headers=kept)
            await response.prepare(request)
            async for piece in reply.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_post(PATH, proxy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = _bound()
    async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as session:
        await web.SockSite(runner, sock, backlog=1024).start()
        print(sock.getsockname()[1], flush=True)
        await asyncio.Event().wait()


async def starlette(engine_port: int) -> None:
    """Run Starlette on uvicorn (httptools), with httpx towards the engine."""
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    client = httpx.AsyncClient(base_url=f"http://{HOST}:{engine_port}", limits=limits, timeout=None)

    async def proxy(request: Request) -> StreamingResponse:
        headers = {"content-type": "application/json"}
        upstream = client.build_request("POST", PATH, content=await request.body(), headers=headers)
        reply = await client.send(upstream, stream=True)
        kept = {k: v for k, v in reply.headers.items() if k in ("content-type", "content-length")}

        async def pieces():
            try:
                async for piece in reply.aiter_raw():
                    yield piece
            finally:
                await reply.aclose()

        return StreamingResponse(pieces(), status_code=reply.status_code, headers=kept)

    app = Starlette(routes=[Route(PATH, proxy, methods=["POST"])])
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="off", access_log=False, log_config=None
    )
    sock = _bound()
    print(sock.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve(sockets=[sock])


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, 0))
    sock.listen(1024)
    return sock


PEERS = {"cotenant": cotenant, "scheduled": scheduled, "aiohttp": aiohttp, "starlette": starlette}

if __name__ == "__main__":
    uvloop.run(PEERS[sys.argv[1]](int(sys.argv[2])))
