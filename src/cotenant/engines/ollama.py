"""An Ollama daemon as a hub: what it has, what it has loaded, and its models as engines.

Its API: https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from cotenant.domain.causes import Cause
from cotenant.domain.engine_terms import OllamaTerms
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineForm, EngineReport, ReportedDevice
from cotenant.domain.errors import BadRecipe, EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.models import EngineKind, Parts
from cotenant.domain.units import MIB, format_duration
from cotenant.engines import http_probe
from cotenant.engines.elsewhere import ElsewhereEngine
from cotenant.interfaces import EngineOrder

DEFAULT_PORT: Final = 11434
LATEST: Final = ":latest"
_ASK_TIMEOUT_S: Final = 5.0
_LOOK_EVERY_S: Final = 1.0
_GONE_POLL_S: Final = 0.05
_SILENT_TIMES: Final = 3
_FOREVER: Final = -1
_RENEW_WITHIN_S: Final = 120.0
_UNLOAD_WITHIN_S: Final = 30.0
_KV_ELEMENT_BYTES: Final = 2
_BESIDE_BYTES: Final = 512 * MIB
_DEFAULT_CONTEXT: Final = 4096

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model that the daemon has: its tag, its file's bytes, and what it is."""

    tag: str
    file_bytes: int
    digest: str = ""
    family: str = ""
    quantisation: str | None = None


@dataclass(frozen=True, slots=True)
class HubLoaded:
    """A model that it has loaded: bytes on GPUs and in all, and when it lets it go, in Unix seconds."""

    tag: str
    gpu_bytes: int
    total_bytes: int
    expires_at: float | None = None


class OllamaHub:
    """Asks one Ollama daemon. What is None is not known: nobody answered, or not as Ollama does."""

    def __init__(self, address: Endpoint) -> None:
        self.address = address

    async def version(self) -> str | None:
        """Return its version."""
        told = await self._get("/api/version")
        return None if told is None else str(told.get("version", "unknown"))

    async def models(self) -> tuple[HubModel, ...] | None:
        """List what it could load."""
        told = await self._get("/api/tags")
        return None if told is None else tuple(_each(told, _hub_model))

    async def loaded(self) -> tuple[HubLoaded, ...] | None:
        """List what it has loaded, for whomever."""
        told = await self._get("/api/ps")
        return None if told is None else tuple(_each(told, _hub_loaded))

    async def estimate_bytes(self, model: HubModel) -> int:
        """Estimate what a model takes that was never loaded: its file, its KV cache, and a margin.

        Which context Ollama gives it is not told before: 4096 tokens unless its own parameters say otherwise.
        """
        told = http_probe.json_object(
            await http_probe.post(self.address, "/api/show", {"model": model.tag}, timeout_s=_ASK_TIMEOUT_S)
        )
        return model.file_bytes + _kv_bytes(told or {}) + _BESIDE_BYTES

    async def keep(self, tag: str, keep_alive: int, *, timeout_s: float) -> tuple[int, bytes] | None:
        """Load a model, or let it go with `keep_alive` 0; return status and body."""
        body = {"model": tag, "keep_alive": keep_alive}
        answer = await http_probe.post(self.address, "/api/generate", body, timeout_s=timeout_s)
        if answer is not None and answer[0] == 400 and b"does not support generate" in answer[1]:
            embed = {**body, "input": "" if keep_alive == 0 else "x"}
            return await http_probe.post(self.address, "/api/embed", embed, timeout_s=timeout_s)
        return answer

    async def _get(self, path: str) -> Mapping[str, Any] | None:
        return http_probe.json_object(await http_probe.get(self.address, path, timeout_s=_ASK_TIMEOUT_S))


class OllamaHost:
    """Has Ollama daemons load models; `look_every_s` is how often each is asked what it has loaded."""

    def __init__(self, *, look_every_s: float = _LOOK_EVERY_S) -> None:
        self._look_every_s = look_every_s

    async def start(self, order: EngineOrder) -> OllamaEngine:
        """Begin to load. Raises BadRecipe."""
        if not isinstance(order.terms, OllamaTerms):
            raise BadRecipe(f"{order.name} has no Ollama daemon", hint="Give it an `address:`.")
        return OllamaEngine(order.name, order.terms, self._look_every_s)


