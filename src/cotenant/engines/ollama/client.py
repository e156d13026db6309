"""A client of an Ollama daemon: its models, its loaded models, and the details of each.

Its API: https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.units import GIB, MIB
from cotenant.http.client import Response, probe, probe_json

LATEST: Final = ":latest"
ASK_TIMEOUT_S: Final = 5.0
_SMALL_CONTEXT: Final = 4096


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model that the daemon has: its tag, its file's bytes, and its kind."""

    tag: str
    file_bytes: int
    digest: str = ""
    family: str = ""
    quantisation: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model: bytes on GPUs and in total, and when it is unloaded, in Unix seconds."""

    tag: str
    gpu_bytes: int
    total_bytes: int
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The details of a model.

    `weights` names the file of its weights: models with the same file are loaded once, and listed under the
    name that was loaded first. `embeds` is None if unknown. `token_bytes` is the size of one token in an F16
    KV cache. `n_ctx` is the model's own parameter, bounded by `n_ctx_train`.
    """

    weights: str = ""
    embeds: bool | None = None
    token_bytes: int = 0
    n_ctx: int | None = None
    n_ctx_train: int | None = None

    def estimate_bytes(self, file_bytes: int, default_ctx: int) -> int:
        """Estimate the bytes of a model that was never loaded: its file, its KV cache, and a margin."""
        n_ctx = self.n_ctx or default_ctx
        if self.n_ctx_train is not None:
            n_ctx = min(n_ctx, self.n_ctx_train)
        return file_bytes + n_ctx * self.token_bytes + 512 * MIB


class OllamaClient:
    """A client of one Ollama daemon. Its methods return None if there is no answer, or not one of Ollama."""

    def __init__(self, address: Endpoint) -> None:
        self.address = address

    async def version(self) -> str | None:
        """Return its version."""
        answer = await self._get("/api/version")
        return None if answer is None else str(answer.get("version", "unknown"))

    async def models(self) -> tuple[OllamaModel, ...] | None:
        """List the models that it has."""
        answer = await self._get("/api/tags")
        if answer is None:
            return None
        return tuple(
            _model(tag, entry) for tag, entry in _entries(answer) if isinstance(entry.get("size"), int)
        )

    async def loaded(self) -> tuple[LoadedModel, ...] | None:
        """List the models that are loaded or loading, for any client."""
        answer = await self._get("/api/ps")
        return None if answer is None else tuple(_loaded_model(*entry) for entry in _entries(answer))

    async def facts(self, tag: str) -> ModelFacts | None:
        """Return the details of a model, which may be empty."""
        answer = await probe(self.address, "/api/show", {"model": tag}, timeout_s=ASK_TIMEOUT_S)
        return None if answer is None else _facts(answer.json_object() or {})

    async def keep(self, tag: str, keep_alive: int, *, timeout_s: float) -> Response | None:
        """Load a model, or unload it with `keep_alive` 0; return the response."""
        body = {"model": tag, "keep_alive": keep_alive}
        answer = await probe(self.address, "/api/generate", body, timeout_s=timeout_s)
        if answer is not None and answer.status == 400 and b"does not support generate" in answer.body:
            # Without a text this loads an embedding model and embeds nothing.
            return await probe(self.address, "/api/embed", body, timeout_s=timeout_s)
        return answer

    async def _get(self, path: str) -> Mapping[str, Any] | None:
        return await probe_json(self.address, path, timeout_s=ASK_TIMEOUT_S)


def same_tag(first: str, second: str) -> bool:
    """Whether two tags name the same model: `:latest` may be omitted."""
    return first.removesuffix(LATEST) == second.removesuffix(LATEST)


def default_context(version: str, gpu_bytes: int) -> int:
    """Return Ollama's default context, on GPUs of these bytes in total."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", version)
    if found and (0, 0, 0) < tuple(map(int, found.groups())) < (0, 15, 5):
        return _SMALL_CONTEXT
    by_gpu_bytes = ((47 * GIB, 262144), (23 * GIB, 32768))
    return next((n_ctx for least, n_ctx in by_gpu_bytes if gpu_bytes >= least), _SMALL_CONTEXT)


def _entries(answer: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tag and the entry of each model in a list; entries of another form are skipped."""
    models = answer.get("models")
    for entry in models if isinstance(models, list) else ():
        tag = (entry.get("model") or entry.get("name")) if isinstance(entry, dict) else None
        if isinstance(tag, str):
            yield tag, entry


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _model(tag: str, entry: Mapping[str, Any]) -> OllamaModel:
    details = _dict(entry.get("details"))
    quantisation = details.get("quantization_level")
    return OllamaModel(
        tag,
        max(0, entry["size"]),
        str(entry.get("digest", "")),
        str(details.get("family", "")),
        quantisation if isinstance(quantisation, str) else None,
    )


def _loaded_model(tag: str, entry: Mapping[str, Any]) -> LoadedModel:
    sizes = (entry.get("size_vram"), entry.get("size"))
    gpu_bytes, total_bytes = (max(0, size) if isinstance(size, int) else 0 for size in sizes)
    return LoadedModel(tag, gpu_bytes, max(gpu_bytes, total_bytes), _instant(entry.get("expires_at")))


def _instant(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        # Go writes nine digits of a second; Python reads six.
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except (ValueError, OverflowError):
        return None


def _facts(answer: Mapping[str, Any]) -> ModelFacts:
    weights = re.search(r"^FROM (\S+)$", str(answer.get("modelfile", "")), re.MULTILINE)
    capabilities = answer.get("capabilities")
    n_ctx = re.search(r"^num_ctx\s+(\d{1,9})\s*$", str(answer.get("parameters", "")), re.MULTILINE)
    info = _dict(answer.get("model_info"))
    kind = info.get("general.architecture")

    def count(key: str) -> int:
        value = info.get(f"{kind}.{key}")
        return value if isinstance(value, int) and 0 < value < 1 << 24 else 0

    heads, width = count("attention.head_count"), count("embedding_length")
    head = count("attention.key_length") or (width // heads if heads else 0)
    row = 2 * (count("attention.head_count_kv") or heads) * head * count("block_count")
    return ModelFacts(
        weights[1] if weights else "",
        "embedding" in capabilities if isinstance(capabilities, list) else None,
        row * 2,  # bytes of an F16 element
        int(n_ctx[1]) if n_ctx else None,
        count("context_length") or None,
    )
