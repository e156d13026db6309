"""What a model's entry says of its engine, where that is another than llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cotenant.config.issues import KeyPath
from cotenant.config.schema import Model
from cotenant.domain.engine_options import CommandTerms, EngineTerms, OllamaTerms, RemoteTerms, VllmTerms
from cotenant.domain.engines import Endpoint
from cotenant.domain.launching import LauncherKind, LaunchTerms
from cotenant.domain.models import CacheType, EngineKind, ModelKind, ModelShape, Recipe

UNREAD_TIMES: Final = 130
"""Per cent of its files that a command's model is taken to need, until it is seen: KV cache and buffers."""
OLLAMA_ADDRESS: Final = "http://127.0.0.1:11434"
_PORTS: Final = {"http": 80, "https": 443}
_OF_LLAMA_CPP: Final = (
    "n_ubatch", "flash_attn", "kv_unified", "n_gpu_layers", "split_mode", "split_policy", "tensor_split",
    "smart_split", "mmap", "mlock", "mmproj",
)  # fmt: skip
_OF_FILES: Final = ("ctx", "n_ctx", "n_batch", "cache_type_k", "cache_type_v")
_REFUSED: Final[Mapping[EngineKind, tuple[str, ...]]] = {
    EngineKind.LLAMA_CPP: (
        "address", "api_key", "api_key_env", "model", "command", "stop", "health", "memory", "sleep", "kind",
    ),
    EngineKind.VLLM: (
        "address", "api_key", "api_key_env", "model", "stop", "health", "memory", "kind", *_OF_LLAMA_CPP,
    ),
    EngineKind.OLLAMA: (
        "path", "command", "stop", "health", "sleep", "env", "args", "mps_threads", "mps_memory_margin_mib",
        "image", "launcher", *_OF_FILES, *_OF_LLAMA_CPP,
    ),
    EngineKind.COMMAND: (
        "address", "api_key", "api_key_env", "sleep", "n_batch", "cache_type_k", "cache_type_v",
        *_OF_LLAMA_CPP,
    ),
    EngineKind.REMOTE: (
        "path", "command", "stop", "memory", "sleep", "env", "args", "gpus", "mps_threads",
        "mps_memory_margin_mib", "image", "launcher", *_OF_FILES, *_OF_LLAMA_CPP,
    ),
}  # fmt: skip
"""Keys that mean nothing to a kind of engine."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with one key of an entry."""

    key: str
    what: str
    hint: str

    def at(self, entry: KeyPath) -> KeyPath:
        """Return the whole key."""
        return (*entry, self.key) if self.key else entry


def kind_of(model: Model) -> EngineKind:
    """Return the engine kind of an entry."""
    return model.engine or EngineKind.LLAMA_CPP


def wrong_with(model: Model, recipe: Recipe) -> list[Wrong]:
    """Say which keys do not go with the entry's engine, and which are missing."""
    kind = kind_of(model)
    refused = [
        Wrong(key, f"{kind} takes no {key}", "Leave it out.")
        for key in _REFUSED[kind]
        if getattr(model, key) is not None
    ]
    needed = {
        EngineKind.LLAMA_CPP: "path",
        EngineKind.VLLM: "path",
        EngineKind.COMMAND: "command",
        EngineKind.REMOTE: "address",
    }.get(kind)
    if needed is not None and getattr(model, needed) is None:
        refused.append(Wrong("", f"it has no {needed}, which {kind} needs", f"Add `{needed}:`."))
    if kind is not EngineKind.LLAMA_CPP and model.path is None and not (model.name or model.model):
        refused.append(Wrong("", "it has no name", "Add `name:`."))
    if kind is EngineKind.VLLM and not _vllm_cache(recipe):
        what = f"vLLM keeps no KV cache in {recipe.cache_type_k} and {recipe.cache_type_v}"
        refused.append(Wrong("cache_type_k", what, "Give both as f16, or both as q8_0 for its fp8."))
    refused += _wrong_launch(model)
    if model.api_key is not None and model.api_key_env is not None:
        refused.append(Wrong("api_key_env", "it has both api_key and api_key_env", "Keep one."))
    return refused


