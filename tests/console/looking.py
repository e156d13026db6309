"""The console before a gateway, looked at without a browser."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cotenant.console.app import Console
from cotenant.domain.decisions import DeviceStatus, LoadProgress, ModelStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.requests import ModelFile, ServedModel
from cotenant.domain.units import GIB
from cotenant.gateway.app import Gateway
from tests.gateway.harness import SlotRouter
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.daemon.plain_operator import HOST, PlainOperator

NOWHERE = Endpoint("127.0.0.1", 1)
FILE = ModelFile("/models/llama.gguf", 2 * GIB, "llama", 3_212_000_000, "Q4_K_M", 28, 131072)
CARD = DeviceStatus(
    "GPU-a",
    0,
    "RTX 3090",
    24 * GIB,
    10 * GIB,
    claimed_bytes=8 * GIB,
    foreign_bytes=6 * GIB,
    plannable_bytes=9 * GIB,
    utilisation_percent=41.0,
    temperature_c=63.0,
    power_w=211.4,
    mps=True,
)
READY = ModelStatus(
    "llama",
    "ready",
    in_flight=1,
    queued=2,
    slots=4,
    keep_alive_left_s=30.0,
    requests_per_s=1.5,
    devices=("GPU-a",),
    bytes_by_device={"GPU-a": 8 * GIB},
    predicted_bytes=8 * GIB,
    measured_bytes=8 * GIB - 1000,
)
LOADING = ModelStatus(
    "qwen",
    "loading",
    devices=("GPU-a",),
    bytes_by_device={"GPU-a": 2 * GIB},
    predicted_bytes=2 * GIB,
    load=LoadProgress(2.0, 8.0, GIB, 4 * GIB),
)
COLD = ModelStatus("org/bert", "cold")


def served(name: str, state: str = "cold", **facts: Any) -> ServedModel:
    return ServedModel(name, ModelKind.TEXT, created_at=1, state=state, recipe=Recipe(), file=FILE, **facts)


def operator(*statuses: ModelStatus, devices: tuple[DeviceStatus, ...] = (CARD, HOST)) -> PlainOperator:
    return PlainOperator(*(statuses or (READY, LOADING, COLD)), devices=devices)


def gateway(told: PlainOperator | None = None, every_s: float = 0.005, **options: Any) -> Gateway:
    told = told or operator()
    models = tuple(served(status.name, status.state) for status in told.models.values())
    return plain_gateway(
        SlotRouter(NOWHERE, models=models), told, console=lambda api: Console(api, every_s), **options
    )


@dataclass
class Page:
    """An answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()


def scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    from urllib.parse import unquote

    raw, _, query = path.partition("?")
    fields = {"Host": "localhost", **headers}
    return {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "client": ("127.0.0.1", 5),
        "headers": [
            (name.lower().replace("_", "-").encode(), text.encode()) for name, text in fields.items()
        ],
    }


async def look(app: Gateway, path: str = "/", method: str = "GET", body: bytes = b"", **headers: str) -> Page:
    """Make one request as a browser does, and return the whole answer."""
    headers = {"accept": "text/html,*/*", **headers}
    page = Page()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            page.status = message["status"]
            page.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            page.body += message.get("body", b"")

    await app(scope(method, path, headers), receive, send)
    return page


@asynccontextmanager
async def following(app: Gateway, path: str, **headers: str) -> AsyncIterator[Any]:
    """Open the stream of a tab; yield a coroutine function that returns its next event and data."""
    from urllib.parse import quote

    events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            events.put_nowait(("start", message["status"]))
        for piece in message.get("body", b"").decode().split("\n\n"):
            if piece.startswith("event: "):
                name, _, data = piece.removeprefix("event: ").partition("\ndata: ")
                events.put_nowait((name, json.loads(data)))
        if message["type"] == "http.response.body" and not message.get("more_body"):
            events.put_nowait(("end", None))

    task = asyncio.create_task(
        app(scope("GET", f"/ui/stream?at={quote(path, safe='')}", headers), receive, send)
    )

    async def following_event() -> tuple[str, Any]:
        return await asyncio.wait_for(events.get(), 60)

    try:
        yield following_event
    finally:
        left.set()
        await task
