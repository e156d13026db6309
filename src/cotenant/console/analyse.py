"""The page that plans a model on devices, again each time that a setting changes."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from cotenant.console.api import ApiFault
from cotenant.console.live_updates import View
from cotenant.console.memory_bar import PART_NAMES, WIDTH, Segment, layer_run, layout
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import HOST, Json, load_costs
from cotenant.domain.models import FEWEST_EXPERTS, Recipe
from cotenant.domain.settings import settings_of

EXAMPLES: Final = ("24GiB", "2xRTX 3090", "RTX A5500:24564:2048,RTX A400:4094:329")
_FORM: Final = {each.name: each for each in settings_of(Recipe) if each.label}
_CHOICES: Final = {name: list(each.type) for name, each in _FORM.items() if isinstance(each.default, StrEnum)}
_SWITCHES: Final = [name for name, each in _FORM.items() if each.type is bool]
_RULES: Final = {"reserve_mib": "Reserve", "min_budget_mib": "Least budget", "overhead_mib": "Overhead"}
_NUMBERS: Final = (*(name for name, each in _FORM.items() if each.type is int), *_RULES)

_SOURCES: Final = {
    "file": (
        "headers",
        "Choose a GGUF file: only its header is read, and nothing else of it leaves your computer.",
    ),
    "path": ("path", "Type the path of the model on the daemon's machine."),
    "model": ("model", "No model is served: choose a file or type a path."),
}
"""The field of the form that names the model, and what to do while it is empty, by where the model is."""
_FAULTY: Final = {"bad_device_spec": "gpus"} | dict.fromkeys(
    ("bad_recipe", "bad_assignment", "bad_split"), "recipe"
)
"""The field that a fault is shown next to, by its code; others are shown next to the model."""


async def show(request: PageRequest) -> View:
    """Show the form; the page then requests the first plan. Raises ApiFault."""
    names = [model["name"] for model in (await request.api.get("/api/models"))["models"]]
    cards = (await request.api.find("/api/system/gpus", {"gpus": []}))["gpus"]
    chosen = request.query.get("model", "")
    in_front = ("n_ctx", "parallel", "n_gpu_layers", "cache_type_k", "cache_type_v", "split_policy")
    return View(
        "analyse.html",
        {
            "names": names,
            "chosen": chosen if chosen in names else (names[0] if names else ""),
            "cards": cards,
            "choices": _CHOICES,
            # Under "More settings"; the others are at the top of the form.
            "more": [each for name, each in _FORM.items() if name not in in_front],
            "switches": _SWITCHES,
            "rules": _RULES,
            "examples": EXAMPLES,
        },
    )


async def advice(request: PageRequest) -> View:
    """Show the last search for better settings; a POST begins one. Raises ApiFault."""
    ask = request.api.get if request.method == "GET" else request.api.post
    return View("advice.html", {"search": await ask("/api/advise")})


async def plan(request: PageRequest) -> View:
    """Plan what the form says and show the plan, or an error next to its field."""
    faults: dict[str, str] = {}
    source = request.form.get("source", "")
    source = source if source in _SOURCES else "model"
    key, waiting = _SOURCES[source]
    payload = _payload(request.form, key, faults)
    facts: dict[str, Any] = {"plan": None, "waiting": waiting if payload is None else ""}
    if payload is not None and not faults:
        try:
            found = await request.api.post("/api/plan", payload)
        except ApiFault as fault:
            faults[_FAULTY.get(fault.code, source)] = fault.message
        else:
            rows = [_device(device, found) for device in found["devices"]]
            facts |= {"plan": found, "rows": rows, "strip": _strip(found), "names": PART_NAMES}
            facts["load_costs"] = load_costs(found)
    return View(
        "analyse_result.html",
        {
            **facts,
            "faults": faults,
            "recipe_faults": ["recipe", "n_gpu_layers", "n_cpu_moe", *_NUMBERS],
            "header_gone": any("there is no header" in text for text in faults.values()),
        },
    )


def _payload(form: Mapping[str, str], key: str, faults: dict[str, str]) -> dict[str, Any] | None:
    """Return the form as a body for the API, None if no model is chosen; errors are added to `faults`.

    `key` is the field that names the model.
    """
    named = form.get(key, "").strip()
    if not named:
        return None
    payload: dict[str, Any] = {key: named.split() if key == "headers" else named}
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
    if experts := form.get("n_cpu_moe", "").strip():
        by_fit = experts == FEWEST_EXPERTS
        recipe["n_cpu_moe"] = experts if by_fit else _whole(form, "n_cpu_moe", faults)
    payload["recipe"] = recipe
    return payload


def _whole(form: Mapping[str, str], name: str, faults: dict[str, str]) -> int | None:
    text = form.get(name, "").replace(",", "").strip()
    if not text:
        return None
    declared = _FORM.get(name)
    least, most = (declared.least, declared.most) if declared and declared.type is int else (0, 1 << 16)
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else -1
    if not least <= value <= most:
        label = declared.label if declared else _RULES[name]
        faults[name] = f"{label}: {text[:20]!r} is not a whole number from {least} to {most:,}."
        return None
    return value


def _device(device: Json, plan: Json) -> dict[str, Any]:
    shortfall = next((each for each in plan["shortfalls"] if each["uuid"] == device["uuid"]), None)
    last = next((each["uuid"] for each in reversed(plan["devices"]) if each["planned_bytes"]), None)
    total, free = device["total_bytes"], device["free_bytes"]
    used = None if total is None or free is None else max(0, total - free)
    held = [Segment("foreign", "in use", used or 0)]
    if shortfall is not None:
        held.append(Segment("needed", "needed", shortfall["needed_bytes"]))
    else:
        held += [Segment(f"part-{part}", name, device["parts"][part]) for part, name in PART_NAMES.items()]
    wanted = sum(segment.bytes for segment in held)
    size = total or free or wanted
    held.append(Segment("free", "free", max(0, size - wanted)))
    scale = max(size, wanted) or 1
    budget_end = (used or 0) + device["budget_bytes"]
    return {
        **device,
        "label": _label(device),
        "planned": shortfall["needed_bytes"] if shortfall else device["planned_bytes"],
        "missing": shortfall["missing_bytes"] if shortfall else 0,
        "used": bool(device["planned_bytes"]),
        "output": bool(plan["n_gpu_layers"]) and device["uuid"] == last,
        "segments": layout(held, scale, min_width=2),
        "budget_x": min(WIDTH, round(budget_end / scale * WIDTH)),
        "end_x": min(WIDTH, round(size / scale * WIDTH)),
        "parts": [(name, count) for part, name in PART_NAMES.items() if (count := device["parts"][part])],
    }


def _label(device: Json) -> str:
    label = HOST if device["index"] is None else f"GPU {device['index']}"
    return f"{device['node']} {label}" if device.get("node") else label


def _strip(plan: Json) -> list[dict[str, Any]]:
    """Return runs of layers by device, from the first to the output layer, which counts as the last."""
    if not plan["fits"] or (plan["devices"] and not plan["tensor_split"]):
        return []  # It is refused, or the engine lays it out.
    count = plan["n_layers"] + 1
    on_devices = plan["n_gpu_layers"] or any(device["layers"] for device in plan["devices"])
    begin = count - plan["n_gpu_layers"] if plan["n_gpu_layers"] else (0 if on_devices else count)
    runs = [layer_run(HOST, None, 0, begin - 1, count)] if begin else []
    # Devices of other machines come last, and have no layers.
    for slot, (device, layers) in enumerate(zip(plan["devices"], plan["tensor_split"], strict=False)):
        layers = layers or (count if device["layers"] and not plan["n_gpu_layers"] else 0)
        if layers:
            runs.append(layer_run(_label(device), slot, begin, begin + layers - 1, count))
            begin += layers
    return [{**run, "output": run["last"] == count - 1} for run in runs]
