"""The page that pins containers to GPUs: shows, changes, applies and rolls back."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from cotenant.console.api import ApiFault
from cotenant.console.gpu_draft import MANUAL, Draft, number_of, read_draft, saved_draft
from cotenant.console.gpu_view import apply_facts, containers, gpu_names, is_dirty, loads, place, rows
from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import Json, device_rows
from cotenant.domain.units import format_count

PATH: Final = "/api/system/gpu-config"
_CACHE_S: Final = 2.0
_SCORED_S: Final = 30.0
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
    facts = {**await _saved(request, config), **await _recommended(request, config)}
    return View("gpu_configuration.html", facts, parts)


async def change(request: PageRequest) -> View:
    """Show the effect of a changed form. Raises ApiFault."""
    config = await request.api.get(PATH)
    facts = await _tried(request, config, read_draft(request.form, config["services"]))
    return View(_FORM, {**facts, **await _recommended(request, config)})


async def order(request: PageRequest) -> View:
    """Execute the order of `ORDERS` that the path ends in; show the resulting form, with its error.

    Raises ApiFault for errors that the form cannot show.
    """
    action = request.path.rpartition("/")[2]
    config = await request.api.get(PATH)
    draft = read_draft(request.form, config["services"])
    fault: ApiFault | None = None
    note = ""
    try:
        if draft.faults:
            service, text = next(iter(draft.faults.items()))
            raise ApiFault(422, "bad_assignment", f"{service}: {text}")
        note = await ORDERS[action](request, config, draft)
    except ApiFault as error:
        fault = error
    request.api.forget(PATH)
    config = await request.api.get(PATH)
    facts = await (_saved(request, config) if note else _tried(request, config, draft))
    facts |= {"fault": fault or facts["fault"], "note": note, "action": action}
    return View(_FORM, {**facts, **await _recommended(request, config)})


async def _save(request: PageRequest, config: Json, draft: Draft) -> str:
    _check_base(request, config, draft)
    force = request.form.get("force") == "1"
    (await request.api.send("PUT", PATH, {**draft.payload(), "force": force})).json()
    number = (await request.api.get(PATH))["saved"]["number"]
    return f"Saved as configuration {number}. No container was touched."


async def _apply(request: PageRequest, config: Json, draft: Draft) -> str:
    _check_base(request, config, draft)
    saved = ""
    if is_dirty(config, await request.api.post(f"{PATH}/preview", draft.payload())):
        saved = await _save(request, config, draft)
    try:
        begun = await request.api.post(f"{PATH}/apply", {"force": request.form.get("force") == "1"})
    except ApiFault as fault:
        if not saved:
            raise
        # The configuration is saved: say so if only applying it failed.
        first = saved.partition(".")[0]
        raise ApiFault(fault.status, fault.code, f"{first}, but not applied: {fault.message}") from None
    count = len(begun["services"])
    if not count:
        return f"Configuration {begun['number']} is running already: nothing to recreate."
    return f"Applying configuration {begun['number']}: {format_count(count, 'service')} to recreate."


async def _rollback(request: PageRequest, config: Json, draft: Draft) -> str:
    asked = request.form.get("number", "")
    number = number_of(asked)
    if asked and number is None:
        raise ApiFault(422, "bad_assignment", f"{asked[:20]!r} is not a configuration number.")
    begun = await request.api.post(f"{PATH}/rollback", {"number": number})
    back = f" to configuration {number}" if asked else ""
    return f"Rolling back{back}, as configuration {begun['number']}."


async def _detect(request: PageRequest, config: Json, draft: Draft) -> str:
    found = await request.api.post(f"{PATH}/detect")
    present = sum(gpu["present"] for gpu in found["gpus"])
    gone = len(found["gpus"]) - present
    text = f"{format_count(present, 'GPU')} found" if present else "No GPU found"
    return f"{text}; {gone} seen earlier {'are' if gone != 1 else 'is'} gone." if gone else f"{text}."


ORDERS: Final[Mapping[str, Callable[[PageRequest, Json, Draft], Awaitable[str]]]] = {
    "save": _save,
    "apply": _apply,
    "rollback": _rollback,
    "detect": _detect,
}
"""Each returns what it did. Save; save if the form has changed, and start to apply; start to roll back to an
earlier configuration; detect GPUs again. They raise ApiFault."""


def _check_base(request: PageRequest, config: Json, draft: Draft) -> None:
    """Raise ApiFault if another configuration was saved meanwhile, unless overwriting it is confirmed."""
    now = config["saved"]["number"] if config["saved"] else 0
    if now != draft.base and request.form.get("anyway") != "1":
        raise ApiFault(
            409, "changed_elsewhere", f"Configuration {now} was saved elsewhere since this page was loaded."
        )


async def _saved(request: PageRequest, config: Json) -> dict[str, Any]:
    """Return what the form shows for the saved configuration; if none is saved, for the strategy's plan."""
    tried: Json | None = None
    if config["strategy"] != MANUAL:
        tried = await request.api.find_cached(f"{PATH}/preview?strategy={config['strategy']}", _CACHE_S)
    draft = saved_draft(config, tried["assignments"] if tried else ())
    return _form(config, draft, config if config["saved"] or tried is None else tried)


