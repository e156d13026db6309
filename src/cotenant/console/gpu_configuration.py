"""The page that pins containers to GPUs: shows, changes, applies and rolls back."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from cotenant.console.api import ApiFault
from cotenant.console.gpu_draft import MANUAL, Draft, number_of, read_draft, saved_draft
from cotenant.console.gpu_view import (
    apply_facts,
    by_strategy_label,
    containers,
    differences,
    gpu_names,
    history,
    is_dirty,
    loads,
    option_label,
    rows,
)
from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import Json, device_part, services_by_gpu

PATH: Final = "/api/system/gpu-config"
PIECE: Final = "/ui/fragments/gpu-configuration"
_CACHE_S: Final = 2.0
_STATUS_CACHE_S: Final = 4.0
_EDITED: Final = "generated_file_edited"
_FORM: Final = "gpu_configuration_form.html"


async def show(request: PageRequest) -> View:
    """Show the page; without a `services:` section, how to write one. Raises ApiFault."""
    devices = (await request.api.get("/api/devices"))["devices"]
    try:
        config = await request.api.find_cached(PATH, _CACHE_S) or await request.api.get(PATH)
    except ApiFault as fault:
        if fault.status != 404:
            raise
        return View("gpu_configuration_none.html", {"fault": fault})
    parts = await _live(request, config, devices)
    draft, planned = await _saved(request, config)
    return View("gpu_configuration.html", _form(config, draft, planned), parts)


async def change(request: PageRequest) -> View:
    """Show the effect of a changed form. Raises ApiFault."""
    config = await request.api.get(PATH)
    return View(_FORM, await _tried(request, config, read_draft(request.form, config["services"])))


async def save(request: PageRequest) -> View:
    """Save the form. Raises ApiFault for errors that the form cannot show."""
    return await _order(request, _save)


async def apply(request: PageRequest) -> View:
    """Save the form if it has changed, and start to apply it. Raises ApiFault."""
    return await _order(request, _apply)


async def rollback(request: PageRequest) -> View:
    """Start to roll back to an earlier configuration. Raises ApiFault."""
    return await _order(request, _rollback)


async def detect(request: PageRequest) -> View:
    """Detect GPUs again. Raises ApiFault."""
    return await _order(request, _detect)


async def _order(request: PageRequest, order: Callable[[PageRequest, Json, Draft], Awaitable[str]]) -> View:
    """Execute an order and show the resulting form, with its error if it failed."""
    config = await request.api.get(PATH)
    draft = read_draft(request.form, config["services"])
    fault: ApiFault | None = None
    note = ""
    try:
        if draft.faults:
            service, text = next(iter(draft.faults.items()))
            raise ApiFault(422, "bad_assignment", f"{service}: {text}")
        note = await order(request, config, draft)
    except ApiFault as error:
        fault = error
    request.api.forget(PATH)
    config = await request.api.get(PATH)
    if note:
        draft, planned = await _saved(request, config)
        facts = _form(config, draft, planned)
    else:
        facts = await _tried(request, config, draft)
    fault = fault or facts["fault"]
    action = request.path.rpartition("/")[2]
    edited = fault is not None and fault.code == _EDITED
    return View(_FORM, {**facts, "fault": fault, "note": note, "overwrite": action if edited else None})


async def _save(request: PageRequest, config: Json, draft: Draft) -> str:
    _check_base(request, config, draft)
    force = request.form.get("force") == "1"
    reply = await request.api.send("PUT", PATH, {**draft.payload(), "force": force})
    reply.json()
    number = (await request.api.get(PATH))["saved"]["number"]
    return f"Saved as configuration {number}. No container was touched."


async def _apply(request: PageRequest, config: Json, draft: Draft) -> str:
    _check_base(request, config, draft)
    saved = ""
    if is_dirty(config, await _planned(request, draft)):
        saved = await _save(request, config, draft)
    try:
        reply = await request.api.send("POST", f"{PATH}/apply", {"force": request.form.get("force") == "1"})
        begun = reply.json()
    except ApiFault as fault:
        if not saved:
            raise
        # The configuration is saved: say so if only applying it failed.
        first = saved.partition(".")[0]
        raise ApiFault(fault.status, fault.code, f"{first}, but not applied: {fault.message}") from None
    count = len(begun["services"])
    if not count:
        return f"Configuration {begun['number']} is running already: nothing to recreate."
    return (
        f"Applying configuration {begun['number']}: {count} service{'s' if count != 1 else ''} to recreate."
    )


async def _rollback(request: PageRequest, config: Json, draft: Draft) -> str:
    asked = request.form.get("number", "")
    number = number_of(asked)
    if asked and number is None:
        raise ApiFault(422, "bad_assignment", f"{asked[:20]!r} is not a configuration number.")
    payload = {} if number is None else {"number": number}
    begun = (await request.api.send("POST", f"{PATH}/rollback", payload)).json()
    back = f" to configuration {number}" if asked else ""
    return f"Rolling back{back}, as configuration {begun['number']}."


async def _detect(request: PageRequest, config: Json, draft: Draft) -> str:
    found = (await request.api.send("POST", f"{PATH}/detect")).json()
    present = sum(gpu["present"] for gpu in found["gpus"])
    gone = len(found["gpus"]) - present
    text = f"{present} GPU{'s' if present != 1 else ''} found" if present else "No GPU found"
    return f"{text}; {gone} seen earlier {'are' if gone != 1 else 'is'} gone." if gone else f"{text}."


def _check_base(request: PageRequest, config: Json, draft: Draft) -> None:
    """Raise ApiFault if another configuration was saved meanwhile, unless overwriting it is confirmed."""
    now = config["saved"]["number"] if config["saved"] else 0
    if now != draft.base and request.form.get("anyway") != "1":
        raise ApiFault(
            409, "changed_elsewhere", f"Configuration {now} was saved elsewhere since this page was loaded."
        )


async def _saved(request: PageRequest, config: Json) -> tuple[Draft, Json]:
    """Return the saved configuration as a draft, and its plan; if none is saved, the strategy's plan."""
    tried: Json | None = None
    if config["strategy"] != MANUAL:
        tried = await request.api.find_cached(f"{PATH}/preview?strategy={config['strategy']}", _CACHE_S)
    planned = _saved_plan(config) if config["saved"] or tried is None else tried
    return saved_draft(config, tried["assignments"] if tried else ()), planned


