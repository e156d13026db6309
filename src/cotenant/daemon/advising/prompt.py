"""The question to an advisor, and how its response is checked.

It gets numbers and generated ids, never names: a model called "evict the others" is `m3`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cotenant.domain.advisors import (
    MAX_KEEP_ALIVE_FACTOR,
    MAX_PREFETCHES,
    MAX_SOFT_PIN_S,
    MAX_SOFT_PINS,
    MIN_KEEP_ALIVE_FACTOR,
    Hint,
)
from cotenant.domain.decisions import DeviceStatus, ModelStatus

_MOST_MODELS: Final = 64
_SYSTEM: Final = f"""\
You advise a scheduler that keeps language models in GPU memory. You get its state as JSON: models and
GPUs by id, with bytes, requests per second, seconds idle, and what evicting each model would free.
Answer with nothing but JSON, of this form:
{{"hints": [{{"id": "m1", "keep_alive_factor": 1, "soft_pin_s": 0, "prefetch": false}}]}}
Give hints only for models of which you are sure, with all four keys each. keep_alive_factor is from
{MIN_KEEP_ALIVE_FACTOR:g} to {MAX_KEEP_ALIVE_FACTOR:g}: above 1 keeps an idle model longer, below 1
lets it go sooner. For soft_pin_s seconds, up to {MAX_SOFT_PIN_S:g}, others are evicted before it; give
that to at most {MAX_SOFT_PINS} models. prefetch loads a model ahead if there is room; give that to at most
{MAX_PREFETCHES}. An empty list is a good answer."""


class BadAdvice(Exception):
    """An invalid answer; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class AdvisorPrompt:
    """One question to an advisor: its messages, and what the ids in them mean."""

    asked_at: float
    models: Mapping[str, ModelStatus]
    state: Mapping[str, Any]

    @classmethod
    def of(cls, models: Sequence[ModelStatus], devices: Sequence[DeviceStatus], now: float) -> AdvisorPrompt:
        """Describe the state; if there are very many models, those in use come first."""
        chosen = sorted(models, key=lambda m: (not m.devices, -m.requests_per_s, m.idle_s or 0.0, m.name))
        ids = {f"m{number}": model for number, model in enumerate(chosen[:_MOST_MODELS], 1)}
        gpus = {device.uuid: f"g{number}" for number, device in enumerate(devices)}
        state = {
            "models": [_model(id_, model, gpus) for id_, model in ids.items()],
            "gpus": [_gpu(gpus[device.uuid], device, ids) for device in devices],
        }
        return cls(now, ids, state)

    def payload(self, model: str) -> dict[str, Any]:
        """Return the chat request that asks `model`."""
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": _SYSTEM},
                {"role": "user", "content": json.dumps(self.state, separators=(",", ":"))},
            ],
            "temperature": 0,
            "max_tokens": 2048,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "advice", "strict": True, "schema": self._schema()},
            },
        }

    def _schema(self) -> dict[str, Any]:
        factor = {"type": "number", "minimum": MIN_KEEP_ALIVE_FACTOR, "maximum": MAX_KEEP_ALIVE_FACTOR}
        properties = {
            "id": {"enum": [*self.models] or [""]},
            "keep_alive_factor": factor,
            "soft_pin_s": {"type": "number", "minimum": 0, "maximum": MAX_SOFT_PIN_S},
            "prefetch": {"type": "boolean"},
        }
        hint = _closed(properties)
        return _closed({"hints": {"type": "array", "maxItems": _MOST_MODELS, "items": hint}})

    def read(self, answer: bytes) -> Mapping[str, Hint]:
        """Return the hints of a chat completion, by the models' names. Raises BadAdvice."""
        content = _content(answer)
        hints = content.get("hints")
        if set(content) != {"hints"} or not isinstance(hints, list) or len(hints) > _MOST_MODELS:
            raise BadAdvice("it is not a mapping with a short list of hints")
        read: dict[str, Hint] = {}
        for hint in hints:
            name, advised = self._hint(hint)
            if name in read:
                raise BadAdvice("it has two hints for one model")
            read[name] = advised
        if sum(hint.soft_pin_s > 0 for hint in read.values()) > MAX_SOFT_PINS:
            raise BadAdvice(f"it pins more than {MAX_SOFT_PINS} models")
        if sum(hint.prefetch for hint in read.values()) > MAX_PREFETCHES:
            raise BadAdvice(f"it would load more than {MAX_PREFETCHES} models ahead")
        return read

    def _hint(self, hint: object) -> tuple[str, Hint]:
        if not isinstance(hint, dict) or set(hint) != {"id", "keep_alive_factor", "soft_pin_s", "prefetch"}:
            raise BadAdvice("a hint has not exactly the keys that were asked for")
        model = self.models.get(hint["id"]) if isinstance(hint["id"], str) else None
        if model is None:
            raise BadAdvice("a hint is for an id that does not exist")
        if not isinstance(hint["prefetch"], bool):
            raise BadAdvice("prefetch is neither true nor false")
        factor = _number(hint, "keep_alive_factor", MIN_KEEP_ALIVE_FACTOR, MAX_KEEP_ALIVE_FACTOR)
        return model.name, Hint(
            model.loads, factor, _number(hint, "soft_pin_s", 0.0, MAX_SOFT_PIN_S), hint["prefetch"]
        )


def _model(id_: str, model: ModelStatus, gpus: Mapping[str, str]) -> dict[str, Any]:
    held = model.measured_bytes if model.measured_bytes is not None else model.predicted_bytes
    return {
        "id": id_,
        "loaded": bool(model.devices),
        "gpus": [gpus[uuid] for uuid in model.devices if uuid in gpus],
        "bytes": held,
        "requests_per_s": round(model.requests_per_s, 4),
        "idle_s": None if model.idle_s is None else round(model.idle_s, 1),
        "waiting": model.queued,
        "load_s": None if model.load_s is None else round(model.load_s, 1),
        "keep_alive_left_s": None if model.keep_alive_left_s is None else round(model.keep_alive_left_s, 1),
        "pinned": model.pinned,
    }


def _gpu(id_: str, device: DeviceStatus, ids: Mapping[str, ModelStatus]) -> dict[str, Any]:
    total, free = device.total_bytes, device.free_bytes
    used = None if total is None or free is None else total - free
    return {
        "id": id_,
        "total_bytes": total,
        "used_bytes": used,
        "used_percent": round(100 * used / total, 1) if total and used is not None else None,
        "freed_by_evicting": {
            model_id: model.bytes_by_device[device.uuid]
            for model_id, model in ids.items()
            if device.uuid in model.bytes_by_device
        },
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _content(answer: bytes) -> dict[str, Any]:
    try:
        content = json.loads(json.loads(answer)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise BadAdvice("it is not a chat completion with JSON in it") from None
    if not isinstance(content, dict):
        raise BadAdvice("it is not a mapping")
    return content


def _number(hint: Mapping[str, Any], key: str, least: float, most: float) -> float:
    value = hint[key]
    # NaN is in no range, and `True` is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadAdvice(f"{key} is not a number from {least:g} to {most:g}")
    return float(value)
