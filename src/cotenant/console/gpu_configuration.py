"""Which container is pinned to which GPU: looked at, changed, applied, taken back."""

from __future__ import annotations

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
from cotenant.console.page_request import Visit
from cotenant.console.view_data import Json, device_part, services_by_gpu

PATH: Final = "/api/system/gpu-config"
PIECE: Final = "/ui/fragments/gpu-configuration"
_KEPT_S: Final = 2.0
_STATUS_KEPT_S: Final = 4.0
_EDITED: Final = "generated_file_edited"
_FORM: Final = "gpu_configuration_form.html"


async def show(visit: Visit) -> View:
    """Show the page; without a `services:` section, how to write one. Raises ApiFault."""
    devices = (await visit.api.get("/api/devices"))["devices"]
    try:
        told = await visit.api.find_lately(PATH, _KEPT_S) or await visit.api.get(PATH)
    except ApiFault as fault:
        if fault.needs_login or fault.status != 404:
            raise
        return View("gpu_configuration_none.html", {"fault": fault})
    parts = await _live(visit, told, devices)
    draft, planned = await _as_saved(visit, told)
    return View("gpu_configuration.html", _form(told, draft, planned), parts)


async def change(visit: Visit) -> View:
    """Show what a changed form would do. Raises ApiFault."""
    told = await visit.api.get(PATH)
    return View(_FORM, await _tried(visit, told, read_draft(visit.form, told["services"])))


async def save(visit: Visit) -> View:
    """Save the form. Raises ApiFault for what is not told in place."""
    return await _order(visit, _save)


async def apply(visit: Visit) -> View:
    """Save the form if it differs from what is saved, and begin to apply. Raises ApiFault."""
    return await _order(visit, _apply)


async def rollback(visit: Visit) -> View:
    """Begin to go back to an earlier configuration. Raises ApiFault."""
    return await _order(visit, _rollback)


async def detect(visit: Visit) -> View:
    """Look for GPUs again. Raises ApiFault."""
    return await _order(visit, _detect)


async def _order(visit: Visit, order: Callable[[Visit, Json, Draft], Awaitable[str]]) -> View:
    """Carry an order out and show the form as it is then: what went wrong stands in it."""
    told = await visit.api.get(PATH)
    draft = read_draft(visit.form, told["services"])
    fault: ApiFault | None = None
    note = ""
    try:
        _check(draft)
        note = await order(visit, told, draft)
    except ApiFault as error:
        if error.needs_login:
            raise
        fault = error
    visit.api.forget(PATH)
    told = await visit.api.get(PATH)
    if note:
        draft, planned = await _as_saved(visit, told)
        facts = _form(told, draft, planned)
    else:
        facts = await _tried(visit, told, draft)
    fault = fault or facts["fault"]
    action = visit.path.rpartition("/")[2]
    edited = fault is not None and fault.code == _EDITED
    return View(_FORM, {**facts, "fault": fault, "note": note, "overwrite": action if edited else None})


async def _save(visit: Visit, told: Json, draft: Draft) -> str:
    _check_base(visit, told, draft)
    force = visit.form.get("force") == "1"
    reply = await visit.api.ask("PUT", PATH, {**draft.payload(), "force": force})
    reply.json()
    number = (await visit.api.get(PATH))["saved"]["number"]
    return f"Saved as configuration {number}. No container was touched."


async def _apply(visit: Visit, told: Json, draft: Draft) -> str:
    _check_base(visit, told, draft)
    saved = ""
    if is_dirty(told, await _planned(visit, draft)):
        saved = await _save(visit, told, draft)
    try:
        reply = await visit.api.ask("POST", f"{PATH}/apply", {"force": visit.form.get("force") == "1"})
        begun = reply.json()
    except ApiFault as fault:
        if not saved or fault.needs_login:
            raise
        # What was saved stays so, which is worth knowing where only the rest failed.
        first = saved.partition(".")[0]
        raise ApiFault(fault.status, fault.code, f"{first}, but not applied: {fault.message}") from None
    count = len(begun["services"])
    if not count:
        return f"Configuration {begun['number']} is what runs already: nothing to recreate."
    return (
        f"Applying configuration {begun['number']}: {count} service{'s' if count != 1 else ''} to recreate."
    )


async def _rollback(visit: Visit, told: Json, draft: Draft) -> str:
    asked = visit.form.get("number", "")
    number = number_of(asked)
    if asked and number is None:
        raise ApiFault(422, "bad_assignment", f"{asked[:20]!r} is no number of a configuration.")
    payload = {} if number is None else {"number": number}
    begun = (await visit.api.ask("POST", f"{PATH}/rollback", payload)).json()
    back = f" to configuration {number}" if asked else ""
    return f"Going back{back}, as configuration {begun['number']}."


async def _detect(visit: Visit, told: Json, draft: Draft) -> str:
    found = (await visit.api.ask("POST", f"{PATH}/detect")).json()
    present = sum(gpu["present"] for gpu in found["gpus"])
    gone = len(found["gpus"]) - present
    text = f"{present} GPU{'s' if present != 1 else ''} found" if present else "No GPU found"
    return f"{text}; {gone} seen earlier {'are' if gone != 1 else 'is'} gone." if gone else f"{text}."


