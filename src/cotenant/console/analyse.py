"""The page that plans a model on devices, again each time that a setting changes."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from cotenant.console.api import ApiFault
from cotenant.console.live_updates import View
from cotenant.console.memory_bar import PART_NAMES, WIDTH, Segment, layer_run, layout
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import HOST, Json
from cotenant.domain.models import Recipe
from cotenant.domain.settings import settings_of

PIECE: Final = "/ui/fragments/analyse"
_POLICIES: Final = (
    ("fill", "Fill", "the fewest GPUs"),
    ("balance", "Balance", "evenly over all"),
    ("speed", "Speed", "the fastest memory first"),
)
EXAMPLES: Final = ("24GiB", "2xRTX 3090", "RTX A5500:24564:2048,RTX A400:4094:329")
_FORM: Final = {each.name: each for each in settings_of(Recipe) if each.label}
_CHOICES: Final = {name: list(each.type) for name, each in _FORM.items() if isinstance(each.default, StrEnum)}
_SWITCHES: Final = [name for name, each in _FORM.items() if each.type is bool]
_IN_FRONT: Final = ("n_ctx", "parallel", "n_gpu_layers", "cache_type_k", "cache_type_v", "split_policy")
"""Fields at the top of the form; the others are under "More settings"."""
_MAX_MIB: Final = 1 << 16
_RULES: Final = {"reserve_mib": "Reserve", "min_budget_mib": "Least budget", "overhead_mib": "Overhead"}
_NUMBERS: Final = (*(name for name, each in _FORM.items() if each.type is int), *_RULES)


async def show(request: PageRequest) -> View:
    """Show the form; the page then requests the first plan. Raises ApiFault."""
    names = [model["name"] for model in (await request.api.get("/api/models"))["models"]]
    cards = (await request.api.find("/api/system/gpus", {"gpus": []}))["gpus"]
    chosen = request.query.get("model", "")
    return View(
        "analyse.html",
        {
            "names": names,
            "chosen": chosen if chosen in names else (names[0] if names else ""),
            "cards": cards,
            "piece": PIECE,
            "choices": _CHOICES,
            "policies": _POLICIES,
            "more": [each for name, each in _FORM.items() if name not in _IN_FRONT],
            "switches": _SWITCHES,
            "rules": _RULES,
            "examples": EXAMPLES,
        },
    )


async def plan(request: PageRequest) -> View:
    """Plan what the form says and show the plan, or an error next to its field. Raises ApiFault."""
    faults: dict[str, str] = {}
    payload = _payload(request.form, faults)
    found: Json | None = None
    if payload is not None and not faults:
        try:
            found = await request.api.post("/api/plan", payload)
        except ApiFault as fault:
            faults[_field_of(fault, request.form)] = fault.message
    described = request.form.get("devices") == "described"
    facts: dict[str, Any] = {
        "plan": None,
        "faults": faults,
        "waiting": _waiting(request.form) if payload is None else "",
        "recipe_faults": ["recipe", "n_gpu_layers", *_NUMBERS],
        "header_gone": any("there is no header" in text for text in faults.values()),
    }
    if found is not None:
        facts |= {"plan": found, **_bars(found), "names": PART_NAMES, "described": described}
    return View("analyse_result.html", facts)


def _payload(form: Mapping[str, str], faults: dict[str, str]) -> dict[str, Any] | None:
    """Return the form as a body for the API, None if no model is chosen; errors are added to `faults`."""
    payload = _model(form)
    if payload is None:
        return None
    if form.get("devices") == "described":
        payload["gpus"] = form.get("gpus", "").strip()
        if not payload["gpus"]:
            faults["gpus"] = f"Describe the GPUs, as in {EXAMPLES[0]} or {EXAMPLES[1]}."
    payload["beside_loaded"] = form.get("beside_loaded") == "1"
    if form.get("fresh") == "1":
        return payload
    recipe: dict[str, Any] = {name: form[name] for name in _CHOICES if form.get(name)}
    recipe |= {name: form.get(name) == "1" for name in _SWITCHES if f"has-{name}" in form}
    for name in _NUMBERS:
        value = _whole(form, name, faults)
        if value is not None:
            (payload if name in _RULES else recipe)[name] = value
    layers = form.get("layers", "")
    if layers == "number":
        recipe["n_gpu_layers"] = _whole(form, "n_gpu_layers", faults)
    elif layers:
        recipe["n_gpu_layers"] = layers
    payload["recipe"] = recipe
    return payload


def _model(form: Mapping[str, str]) -> dict[str, Any] | None:
    source = form.get("source", "")
    if source == "file":
        ids = form.get("headers", "").split()
        return {"headers": ids} if ids else None
    name = form.get("path" if source == "path" else "model", "").strip()
    return {"path" if source == "path" else "model": name} if name else None


def _waiting(form: Mapping[str, str]) -> str:
    return {
        "file": "Choose a GGUF file: only its header is read, and nothing else of it leaves your computer.",
        "path": "Type the path of the model on the daemon's machine.",
    }.get(form.get("source", ""), "No model is served: choose a file or type a path.")


def _whole(form: Mapping[str, str], name: str, faults: dict[str, str]) -> int | None:
    text = form.get(name, "").replace(",", "").strip()
    if not text:
        return None
    declared = _FORM.get(name)
    least, most = (declared.least, declared.most) if declared and declared.type is int else (0, _MAX_MIB)
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else -1
    if not least <= value <= most:
        label = declared.label if declared else _RULES[name]
        faults[name] = f"{label}: {text[:20]!r} is not a whole number from {least} to {most:,}."
        return None
    return value


def _field_of(fault: ApiFault, form: Mapping[str, str]) -> str:
    """Return the field that a fault is shown next to."""
    if fault.code == "bad_device_spec":
        return "gpus"
    if fault.code in ("bad_recipe", "bad_assignment", "bad_split"):
        return "recipe"
    return {"file": "file", "path": "path"}.get(form.get("source", ""), "model")


def _bars(plan: Json) -> dict[str, Any]:
    """Return the plan as bars: a device's memory by part, and the layers by device."""
    short = {each["uuid"]: each for each in plan["shortfalls"]}
    rows = [_device(device, short.get(device["uuid"]), plan) for device in plan["devices"]]
    return {"rows": rows, "strip": _strip(plan), "remedies": plan["remedies"]}


