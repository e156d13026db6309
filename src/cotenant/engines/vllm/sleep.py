"""vLLM's sleep mode, with every step verified.

Releases of vLLM kept 16 GB asleep (vllm-project/vllm#32714), leaked it after a failed wake (#34600) and
produced garbage after a level 2 wake (#29341): each sleep is measured, each wake is tested with a request.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import ModelKind
from cotenant.domain.units import GIB, format_bytes
from cotenant.engines.base.sleeping import Meter
from cotenant.http.client import probe
from cotenant.interfaces import EngineOrder

RESIDUE_BYTES: Final = 2 * GIB
"""What a sleeping engine may keep of each card: its CUDA context, graphs and NCCL's buffers."""
_RESIDUE_SHARE: Final = 0.25
_SLEEP_WITHIN_S: Final = 60.0
_SEEN_WITHIN_S: Final = 3.0
_SEEN_POLL_S: Final = 0.1
_WAKE_WITHIN_S: Final = 120.0
_CANARY_WITHIN_S: Final = 30.0
_HOST_MARGIN_BYTES: Final = 2 * GIB
_OK: Final = 200
_CANARY: Final = "The capital of France is"
_TO_EMBED: Final[dict[str, object]] = {"input": _CANARY}
_TO_COMPLETE: Final[dict[str, object]] = {"prompt": _CANARY, "max_tokens": 4, "temperature": 0, "seed": 1}


class VllmSleep:
    """Puts one vLLM engine to sleep and wakes it.

    `level` 1 keeps the weights in host RAM, 2 keeps nothing. The answer to a fixed request is kept from
    before the first sleep: after each wake it must be the same.
    """

    def __init__(self, level: int, order: EngineOrder, meter: Meter) -> None:
        self._level = level
        self._order = order
        self._meter = meter
        self._answer: str | None = None

    async def sleep(self, endpoint: Endpoint, pid: int) -> str | None:
        """Put it to sleep; return why that did not give the memory back, or None if it did."""
        weights = sum(share.parts.weights for share in self._order.placement.used_shares)
        if self._level == 1:
            free = await self._meter.free_host_bytes()
            if free is not None and free < weights + _HOST_MARGIN_BYTES:
                return f"host RAM has no room for its {format_bytes(weights)} of weights"
        if self._answer is None:
            self._answer = await self._canary(endpoint)
            if self._answer is None:
                return "it did not answer the request that a wake is to be compared with"
        answer = await probe(endpoint, f"/sleep?level={self._level}", {}, timeout_s=_SLEEP_WITHIN_S)
        if answer is None or answer.status != _OK:
            return "it refused to sleep"
        answer = await probe(endpoint, "/is_sleeping", timeout_s=_SLEEP_WITHIN_S)
        status = None if answer is None else answer.json_object()
        if status is None or status.get("is_sleeping") is not True:
            return "it says that it is awake"
        return await self._not_given_back(pid)

    async def wake(self, endpoint: Endpoint) -> None:
        """Wake it and try it. Raises EngineLoadFailed if it does not wake, or speaks otherwise than then."""
        answer = await probe(endpoint, "/wake_up", {}, timeout_s=_WAKE_WITHIN_S)
        if answer is None or answer.status != _OK:
            raise self._failed("it did not wake")
        if self._level == 2:
            # Level 2 leaves the weights' memory empty.
            call = {"method": "reload_weights"}
            answer = await probe(endpoint, "/collective_rpc", call, timeout_s=_WAKE_WITHIN_S)
            if answer is None or answer.status != _OK:
                raise self._failed("it did not read its weights again")
            await probe(endpoint, "/reset_prefix_cache", {}, timeout_s=_WAKE_WITHIN_S)
        output = await self._canary(endpoint)
        if output is None:
            raise self._failed("it woke and does not answer")
        if output != self._answer:
            raise self._failed("it woke and answers otherwise than before it slept")

    async def _not_given_back(self, pid: int) -> str | None:
        """Wait until the driver shows only a residue; return None then, or if no driver reports it."""
        planned = sum(share.parts.total for share in self._order.placement.used_shares)
        cards = max(1, len(self._order.placement.used_shares))
        most = max(int(_RESIDUE_SHARE * planned), min(RESIDUE_BYTES * cards, planned // 2))
        deadline = asyncio.get_running_loop().time() + _SEEN_WITHIN_S
        while True:
            held = await self._meter.held_bytes(pid)
            if held is None or held <= most:
                return None
            if asyncio.get_running_loop().time() >= deadline:
                return f"asleep it still holds {format_bytes(held)}"
            await asyncio.sleep(_SEEN_POLL_S)

    async def _canary(self, endpoint: Endpoint) -> str | None:
        """Return what it answers to a fixed request, greedily; None if nothing."""
        embeds = self._order.kind is ModelKind.EMBEDDING
        path = "/v1/embeddings" if embeds else "/v1/completions"
        body = {"model": self._order.name, **(_TO_EMBED if embeds else _TO_COMPLETE)}
        answer = await probe(endpoint, path, body, timeout_s=_CANARY_WITHIN_S)
        parsed = None if answer is None else answer.json_object()
        if parsed is None:
            return None
        try:
            if "data" in parsed:
                return json.dumps([round(value, 2) for value in parsed["data"][0]["embedding"]])
            return str(parsed["choices"][0]["text"])
        except (LookupError, TypeError):
            return None

    def _failed(self, why: str) -> EngineLoadFailed:
        return EngineLoadFailed(
            f"{self._order.name} could not be woken: {why}",
            hint="It is started again at the next attempt. Without `sleep:` it never sleeps.",
            cause=Cause.UNKNOWN,
        )
