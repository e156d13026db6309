"""The models served, as OpenAI lists them and as the operator wants to see them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts
from cotenant.domain.placements import Placement, Share
from cotenant.domain.requests import ServedModel
from cotenant.gateway.problems import unknown_model

LOCAL = "local"
"""A name that any client may use while exactly one model is served."""


def find_model(name: str, served: Sequence[ServedModel]) -> ServedModel:
    """Return the model with this name or alias. Raises UnknownModel."""
    for model in served:
        if name == model.name or name in model.aliases:
            return model
    if name == LOCAL and len(served) == 1:
        return served[0]
    raise unknown_model(name, served)


def openai_model(model: ServedModel) -> dict[str, Any]:
    """Describe a model as OpenAI does; `meta` is ours."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": "cotenant",
        "meta": {"kind": model.kind, "state": model.state, "aliases": model.aliases},
    }


def admin_model(model: ServedModel) -> dict[str, Any]:
    """Describe where a model sits and what it weighs, in bytes; what is not known is None."""
    build = model.build
    return {
        "name": model.name,
        "aliases": model.aliases,
        "kind": model.kind,
        "state": model.state,
        "created_at": model.created_at,
        "engine": build
        and {"kind": build.kind, "form": build.form, "version": build.version, "program": build.program},
        "log_path": model.log_path,
        "placement": model.placement and _placement(model.placement, model.report),
    }


def _placement(placement: Placement, report: EngineReport | None) -> dict[str, Any]:
    cards = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
    return {
        "n_layers": placement.n_layers,
        "n_gpu_layers": placement.n_gpu_layers,
        "n_ctx": placement.recipe.n_ctx,
        "parallel": placement.recipe.parallel,
        "tensor_split": placement.tensor_split,
        "devices": [
            {
                "index": share.device.index,
                "name": share.device.name,
                "uuid": share.device.id,
                "layers": _layers(share),
                **_compared(share.parts, _reported_on(share, position, report)),
            }
            for position, share in enumerate(cards)
        ],
        "host": _compared(_planned_on_host(placement), _reported_on_host(report)),
        "estimated": placement.estimated,
        "warnings": placement.warnings,
    }


def _layers(share: Share) -> list[int] | None:
    return None if share.first is None or share.last is None else [share.first, share.last]


def _planned_on_host(placement: Placement) -> Parts:
    on_host = [share.parts for share in placement.used_shares if share.device.kind is DeviceKind.HOST]
    return sum(on_host, start=placement.host)


def _reported_on(share: Share, position: int, report: EngineReport | None) -> Parts | None:
    """Find what the engine reports of a card: by its PCI address, else by its place among those it saw.

    The engine sees the used devices alone, in planned order, so its `CUDA1` is the second of them.
    """
    if report is None:
        return None
    cards = [device for device in report.devices if not device.on_host]
    address = _pci_address(share.device.pci_bus_id)
    for device in cards:
        if address is not None and address == _pci_address(device.pci_bus_id):
            return device.parts
    for device in cards:
        if device.pci_bus_id is None and _number(device) == position:
            return device.parts
    return None


def _reported_on_host(report: EngineReport | None) -> Parts | None:
    if report is None:
        return None
    return sum((device.parts for device in report.devices if device.on_host), start=Parts())


def _compared(planned: Parts, reported: Parts | None) -> dict[str, Any]:
    """Set planned bytes against reported ones. An engine does not report its driver's overhead."""
    return {
        "planned": _parts(planned),
        "reported": reported and {**_parts(reported), "overhead": None},
        "difference_bytes": None if reported is None else _seen(reported) - _seen(planned),
    }


def _seen(parts: Parts) -> int:
    return parts.weights + parts.kv + parts.compute


def _parts(parts: Parts) -> dict[str, int | None]:
    return {
        "weights": parts.weights,
        "kv": parts.kv,
        "compute": parts.compute,
        "overhead": parts.overhead,
        "total": parts.total,
    }


def _pci_address(text: str | None) -> str | None:
    """Write a PCI address without its domain's leading zeros, which NVML pads to eight digits."""
    return None if text is None else text.lower().lstrip("0")


def _number(device: ReportedDevice) -> int | None:
    match = re.search(r"\d+$", device.name)
    return None if match is None else int(match[0])