def _device(device: Json, shortfall: Json | None, plan: Json) -> dict[str, Any]:
    total, free = device["total_bytes"], device["free_bytes"]
    used = None if total is None or free is None else max(0, total - free)
    held = [("foreign", "in use", used or 0)]
    if shortfall is not None:
        held.append(("needed", "needed", shortfall["needed_bytes"]))
    else:
        held += [(f"part-{part}", name, device["parts"][part]) for part, name in PART_NAMES.items()]
    wanted = sum(count for _, _, count in held)
    size = total or free or wanted
    held.append(("free", "free", max(0, size - wanted)))
    scale = max(size, wanted) or 1
    budget_end = (used or 0) + device["budget_bytes"]
    return {
        "label": _label(device),
        "name": device["name"],
        "left_out": device["left_out"],
        "total": total,
        "free": free,
        "budget": device["budget_bytes"],
        "planned": shortfall["needed_bytes"] if shortfall else device["planned_bytes"],
        "missing": shortfall["missing_bytes"] if shortfall else 0,
        "layers": device["layers"],
        "used": bool(device["planned_bytes"]),
        "output": _has_output(device, plan),
        "segments": layout((Segment(*part) for part in held), scale, min_width=2),
        "budget_x": min(WIDTH, round(budget_end / scale * WIDTH)),
        "end_x": min(WIDTH, round(size / scale * WIDTH)),
        "parts": [(name, count) for part, name in PART_NAMES.items() if (count := device["parts"][part])],
    }


def _label(device: Json) -> str:
    return HOST if device["index"] is None else f"GPU {device['index']}"


def _has_output(device: Json, plan: Json) -> bool:
    used = [each["uuid"] for each in plan["devices"] if each["planned_bytes"]]
    return bool(plan["n_gpu_layers"] and used and used[-1] == device["uuid"])


def _strip(plan: Json) -> list[dict[str, Any]]:
    """Return runs of layers by device, from the first to the output layer, which counts as the last."""
    if not plan["fits"]:
        return []
    count = plan["n_layers"] + 1
    on_devices = plan["n_gpu_layers"] or any(device["layers"] for device in plan["devices"])
    begin = count - plan["n_gpu_layers"] if plan["n_gpu_layers"] else (0 if on_devices else count)
    runs = [layer_run(HOST, None, 0, begin - 1, count)] if begin else []
    for slot, (device, layers) in enumerate(zip(plan["devices"], plan["tensor_split"], strict=True)):
        layers = layers or (count if device["layers"] and not plan["n_gpu_layers"] else 0)
        if layers:
            runs.append(layer_run(_label(device), slot, begin, begin + layers - 1, count))
            begin += layers
    return [{**run, "output": run["last"] == count - 1} for run in runs]
