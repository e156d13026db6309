"""The page of a model: status, placement, decisions, log and chat."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.memory_bar import PART_NAMES, Segment, layer_run, layout
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import (
    HOST,
    RAM,
    Json,
    decision_part,
    last_rates,
    load_costs,
    model_facts,
    moves_part,
    short_names,
)


async def show(request: PageRequest) -> View:
    """Show a model. Raises ApiFault, also if it is not served."""
    path = f"/api/models/{quote(request.name, safe='')}"
    model = await request.api.get(path)
    devices = (await request.api.find("/api/devices", {"devices": []}))["devices"]
    history = await request.api.find("/api/history", {})
    why = await request.api.find(f"{path}/why", {"decisions": []})
    facts = model_facts(model, last_rates(history), short_names(devices))
    return View(
        "model.html",
        {"model": facts, "rules": _rules(model)}
        | {key: model.get(key) for key in ("recipe", "file", "vision", "companions")},
        {
            "head": Part("model-head", "model_head.html", {"model": facts}),
            "engine": Part(
                "model-engine",
                "model_engine.html",
                {
                    key: model.get(key)
                    for key in ("engine", "loads", "load_s", "requests", "warm_bytes", "log_node")
                }
                | {
                    "log": bool(model.get("log_path") or model.get("log_node")),
                    "load_costs": load_costs(model),
                },
            ),
            "placement": Part("model-placement", "model_placement.html", _placement(model, facts["gpus"])),
            "moves": moves_part(why.get("defragmentation")),
            "why": Rows("why", [decision_part(each, "why") for each in reversed(why["decisions"])]),
        },
    )


def _rules(model: Json) -> list[tuple[str, list[str]]]:
    """Return what the rules of a model and its variants do, by name."""
    named = {model["name"]: model.get("rules") or {}, **(model.get("variants") or {})}
    return [
        (
            name,
            [
                *(f"without {field}" for field in rules["strip"]),
                *(f"{field} = {json.dumps(value)}" for field, value in rules["set"].items()),
                *(f"{field} ≤ {most:g}" for field, most in rules["limit"].items()),
            ],
        )
        for name, rules in named.items()
        if any(rules.values())
    ]


def _placement(model: Json, gpus: Sequence[str]) -> dict[str, Any]:
    """Return the layer map and the planned and reported footprint.

    `stood_in`: the plan is for described GPUs, but the engine runs on the CPU.
    """
    placement = model.get("placement")
    if placement is None:
        return {"placement": None, "model": {"name": model["name"], "state": model["state"]}}
    rows = [*placement["devices"], {"index": None, "name": HOST, "layers": None, **placement["host"]}]
    rows = [row for row in rows if row["planned"]["total"] or (row["reported"] or {}).get("total")]
    most = max((row["planned"]["total"] for row in rows), default=0)
    for row in rows:
        parts = [
            Segment(f"part-{part}", text, row["planned"][part] or 0) for part, text in PART_NAMES.items()
        ]
        row["segments"] = layout(parts, most)
        row["label"] = row["name"] if row["index"] is None else f"GPU {row['index']}"
    return {
        "placement": placement,
        "model": {"name": model["name"], "state": model["state"]},
        "rows": rows,
        "strip": _strip(placement),
        "part_names": PART_NAMES,
        "stood_in": not placement["devices"] and any(name != RAM for name in gpus),
    }


def _strip(placement: Json) -> list[dict[str, Any]]:
    """Return the runs of layers by device; the output layer is the last one."""
    count = placement["n_layers"] + 1
    on_cards = [(row["index"], *row["layers"]) for row in placement["devices"] if row["layers"] is not None]
    first = min((first for _, first, _ in on_cards), default=count)
    host = [layer_run(HOST, None, 0, first - 1, count)] if first else []
    return host + [
        layer_run(f"GPU {index}", slot, first, last, count)
        for slot, (index, first, last) in enumerate(on_cards)
    ]
