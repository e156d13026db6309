"""The overview page: devices, models and decisions."""

from collections.abc import Sequence
from typing import Any

from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.rendering import as_segment
from cotenant.console.view_data import (
    Json,
    decision_part,
    device_rows,
    last_rates,
    model_facts,
    moves_part,
    short_names,
)


async def show(request: PageRequest) -> View:
    """Show the overview. Raises ApiFault."""
    response = await request.api.get("/api/models")
    models, leases = response["models"], response["leases"]
    memory = await request.api.find("/api/devices", {"devices": []})
    devices, fragmentation = memory["devices"], memory.get("fragmentation")
    # The API lists devices in planning order, which changes as they fill.
    devices = sorted(
        devices, key=lambda each: (each.get("node") or "", each["index"] is None, each["index"] or 0)
    )
    nodes = (await request.api.find("/api/nodes", {"nodes": []}))["nodes"]
    gain = await request.api.find_cached("/api/defragmentation", 2.0)
    history = await request.api.find("/api/history", {})
    decisions = (await request.api.find("/api/decisions?limit=60", {"decisions": []}))["decisions"]
    alerts = (await request.api.find("/api/alerts", {"active": []}))["active"]
    tenants = [*models, *leases]
    colours = request.palette.of([each["name"] for each in tenants if each.get("devices")])
    names, rates = short_names(devices), last_rates(history)
    rows = [
        Part(
            f"m-{as_segment(model['name'])}",
            "overview_model.html",
            {"model": model_facts(model, rates, names), "colour": colours.get(model["name"])},
        )
        for model in models
    ]
    return View(
        "overview.html",
        {"n_devices": len(devices)},
        {
            "summary": Part(
                "summary",
                "overview_summary.html",
                {**_summary(models, devices), "warm": response.get("warm"), "leases": leases},
            ),
            "moves": moves_part(gain),
            "alerts": Rows(
                "alerts",
                [
                    Part(
                        "alert-" + as_segment(f"{each['alert']}-{each['subject']}"),
                        "alert.html",
                        {"alert": each},
                    )
                    for each in alerts
                ],
            ),
            "cards": await device_rows(
                request,
                "cards",
                "card",
                devices,
                tenants,
                colours,
                plot=True,
                fragmentation=fragmentation,
                nodes=nodes,
            ),
            "models": Rows("models", rows),
            "decisions": Rows("decisions", [decision_part(each) for each in reversed(decisions)]),
        },
    )


def _summary(models: Sequence[Json], devices: Sequence[Json]) -> dict[str, Any]:
    cards = [device for device in devices if device["index"] is not None] or list(devices)
    return {
        "loaded": sum(1 for model in models if model.get("devices")),
        "models": len(models),
        "on_cards": any(device["index"] is not None for device in devices),
        "total": sum(device["total_bytes"] or 0 for device in cards),
        "free": sum(device["free_bytes"] or 0 for device in cards),
        "requests_per_s": round(sum(model.get("requests_per_s") or 0.0 for model in models), 2),
        "in_flight": sum(model.get("in_flight", 0) for model in models),
        "queued": sum(model.get("queued", 0) for model in models),
    }