class OllamaEngine(ElsewhereEngine):
    """One model of an Ollama daemon, kept loaded until it is stopped."""

    def __init__(self, name: str, terms: OllamaTerms, look_every_s: float) -> None:
        address = terms.address
        build = EngineBuild(EngineKind.OLLAMA, EngineForm.OLLAMA, address.url, "unknown")
        endpoint = Endpoint(address.host, address.port, address.tls, address.prefix, terms.tag, address.key)
        super().__init__(name, endpoint, build)
        self._hub = OllamaHub(address)
        self._tag = terms.tag
        self._look_every_s = look_every_s
        self._seen: HubLoaded | None = None

    async def wait_ready(self, timeout_s: float) -> None:
        """Have it loaded. Raises EngineLoadFailed with Ollama's own words, or EngineLoadTimeout."""
        answer = await self._hub.keep(self._tag, _FOREVER, timeout_s=timeout_s)
        if answer is None:
            running = await self._hub.version()
            if running is None:
                raise EngineLoadFailed(
                    f"{self._name} could not be loaded: no Ollama answers at {self.endpoint.url}",
                    hint="Start it (`ollama serve`), or correct `address:`.",
                )
            await self._let_go()
            raise EngineLoadTimeout(
                f"{self._name} was not loaded by Ollama within {format_duration(timeout_s)}",
                hint="See Ollama's log (`journalctl -u ollama`).",
            )
        if answer[0] != 200:
            raise EngineLoadFailed(
                f"{self._name} could not be loaded: Ollama answers {answer[0]}: {_error(answer[1])}",
                hint=f"`ollama pull {self._tag}` fetches a model that it does not have."
                if answer[0] == 404
                else "See Ollama's log (`journalctl -u ollama`).",
            )
        self._seen = await self._loaded_now()
        self._watched()

    def report(self) -> EngineReport | None:
        """Return what Ollama says that it holds."""
        seen = self._seen
        if seen is None:
            return None
        host = max(0, seen.total_bytes - seen.gpu_bytes)
        return EngineReport(
            (
                ReportedDevice("ollama", None, Parts(weights=seen.gpu_bytes)),
                ReportedDevice("CPU", None, Parts(weights=host), on_host=True),
            )
        )

    async def stop(self, grace_s: float) -> None:
        """Have it unloaded, and return when Ollama lists it no more; requests of others are waited for."""
        if not self._end.done():
            await self._let_go()
        await super().stop(grace_s)

    async def _let_go(self) -> None:
        if await self._hub.keep(self._tag, 0, timeout_s=_UNLOAD_WITHIN_S) is None:
            return
        try:
            async with asyncio.timeout(_UNLOAD_WITHIN_S):
                while await self._loaded_now() is not None:  # noqa: ASYNC110  only asking tells
                    await asyncio.sleep(_GONE_POLL_S)
        except TimeoutError:
            return

    async def _watch(self) -> None:
        """See to it that it stays loaded; each request lets Ollama forget what it was told of that."""
        silent = 0
        while True:
            await asyncio.sleep(self._look_every_s)
            loaded = await self._hub.loaded()
            if loaded is None:
                silent += 1
                if silent >= _SILENT_TIMES:
                    why = f"{self._name} is served no more: Ollama at {self.endpoint.url} does not answer"
                    return self._ended(EngineEnd(why, Cause.UNKNOWN))
                continue
            silent = 0
            self._seen = _find(loaded, self._tag)
            if self._seen is None:
                return self._ended(
                    EngineEnd(f"{self._name} was unloaded by Ollama or another client of it", Cause.UNKNOWN)
                )
            left_s = None if self._seen.expires_at is None else self._seen.expires_at - _now()
            if left_s is not None and left_s < _RENEW_WITHIN_S:
                await self._hub.keep(self._tag, _FOREVER, timeout_s=_ASK_TIMEOUT_S)

    async def _loaded_now(self) -> HubLoaded | None:
        return _find(await self._hub.loaded() or (), self._tag)


def same_tag(first: str, second: str) -> bool:
    """Whether two tags are of one model: `:latest` may be left out."""
    return first.removesuffix(LATEST) == second.removesuffix(LATEST)


def _find(loaded: tuple[HubLoaded, ...], tag: str) -> HubLoaded | None:
    return next((each for each in loaded if same_tag(each.tag, tag)), None)


def _now() -> float:
    return datetime.now().astimezone().timestamp()


def _each(told: Mapping[str, Any], read: Callable[[Mapping[str, Any]], _Read | None]) -> Iterator[_Read]:
    """Read the entries of a list of models; what is not as Ollama writes it is passed over."""
    models = told.get("models")
    for entry in models if isinstance(models, list) else ():
        found = read(entry) if isinstance(entry, dict) else None
        if found is not None:
            yield found


def _hub_model(entry: Mapping[str, Any]) -> HubModel | None:
    tag, size = entry.get("model") or entry.get("name"), entry.get("size")
    if not isinstance(tag, str) or not isinstance(size, int):
        return None
    details = entry.get("details")
    told = details if isinstance(details, dict) else {}
    quantisation = told.get("quantization_level")
    return HubModel(
        tag,
        max(0, size),
        str(entry.get("digest", "")),
        str(told.get("family", "")),
        quantisation if isinstance(quantisation, str) else None,
    )


def _hub_loaded(entry: Mapping[str, Any]) -> HubLoaded | None:
    tag, gpu, total = entry.get("model") or entry.get("name"), entry.get("size_vram"), entry.get("size")
    if not isinstance(tag, str):
        return None
    gpu_bytes = gpu if isinstance(gpu, int) else 0
    return HubLoaded(
        tag,
        max(0, gpu_bytes),
        max(gpu_bytes, total if isinstance(total, int) else 0),
        _instant(entry.get("expires_at")),
    )


def _instant(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        # Nine digits of a second, which Go writes, are three more than Python reads.
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except (ValueError, OverflowError):
        return None


def _kv_bytes(told: Mapping[str, Any]) -> int:
    """Return the F16 KV cache of the default context, by the header that Ollama shows; 0 if it does not."""
    info = told.get("model_info")
    if not isinstance(info, dict):
        return 0
    kind = info.get("general.architecture")

    def count(key: str) -> int:
        value = info.get(f"{kind}.{key}")
        return value if isinstance(value, int) and 0 < value < 1 << 24 else 0

    heads, width = count("attention.head_count"), count("embedding_length")
    head = count("attention.key_length") or (width // heads if heads else 0)
    row = 2 * (count("attention.head_count_kv") or heads) * head * count("block_count")
    return _context(told) * row * _KV_ELEMENT_BYTES


def _context(told: Mapping[str, Any]) -> int:
    match = re.search(r"^num_ctx\s+(\d{1,9})\s*$", str(told.get("parameters", "")), re.MULTILINE)
    return int(match[1]) if match else _DEFAULT_CONTEXT


def _error(body: bytes) -> str:
    """Return Ollama's words for what went wrong, cut short."""
    told = http_probe.json_object((200, body))
    text = str(told["error"]) if told is not None and "error" in told else body.decode("utf-8", "replace")
    return text.strip()[:300] or "nothing"