def _check(draft: Draft) -> None:
    if draft.faults:
        service, text = next(iter(draft.faults.items()))
        raise ApiFault(422, "bad_assignment", f"{service}: {text}")


def _check_base(visit: Visit, told: Json, draft: Draft) -> None:
    """Refuse to overwrite what somebody else has saved meanwhile, unless that is asked for."""
    now = told["saved"]["number"] if told["saved"] else 0
    if now != draft.base and visit.form.get("anyway") != "1":
        raise ApiFault(
            409, "changed_elsewhere", f"Configuration {now} was saved elsewhere since this page was loaded."
        )


async def _as_saved(visit: Visit, told: Json) -> tuple[Draft, Json]:
    """Return what is saved as a draft, and what it is; before the first, what the strategy would do."""
    tried: Json | None = None
    if told["strategy"] != MANUAL:
        tried = await visit.api.find_lately(f"{PATH}/preview?strategy={told['strategy']}", _KEPT_S)
    planned = _as_told(told) if told["saved"] or tried is None else tried
    return saved_draft(told, tried["assignments"] if tried else ()), planned


def _as_told(told: Json) -> Json:
    return {key: told[key] for key in ("strategy", "assignments", "warnings", "warning_details")} | {
        "diff": told["changes"]
    }


async def _planned(visit: Visit, draft: Draft) -> Json:
    planned: Json = (await visit.api.ask("POST", f"{PATH}/preview", draft.payload())).json()
    return planned


async def _tried(visit: Visit, told: Json, draft: Draft) -> dict[str, Any]:
    """Return what the form shows of a draft that may be impossible, which it says then. Raises ApiFault."""
    try:
        return _form(told, draft, await _planned(visit, draft))
    except ApiFault as fault:
        if fault.needs_login:
            raise
        return {**_form(told, draft, _as_told(told)), "dirty": True, "fault": fault}


def _form(told: Json, draft: Draft, planned: Json) -> dict[str, Any]:
    """Return what the form shows: the draft, and what would come of it."""
    found = rows(told, planned, draft)
    return {
        "told": told,
        "draft": draft,
        "rows": [{**row, "by_strategy": by_strategy_label(row, draft)} for row in found],
        "options": [(str(gpu["index"]), option_label(gpu)) for gpu in told["gpus"]],
        "loads": loads(told, found),
        "warnings": planned["warnings"],
        "diff": differences(told, planned["diff"]),
        "dirty": is_dirty(told, planned),
        "fault": None,
        "note": "",
        "overwrite": None,
        "piece": PIECE,
    }


async def _live(visit: Visit, told: Json, devices: list[Json]) -> dict[str, Part | Rows]:
    models = (await visit.api.get("/api/models"))["models"]
    services = await services_by_gpu(visit)
    colours = visit.palette.of([model["name"] for model in models if model.get("devices")])
    status = await visit.api.find_lately(f"{PATH}/status", _STATUS_KEPT_S, {"apply": None, "containers": []})
    if status["apply"] and status["apply"]["running"]:
        # The next look is to see the next step.
        visit.api.forget(PATH)
    entries = (await visit.api.find_lately(f"{PATH}/history", _KEPT_S, {"history": []}))["history"]
    names = gpu_names(told)
    saved = told["saved"]["number"] if told["saved"] else 0
    good = [entry for entry in entries if entry["apply"] and entry["apply"]["state"] == "succeeded"]
    indexed = [device for device in devices if device["index"] is not None]
    cards = sorted(indexed, key=lambda device: int(device["index"]))
    return {
        "cards": Rows("gpu-cards", [device_part("gpu", each, models, services, colours) for each in cards]),
        "saved": Part("gpu-saved", "gpu_configuration_saved.html", {"number": saved}),
        "problems": Part("gpu-problems", "gpu_configuration_problems.html", _problems(told)),
        "status": Part(
            "gpu-status",
            "gpu_configuration_status.html",
            {
                "apply": apply_facts(status["apply"], names),
                "containers": containers(told, status["containers"], names),
                "applied": told["applied"]["number"] if told["applied"] else None,
                "good": good[0]["number"] if good else None,
                "piece": PIECE,
            },
        ),
        "history": Part(
            "gpu-history",
            "gpu_configuration_history.html",
            {"entries": history(entries, names, saved), "piece": PIECE, "titles": _titles(told)},
        ),
    }


def _problems(told: Json) -> dict[str, Any]:
    edited = list(told["edited_files"])
    others = [
        problem
        for problem in told["problems"]
        if "No GPUs detected" not in problem and not any(path in problem for path in edited)
    ]
    return {"problems": others, "edited": edited, "no_gpus": not told["gpus"]}


def _titles(told: Json) -> dict[str, str]:
    return {each["name"]: each["title"] for each in told["strategies"]}
