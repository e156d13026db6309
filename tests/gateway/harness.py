"""A router with counters, the gateway on a real socket, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineDied, UnknownModel
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms, ServedModel
from cotenant.gateway.server import bind, serve
from tests.support.daemon.plain_gateway import plain_gateway

CHAT = "/v1/chat/completions"
MODEL = ServedModel("llama", ModelKind.TEXT, created_at=1_700_000_000, aliases=("gpt-4o",))


class CountedLease:
    def __init__(self, router: SlotRouter) -> None:
        self._router = router
        self.endpoint = router.endpoint
        self.silence_s = router.silence_s
        self.answer_s = router.answer_s
        self.missed = router.missed

    async def death(self, within_s):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._router.seen_dead(), within_s)
        return self._router.death

    def release(self, *, abandoned: bool = False) -> None:
        self._router.take_back(self, abandoned)


class SlotRouter:
    """Grants leases on `slots` slots of one engine, in order of arrival; keeps each release's flag."""

    def __init__(self, endpoint: Endpoint, *, slots: int = 4, models: tuple[ServedModel, ...] = (MODEL,)):
        self.endpoint = endpoint
        self.served = models
        self.free = slots
        self.waiting: list[asyncio.Future[CountedLease]] = []
        self.held: set[CountedLease] = set()
        self.released: list[bool] = []
        self.most_held = 0
        self.terms: list[LeaseTerms] = []
        self.estimates: dict[str, WaitEstimate] = {}
        self.death: EngineDied | None = None
        self.silence_s = 600.0
        self.answer_s: float | None = None
        self.missed = asyncio.Event()

    async def seen_dead(self):
        """Return once the daemon has seen that the engine is dead, if it is."""

    def models(self):
        return self.served

    def names(self):
        return [model.name for model in self.served]

    def resolve(self, name):
        for model in self.served:
            if name in (model.name, *model.aliases, *model.variants):
                return model.name
        if name == "local" and len(self.served) == 1:
            return self.served[0].name
        raise UnknownModel.among(name, [model.name for model in self.served])

    def rules(self, name):
        model = next(model for model in self.served if model.name == self.resolve(name))
        return model.variants.get(name, model.rules) or None

    def has_copies(self, name):
        return False

    def try_lease(self, name, terms=DEFAULT_TERMS):
        self.resolve(name)
        self.terms.append(terms)
        return self._grant() if self.free and not self.waiting else None

    async def lease(self, name, terms=DEFAULT_TERMS):
        self.resolve(name)
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.take_back(turn.result(), abandoned=False)
            raise
        finally:
            if turn in self.waiting:
                self.waiting.remove(turn)

    def wait_estimate(self, name):
        return self.estimates.get(name)

    def take_back(self, lease, abandoned):
        self.held.remove(lease)  # a second release of the same lease raises KeyError
        self.released.append(abandoned)
        self.free += 1
        while self.free and self.waiting:
            turn = self.waiting.pop(0)
            if not turn.done():
                turn.set_result(self._grant())

    def _grant(self):
        self.free -= 1
        lease = CountedLease(self)
        self.held.add(lease)
        self.most_held = max(self.most_held, len(self.held))
        return lease


@contextlib.asynccontextmanager
async def serving(
    router, operator=None, *, gateway=None, grace_s: float = 0.0, stop: asyncio.Event | None = None, **options
):
    """Serve a gateway and yield its port."""
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    stop = stop or asyncio.Event()
    ready = asyncio.Event()
    server = asyncio.ensure_future(
        serve(
            gateway or plain_gateway(router, operator, **options),
            sock,
            stop=stop,
            grace_s=grace_s,
            on_ready=ready.set,
        )
    )
    await asyncio.wait({server, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield port
    finally:
        stop.set()
        await server


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        fields = {"Host": "localhost", **(headers or {})}
        if body is not None:
            fields.setdefault("Content-Length", str(len(body)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b""))

    def post(self, payload: object, path: str = CHAT, headers: dict[str, str] | None = None) -> None:
        self.send("POST", path, json.dumps(payload).encode(), headers)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)).decode().rstrip()
        first, *lines = raw.split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}

    async def chunk(self) -> bytes:
        """Read one chunk; b"" is the last. Raises IncompleteReadError when the connection ends before it."""
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 60), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def reply(self, *, bodiless: bool = False) -> Reply:
        status, headers = await self.head()
        if bodiless:
            return Reply(status, headers, b"")
        if "content-length" in headers:
            return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        return Reply(status, headers, await self.reply_body())

    async def reply_body(self) -> bytes:
        """Read the chunks that are left."""
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    def leave(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        client.leave()


async def fetch(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """Make one request on a connection of its own."""
    async with connected(port) as client:
        client.send(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return await client.reply(bodiless=method == "HEAD")


async def post(port: int, payload: object, path: str = CHAT, **headers: str) -> Reply:
    return await fetch(port, "POST", path, json.dumps(payload).encode(), **headers)