def launch_of(model: Model, base: Path) -> LaunchTerms:
    """Return in what an entry's engine runs; an image that is a file is meant against `base`."""
    image = model.image
    if image is not None and (model.launcher is LauncherKind.APPTAINER or image.endswith(".sif")):
        image = os.path.abspath(base / os.path.expanduser(image))
    return LaunchTerms(model.launcher, image)


def _wrong_launch(model: Model) -> list[Wrong]:
    on_host = model.launcher in (None, LauncherKind.HOST)
    if model.launcher is LauncherKind.HOST and model.image is not None:
        return [Wrong("image", "launcher host runs no image", "Leave one of them out.")]
    if model.image is None and not on_host:
        return [Wrong("launcher", f"{model.launcher} needs an image", "Add `image:`.")]
    if model.image is not None and (model.image.startswith("-") or model.image.split() != [model.image]):
        return [Wrong("image", f"{model.image!r} cannot be an image", "Give its name, or a .sif file.")]
    return []


def terms_of(model: Model, ollama: str | None, environment: Mapping[str, str]) -> EngineTerms | None:
    """Return the terms of an entry that `wrong_with` finds nothing wrong with; None for llama.cpp.

    `ollama` is the address of the hub that entries without their own use.
    """
    match kind_of(model):
        case EngineKind.LLAMA_CPP:
            return None
        case EngineKind.VLLM:
            return VllmTerms(tuple(model.command or VllmTerms().program), model.sleep or 0)
        case EngineKind.OLLAMA:
            address = endpoint(model.address or ollama or OLLAMA_ADDRESS)
            return OllamaTerms(_with_key(address, model, environment), model.model or model.name or "")
        case EngineKind.COMMAND:
            health = model.health or CommandTerms(()).health_path
            return CommandTerms(tuple(model.command or ()), health, tuple(model.stop or ()), model.model)
        case EngineKind.REMOTE:
            address = _with_key(endpoint(model.address or ""), model, environment)
            health = model.health or RemoteTerms(address).health_path
            return RemoteTerms(replace(address, model=model.model), health)


def endpoint(address: str) -> Endpoint:
    """Return where a URL points; a path of `/v1` at its end is left out, since every request has it."""
    parts = urlsplit(address)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    port = parts.port or _PORTS[parts.scheme]
    return Endpoint(parts.hostname or "", port, parts.scheme == "https", prefix)


def unread_shape(name: str, kind: ModelKind) -> ModelShape:
    """Describe a model whose file is not read: all that is known is what it is for."""
    return ModelShape(
        name=name,
        architecture="unknown",
        kind=kind,
        file_bytes=0,
        tensor_bytes=0,
        parameters=0,
        quantisation=None,
        layers=(),
        input_bytes=0,
        output_bytes=0,
        shared_bytes=0,
        tied=False,
        n_embd=0,
        n_vocab=0,
        n_ctx_train=None,
    )


def weights_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files of a folder; 0 where nothing can be read."""
    try:
        if path.is_dir():
            return sum(each.stat().st_size for each in path.iterdir() if each.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def missing_variable(model: Model, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable that shall hold the key and is not set."""
    name = model.api_key_env
    return name if name is not None and not environment.get(name) else None


def _vllm_cache(recipe: Recipe) -> bool:
    return recipe.cache_type_k is recipe.cache_type_v and recipe.cache_type_k in (
        CacheType.F16,
        CacheType.Q8_0,
    )


def _with_key(address: Endpoint, model: Model, environment: Mapping[str, str]) -> Endpoint:
    key = model.api_key or (environment.get(model.api_key_env) if model.api_key_env else None)
    return replace(address, key=key) if key else address
