"""Descriptions of the models served, in the form of Ollama's API."""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cotenant.domain.decisions import ModelStatus
from cotenant.domain.errors import UnknownModel
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.model_list import LATEST, find_model
from cotenant.interfaces import Router

_CAPABILITIES: Final = {ModelKind.TEXT: ["completion", "tools"], ModelKind.EMBEDDING: ["embedding"]}
_UNITS: Final = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_CENTURY_S: Final = 100 * 365 * 86400.0
LOADED: Final = frozenset({"ready", "draining"})


def find(name: str, router: Router) -> ServedModel:
    """Return the model with this name. Raises UnknownModel with the text that Ollama's clients look for."""
    with suppress(UnknownModel):
        return find_model(name, router)
    names = ", ".join(model.name for model in router.models())
    raise UnknownModel(
        f"model {name!r} not found", hint=f"Served: {names}." if names else "No model is served."
    )


def is_served(name: str, router: Router) -> bool:
    """Whether a model is served under this name."""
    with suppress(UnknownModel):
        find(name, router)
        return True
    return False


def listed(name: str, model: ServedModel) -> dict[str, Any]:
    """Describe a model, or its variant of this name, in the form of /api/tags."""
    return {
        "name": _tagged(name),
        "model": _tagged(name),
        "modified_at": _time(model.created_at),
        "size": model.file.bytes if model.file else 0,
        "digest": digest(model),
        "details": details(model),
    }


def running(model: ServedModel, status: ModelStatus | None, now: datetime) -> dict[str, Any]:
    """Describe a loaded model in the form of /api/ps; its size is measured, else reported, else planned."""
    left_s = status.keep_alive_left_s if status else None
    size = 0
    if status is not None:
        known = (status.measured_bytes, status.reported_bytes, status.predicted_bytes)
        size = next((each for each in known if each is not None), 0)
    in_host_ram = model.placement is not None and model.placement.n_gpu_layers == 0
    expires_at = now + timedelta(seconds=_CENTURY_S if left_s is None else min(left_s, _CENTURY_S))
    return {
        "name": _tagged(model.name),
        "model": _tagged(model.name),
        "size": size,
        "digest": digest(model),
        "details": details(model),
        "expires_at": rendered(expires_at),
        "size_vram": 0 if in_host_ram else size,
        "context_length": n_ctx(model),
    }


def shown(model: ServedModel) -> dict[str, Any]:
    """Describe a model in the form of /api/show."""
    info: dict[str, Any] = {}
    if model.file is not None:
        architecture = model.file.architecture
        info["general.architecture"] = architecture
        info["general.parameter_count"] = model.file.parameters
        info[f"{architecture}.block_count"] = model.file.n_layers
        if model.file.n_ctx_train is not None:
            info[f"{architecture}.context_length"] = model.file.n_ctx_train
        if model.file.n_embd is not None:
            info[f"{architecture}.embedding_length"] = model.file.n_embd
    capabilities = list(_CAPABILITIES.get(model.kind, []))
    return {
        "modelfile": f"FROM {model.file.path}\n" if model.file else "",
        "parameters": f"{'num_ctx':<30} {size}" if (size := n_ctx(model)) else "",
        "template": "",
        "details": details(model),
        "model_info": info,
        "capabilities": [*capabilities, "vision"] if model.vision else capabilities,
        "modified_at": _time(model.created_at),
    }


def details(model: ServedModel) -> dict[str, Any]:
    """Describe the format, family and size of a model; unknown values are empty."""
    file = model.file
    family = file.architecture if file else ""
    return {
        "parent_model": "",
        "format": "gguf" if file and file.path.lower().endswith(".gguf") else "",
        "family": family,
        "families": [family, *(["clip"] if model.vision else [])] if family else [],
        "parameter_size": _count(file.parameters) if file else "",
        "quantization_level": (file.quantisation or "") if file else "",
    }


def digest(model: ServedModel) -> str:
    """Return an identifier of this state of a model. It is not a checksum: the weights are not read."""
    size = model.file.bytes if model.file else None
    return hashlib.sha256(f"{model.name} {size} {model.created_at}".encode()).hexdigest()


def rendered(instant: datetime) -> str:
    """Format a time in UTC as Ollama does."""
    return instant.isoformat().replace("+00:00", "Z")


def _time(seconds: float) -> str:
    return rendered(datetime.fromtimestamp(seconds, UTC))


def n_ctx(model: ServedModel) -> int:
    """Return the context that a model is loaded with; 0 if its engine chooses it."""
    recipe = model.recipe
    return recipe.n_ctx if recipe is not None and recipe.engine.traits.follows_recipe else 0


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _count(number: int) -> str:
    for unit, letter in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