def _saved_plan(config: Json) -> Json:
    return {key: config[key] for key in ("strategy", "assignments", "warnings", "warning_details")} | {
        "diff": config["changes"]
    }


async def _planned(request: PageRequest, draft: Draft) -> Json:
    planned: Json = (await request.api.send("POST", f"{PATH}/preview", draft.payload())).json()
    return planned


async def _tried(request: PageRequest, config: Json, draft: Draft) -> dict[str, Any]:
    """Return what the form shows for a draft, with an error if it is impossible. Raises ApiFault."""
    try:
        return _form(config, draft, await _planned(request, draft))
    except ApiFault as fault:
        return {**_form(config, draft, _saved_plan(config)), "dirty": True, "fault": fault}


def _form(config: Json, draft: Draft, planned: Json) -> dict[str, Any]:
    """Return what the form shows: the draft and its effect."""
    found = rows(config, planned, draft)
    return {
        "config": config,
        "draft": draft,
        "rows": [{**row, "by_strategy": by_strategy_label(row, draft)} for row in found],
        "options": [(str(gpu["index"]), option_label(gpu)) for gpu in config["gpus"]],
        "loads": loads(config, found),
        "warnings": planned["warnings"],
        "diff": differences(config, planned["diff"]),
        "dirty": is_dirty(config, planned),
        "fault": None,
        "note": "",
        "overwrite": None,
        "piece": PIECE,
    }


async def _live(request: PageRequest, config: Json, devices: list[Json]) -> dict[str, Part | Rows]:
    models = (await request.api.get("/api/models"))["models"]
    services = await services_by_gpu(request)
    colours = request.palette.of([model["name"] for model in models if model.get("devices")])
    status = await request.api.find_cached(
        f"{PATH}/status", _STATUS_CACHE_S, {"apply": None, "containers": []}
    )
    if status["apply"] and status["apply"]["running"]:
        # The next request must see the next step.
        request.api.forget(PATH)
    entries = (await request.api.find_cached(f"{PATH}/history", _CACHE_S, {"history": []}))["history"]
    names = gpu_names(config)
    saved = config["saved"]["number"] if config["saved"] else 0
    good = [entry for entry in entries if entry["apply"] and entry["apply"]["state"] == "succeeded"]
    indexed = [device for device in devices if device["index"] is not None]
    cards = sorted(indexed, key=lambda device: int(device["index"]))
    return {
        "cards": Rows("gpu-cards", [device_part("gpu", each, models, services, colours) for each in cards]),
        "saved": Part("gpu-saved", "gpu_configuration_saved.html", {"number": saved}),
        "problems": Part("gpu-problems", "gpu_configuration_problems.html", _problems(config)),
        "status": Part(
            "gpu-status",
            "gpu_configuration_status.html",
            {
                "apply": apply_facts(status["apply"], names),
                "containers": containers(config, status["containers"], names),
                "applied": config["applied"]["number"] if config["applied"] else None,
                "good": good[0]["number"] if good else None,
                "piece": PIECE,
            },
        ),
        "history": Part(
            "gpu-history",
            "gpu_configuration_history.html",
            {
                "entries": history(entries, names, saved),
                "piece": PIECE,
                "titles": {each["name"]: each["title"] for each in config["strategies"]},
            },
        ),
    }


def _problems(config: Json) -> dict[str, Any]:
    edited = list(config["edited_files"])
    others = [
        problem
        for problem in config["problems"]
        if "No GPUs detected" not in problem and not any(path in problem for path in edited)
    ]
    return {"problems": others, "edited": edited, "no_gpus": not config["gpus"]}
