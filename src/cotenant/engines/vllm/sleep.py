"""vLLM's sleep mode, with every step verified.

Releases of vLLM kept 16 GB asleep (vllm-project/vllm#32714), leaked it after a failed wake (#34600) and
produced garbage after a level 2 wake (#29341): each sleep is measured, each wake is tested with a request.
"""

import asyncio
import json
from typing import Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import ModelKind
from cotenant.domain.units import GIB, format_bytes
from cotenant.engines.base.host_inputs import Meter
from cotenant.http.client import probe, probe_json, probe_ok
from cotenant.interfaces import EngineOrder

RESIDUE_BYTES: Final = 2 * GIB
"""What a sleeping engine may keep of each card: its CUDA context, graphs and NCCL's buffers."""
_RESIDUE_SHARE: Final = 0.25
_SLEEP_TIMEOUT_S: Final = 60.0
_FREED_TIMEOUT_S: Final = 3.0
_FREED_POLL_S: Final = 0.1
_WAKE_TIMEOUT_S: Final = 120.0
_CANARY_TIMEOUT_S: Final = 30.0
_HOST_MARGIN_BYTES: Final = 2 * GIB
_CANARY: Final = "The capital of France is"
_TO_EMBED: Final[dict[str, object]] = {"input": _CANARY}
_TO_COMPLETE: Final[dict[str, object]] = {"prompt": _CANARY, "max_tokens": 4, "temperature": 0, "seed": 1}


class VllmSleep:
    """Puts one vLLM engine to sleep and wakes it.

    `level` 1 keeps the weights in host RAM, 2 keeps nothing. After each wake a fixed request must get the
    same answer as before the first sleep.
    """

    def __init__(self, level: int, order: EngineOrder, meter: Meter) -> None:
        self._level = level
        self._order = order
        self._meter = meter
        self._answer: str | None = None

    async def sleep(self, endpoint: Endpoint, pid: int) -> str | None:
        """Put it to sleep; return None if its memory is free then, else what is wrong."""
        weights = sum(share.parts.weights for share in self._order.placement.used_shares)
        if self._level == 1:
            free = await self._meter.free_host_bytes()
            if free is not None and free < weights + _HOST_MARGIN_BYTES:
                return f"host RAM has no room for its {format_bytes(weights)} of weights"
        if self._answer is None:
            self._answer = await self._canary(endpoint)
            if self._answer is None:
                return "it did not answer the request that each wake is compared with"
        if await probe_ok(endpoint, f"/sleep?level={self._level}", {}, timeout_s=_SLEEP_TIMEOUT_S) is None:
            return "it refused to sleep"
        status = await probe_json(endpoint, "/is_sleeping", timeout_s=_SLEEP_TIMEOUT_S)
        if status is None or status.get("is_sleeping") is not True:
            return "it reports that it is awake"
        return await self._held_problem(pid)

    async def wake(self, endpoint: Endpoint) -> None:
        """Wake and test it. Raises EngineLoadFailed if it does not wake, or its answer changed."""
        if await probe_ok(endpoint, "/wake_up", {}, timeout_s=_WAKE_TIMEOUT_S) is None:
            raise self._failed("it did not wake")
        if self._level == 2:
            # Level 2 leaves the weights' memory empty.
            call = {"method": "reload_weights"}
            if await probe_ok(endpoint, "/collective_rpc", call, timeout_s=_WAKE_TIMEOUT_S) is None:
                raise self._failed("it did not read its weights again")
            await probe(endpoint, "/reset_prefix_cache", {}, timeout_s=_WAKE_TIMEOUT_S)
        output = await self._canary(endpoint)
        if output is None:
            raise self._failed("it woke but does not answer")
        if output != self._answer:
            raise self._failed("it woke but its answer differs from the one before it slept")

    async def _held_problem(self, pid: int) -> str | None:
        """Return None once the driver reports only a residue, or reports nothing; else the problem."""
        planned = sum(share.parts.total for share in self._order.placement.used_shares)
        cards = max(1, len(self._order.placement.used_shares))
        most = max(int(_RESIDUE_SHARE * planned), min(RESIDUE_BYTES * cards, planned // 2))
        deadline = asyncio.get_running_loop().time() + _FREED_TIMEOUT_S
        while True:
            held = await self._meter.held_bytes(pid)
            if held is None or held <= most:
                return None
            if asyncio.get_running_loop().time() >= deadline:
                return f"asleep it still holds {format_bytes(held)}"
            await asyncio.sleep(_FREED_POLL_S)

    async def _canary(self, endpoint: Endpoint) -> str | None:
        """Return its greedy answer to a fixed request; None if there is none."""
        embeds = self._order.kind is ModelKind.EMBEDDING
        path = "/v1/embeddings" if embeds else "/v1/completions"
        body = {"model": self._order.name, **(_TO_EMBED if embeds else _TO_COMPLETE)}
        answer = await probe_json(endpoint, path, body, timeout_s=_CANARY_TIMEOUT_S)
        if answer is None:
            return None
        try:
            if "data" in answer:
                return json.dumps([round(value, 2) for value in answer["data"][0]["embedding"]])
            return str(answer["choices"][0]["text"])
        except (LookupError, TypeError):
            return None

    def _failed(self, why: str) -> EngineLoadFailed:
        return EngineLoadFailed(
            f"{self._order.name} could not be woken: {why}",
            hint="It is started again at the next attempt. Without `sleep:` it never sleeps.",
            cause=Cause.UNKNOWN,
        )