async def _recommended(request: PageRequest, config: Json) -> dict[str, Any]:
    """Return the strategies with their scores, and their titles."""
    found = await request.api.find_cached(f"{PATH}/recommend", _SCORED_S)
    return {"recommendation": found, "titles": {each["name"]: each["title"] for each in config["strategies"]}}


async def _tried(request: PageRequest, config: Json, draft: Draft) -> dict[str, Any]:
    """Return what the form shows for a draft, with an error if it is impossible."""
    try:
        return _form(config, draft, await request.api.post(f"{PATH}/preview", draft.payload()))
    except ApiFault as fault:
        return {**_form(config, draft, config), "dirty": True, "fault": fault}


def _form(config: Json, draft: Draft, planned: Json) -> dict[str, Any]:
    """Return what the form shows: the draft and its effect, as planned or as the configuration says."""
    found, names = rows(config, planned, draft), gpu_names(config)
    return {
        "config": config,
        "draft": draft,
        "rows": found,
        "loads": loads(config, found),
        # A row shows the warnings of its service.
        "warnings": [
            each["text"]
            for each in planned["warning_details"]
            if each["service"] not in {row["name"] for row in found}
        ],
        "diff": [
            {**change, "before": place(change["before"], names), "after": place(change["after"], names)}
            for change in planned["changes" if planned is config else "diff"]
        ],
        "dirty": is_dirty(config, planned),
        "fault": None,
        "note": "",
    }


async def _live(request: PageRequest, config: Json, devices: list[Json]) -> dict[str, Part | Rows]:
    models = (await request.api.get("/api/models"))["models"]
    colours = request.palette.of([model["name"] for model in models if model.get("devices")])
    status = await request.api.find_cached(f"{PATH}/status", 4.0, {"apply": None, "containers": []})
    if status["apply"] and status["apply"]["running"]:
        # The next request must see the next step.
        request.api.forget(PATH)
    entries = (await request.api.find_cached(f"{PATH}/history", _CACHE_S, {"history": []}))["history"]
    names = gpu_names(config)
    saved = config["saved"]["number"] if config["saved"] else 0
    good = [each["number"] for each in entries if each["apply"] and each["apply"]["state"] == "succeeded"]
    cards = [each for each in devices if each["index"] is not None]
    cards.sort(key=lambda each: int(each["index"]))
    edited = config["edited_files"]
    problems = [
        problem
        for problem in config["problems"]
        if "No GPUs detected" not in problem and not any(path in problem for path in edited)
    ]
    return {
        "cards": await device_rows(request, "gpu-cards", "gpu", cards, models, colours),
        "saved": Part("gpu-saved", "gpu_configuration_saved.html", {"number": saved}),
        "problems": Part(
            "gpu-problems", "gpu_configuration_problems.html", {"problems": problems, "edited": edited}
        ),
        "status": Part(
            "gpu-status",
            "gpu_configuration_status.html",
            {
                "apply": apply_facts(status["apply"], names),
                "containers": containers(config, status["containers"], names),
                "good": good[0] if good else None,
            },
        ),
        "history": Part(
            "gpu-history",
            "gpu_configuration_history.html",
            {
                "entries": [
                    {
                        **entry,
                        "apply": apply_facts(entry["apply"], names),
                        "current": entry["number"] == saved,
                        "places": [(each["service"], place(each, names)) for each in entry["assignments"]],
                    }
                    for entry in entries
                ],
                "titles": {each["name"]: each["title"] for each in config["strategies"]},
            },
        ),
    }
