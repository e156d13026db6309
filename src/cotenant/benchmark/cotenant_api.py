"""Cotenant's own API: memory use of models, load and unload."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cotenant.benchmark.results import MemorySample
from cotenant.clock import Clock
from cotenant.domain.engines import Endpoint
from cotenant.http.client import Limits, Request, fetch


class ApiFailed(Exception):
    """The address refused a request or sent no JSON; the message says why."""


async def read_json(
    endpoint: Endpoint, path: str, method: str = "GET", timeout_s: float = 10.0
) -> dict[str, Any]:
    """Return the JSON object at a path. Raises ApiFailed, or OSError where nothing answers at all."""
    limits = Limits(connect_s=None, whole_s=timeout_s, body_bytes=1 << 24)
    answer = await fetch(Request(endpoint, method, path), limits)
    try:
        found = json.loads(answer.body)
    except ValueError:
        found = None
    match found:
        case {"error": {"message": text}} if answer.status >= 400:
            raise ApiFailed(str(text))
        case dict() if answer.status < 400:
            return found
    raise ApiFailed(f"status {answer.status} at {path}")


async def chat_models(endpoint: Endpoint) -> list[str]:
    """Return the names of the chat models at an address. Raises ApiFailed or OSError."""
    data = (await read_json(endpoint, "/v1/models")).get("data")
    return [
        row["id"]
        for row in (data if isinstance(data, list) else ())
        if isinstance(row, dict)
        and isinstance(row.get("id"), str)
        and (row.get("meta") or {}).get("kind") not in ("embedding", "rerank")
    ]


@dataclass(frozen=True, slots=True)
class CotenantApi:
    """The operator's API of a Cotenant. `timeout_s` bounds a load or unload."""

    endpoint: Endpoint
    timeout_s: float

    async def models(self) -> dict[str, dict[str, Any]]:
        """Return the status of each model, by all of its names. Raises ApiFailed or OSError."""
        answer_json = (await read_json(self.endpoint, "/api/models")).get("models")
        if not isinstance(answer_json, list):
            raise ApiFailed("/api/models lists no models")
        return {
            name: model
            for model in answer_json
            if isinstance(model, dict) and "state" in model
            for name in (str(model.get("name")), *model.get("aliases", ()))
        }

    async def capacity_bytes(self) -> int | None:
        """Return the memory of all devices; None if one is unknown. Raises ApiFailed or OSError."""
        devices = (await read_json(self.endpoint, "/api/devices")).get("devices") or []
        totals = [device.get("total_bytes") for device in devices]
        return sum(totals) if totals and all(isinstance(total, int) for total in totals) else None

    async def request(self, model: str, action: str) -> None:
        """Load or unload a model, and wait until it is done. Raises ApiFailed or OSError."""
        path = f"/api/models/{quote(model, safe='')}/{action}"
        await read_json(self.endpoint, path, "POST", self.timeout_s)

    @contextlib.asynccontextmanager
    async def sampled(self, into: list[MemorySample], clock: Clock) -> AsyncIterator[None]:
        """Record the memory of each model a few times a second while the block runs."""

        async def sample() -> None:
            while True:
                with contextlib.suppress(ApiFailed, OSError):
                    if models := (await self.models()).values():
                        held = {str(model["name"]): _held_bytes(model) for model in models}
                        into.append(MemorySample(clock.now(), held))
                await asyncio.sleep(0.25)

        sampling = asyncio.create_task(sample())
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)


def _held_bytes(model: Mapping[str, Any]) -> int:
    """Return a model's memory: as measured, else as its engine reports it, else as planned."""
    known = (model.get(key) for key in ("measured_bytes", "reported_bytes", "predicted_bytes"))
    return next((count for count in known if isinstance(count, int)), 0) if model.get("devices") else 0
