"""A gateway with the reference hardware and its services, and requests about GPU configuration."""

import contextlib
import json

from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.units import MIB
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.support.daemon.plain_operator import HOST, PlainOperator
from tests.support.daemon.plain_service_operator import PlainServices

NOWHERE = Endpoint("127.0.0.1", 1)
PATH = "/api/system/gpu-config"
CARDS = (
    DeviceStatus(
        "GPU-a400", 1, "RTX A400", 4094 * MIB, 3765 * MIB, 0, 329 * MIB, 0, compute_capability="8.6"
    ),
    DeviceStatus(
        "GPU-a5500",
        0,
        "RTX A5500",
        24564 * MIB,
        5260 * MIB,
        0,
        0,
        0,
        compute_capability="8.6",
        utilisation_percent=12.5,
    ),
    HOST,
)
NAMED = {"service": "ai-llm"}
WARNING = "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 3.5 GB."


@contextlib.asynccontextmanager
async def configured(services: PlainServices | None = None, **options):
    services = services or PlainServices()
    operator = PlainOperator(devices=CARDS)
    async with serving(SlotRouter(NOWHERE), operator, services=services, **options) as port:
        yield port, services, operator


async def ask(port: int, method: str, path: str, payload: object = None, **headers: str):
    if payload is None:
        return await fetch(port, method, path, None if method == "GET" else b"", **headers)
    headers.setdefault("Content_Type", "application/json")
    return await fetch(port, method, path, json.dumps(payload).encode(), **headers)


def by_hand(*assignments: dict[str, object], **more: object) -> dict[str, object]:
    return {"strategy": "manual", "assignments": list(assignments), **more}
