"""Models, devices and decisions in the form in which several pages show them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cotenant.console.live_updates import Part, Rows
from cotenant.console.memory_bar import segments
from cotenant.console.page_request import PageRequest
from cotenant.console.rendering import as_segment, in_coarse
from cotenant.domain.devices import Sensors
from cotenant.domain.units import MIB, format_count

Json = Mapping[str, Any]

RAM: Final = "RAM"
HOST: Final = "host RAM"
_SILENT: Final = ("suspect", "lost")
_BUSY: Final = frozenset({"loading", "suspended", "draining", "unloading", "reclaiming"})
_TONES: Final = {"ready": "good", **dict.fromkeys(_BUSY, "busy")}


async def _services_by_gpu(request: PageRequest) -> Mapping[int | None, tuple[int, Sequence[Json]]]:
    """Return, by GPU index, the bytes that services cannot use, and the services that were pinned there."""
    config = await request.api.find_cached("/api/system/gpu-config", 10.0)
    if not config:
        return {}
    known = {service["name"]: service for service in config["services"]}
    found: dict[int | None, tuple[int, list[Json]]] = {
        gpu["index"]: (gpu["vram_occupied_mb"] * MIB, []) for gpu in config["gpus"]
    }
    for assignment in (config["applied"] or {}).get("assignments", ()):
        service, on = known.get(assignment["service"]), indices_of(assignment)
        for index in on:
            if service and index in found:
                found[index][1].append({**service, "vram_mb": (service["vram_mb"] or 0) // len(on)})
    return found


def indices_of(assignment: Json) -> Sequence[int]:
    """Return the indices of the GPUs of an assignment, as far as they are present."""
    gpus = (assignment, *assignment["more_gpus"])
    return [gpu["gpu_index"] for gpu in gpus if gpu["gpu_index"] is not None]


def last_rates(history: Json) -> Mapping[str, float | None]:
    """Return each model's tokens per second in the last five seconds."""
    return {
        model["name"]: model["tokens_per_s"][-1] if model["tokens_per_s"] else None
        for model in history.get("models", ())
    }


def short_names(devices: Sequence[Json]) -> Mapping[str, str]:
    """Return the short names of devices by UUID: their index, `b:0` on a machine among others, or `RAM`."""

    def name(device: Json) -> str:
        own = RAM if device["index"] is None else str(device["index"])
        return f"{device['node']}:{own}" if device.get("node") else own

    return {device["uuid"]: name(device) for device in devices}


def model_facts(model: Json, rates: Mapping[str, float | None], names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a model's row shows, rounded, so that it changes only when the text does."""
    name, state, measured = model["name"], str(model["state"]), model.get("measured_bytes")
    failure = model.get("last_failure") or ""
    others, on = model.get("others") or (), model.get("devices", ())
    copies = [other for other in others if other["role"] == "copy"]
    moving = any(other["role"] == "successor" for other in others)
    movable = state == "ready" and not moving
    return {
        **{key: model[key] for key in ("name", "aliases", "kind")},
        **{key: model.get(key, 0) for key in ("queued", "copies")},
        "max_copies": model.get("max_copies", 1),
        "in_flight": model.get("in_flight", 0) + sum(copy["in_flight"] for copy in copies),
        "slots": model.get("slots", 0) * (1 + len(copies)),
        "state": state,
        "tone": _TONES.get(state, "bad" if failure else "quiet"),
        "pinned": bool(model.get("pinned")),
        "gpus": [names.get(uuid, uuid) for uuid in model.get("devices", ())],
        "predicted": model.get("predicted_bytes"),
        "measured": model.get("reported_bytes") if measured is None else measured,
        "by_engine": measured is None and model.get("reported_bytes") is not None,
        "requests_per_s": round(model.get("requests_per_s") or 0.0, 2),
        "tokens_per_s": rates.get(name),
        "idle": in_coarse(None if model.get("in_flight") else model.get("idle_s")),
        "stays": _stays(model, state),
        "loaded": bool(model.get("devices")),
        "busy": state in _BUSY,
        "load": _load(model.get("load")),
        "moving": moving,
        "targets": [gpu for uuid, gpu in names.items() if movable and gpu != RAM and uuid not in on],
        "others": [_other(other, names) for other in others],
        "failure": failure.removeprefix(f"{name} ").removeprefix(f"{name}: ") if state == "cold" else None,
    }


def _other(other: Json, names: Mapping[str, str]) -> str:
    gpus = ", ".join(names.get(uuid, uuid) for uuid in other["bytes_by_device"])
    if other["role"] == "successor":
        return f"It moves to GPU {gpus}, where it is {other['state']}."
    if other["role"] == "copy":
        count = format_count(other["in_flight"], "request")
        return f"Its copy {other['name']} on GPU {gpus} is {other['state']}, with {count}."
    return (
        f"Its engine on GPU {gpus} is {other['state']}, with {format_count(other['in_flight'], 'request')}."
    )


def _stays(model: Json, state: str) -> str:
    loaded, left_s = bool(model.get("devices")), model.get("keep_alive_left_s")
    if loaded and model.get("pinned"):
        return "pinned"
    if loaded and left_s is None and state not in _BUSY and not model.get("in_flight"):
        return "forever"
    return in_coarse(left_s)


async def device_rows(
    request: PageRequest,
    target: str,
    prefix: str,
    devices: Sequence[Json],
    models: Sequence[Json],
    colours: Mapping[str, int],
    *,
    plot: bool = False,
    fragmentation: Json | None = None,
    nodes: Sequence[Json] = (),
) -> Rows:
    """Return devices as cards: sensors and who uses their memory; `plot` adds the last ten minutes.

    Of several machines (`nodes`), each comes with a heading before its devices.
    """
    parts = fragmentation["by_device"] if fragmentation else {}
    services = await _services_by_gpu(request)
    shown = [
        "uuid",
        "index",
        "name",
        "total_bytes",
        "overcommitted",
        "compute_mode",
        "compute_capability",
        "mps",
        "left_out",
        "drain",
        "unified",
        "node",
    ]
    rows: list[Part] = []
    silent = {node["name"] for node in nodes if node["state"] in _SILENT}
    by_node: dict[str | None, list[Part]] = {None: rows, **{node["name"]: [_node(node)] for node in nodes}}
    for device in devices:
        free, total = device["free_bytes"], device["total_bytes"]
        facts = {
            **{key: device.get(key) for key in shown},
            "used_bytes": None if free is None or total is None else total - free,
            "sensors": [
                {"label": each.label, "unit": each.unit, "tip": each.tip, "value": round(device[name])}
                for name, each in Sensors.displays().items()
                if device.get(name) is not None
            ],
            "segments": segments(
                device,
                models,
                # Services are on the daemon's own machine.
                None if device.get("node") else services.get(device["index"]),
                colours,
                parts.get(device["uuid"], {}).get("stranded_bytes", 0),
            ),
            "plot": plot,
            "silent": device.get("node") in silent,
        }
        card = Part(f"{prefix}-{as_segment(device['uuid'])}", "device_card.html", {"card": facts})
        by_node.setdefault(device.get("node"), []).append(card)
    return Rows(target, [each for members in by_node.values() for each in members])


def _node(node: Json) -> Part:
    """Return the heading of a machine's devices; one that does not answer has its age there."""
    facts = {key: node[key] for key in ("name", "state", "cards", "engines", "warnings")}
    facts["silent"] = in_coarse(node["silent_s"]) if node["state"] in _SILENT else ""
    return Part(f"node-{as_segment(node['name'])}", "node_head.html", {"node": facts})


def moves_part(defragmentation: Json | None) -> Part:
    """Return the moves that would let a model fit, in a sentence; nothing if there are none."""
    found = defragmentation or {}
    return Part("moves", "moves.html", {key: found.get(key) for key in ("moves", "text", "model")})


def load_costs(model: Json) -> list[tuple[str, str, float | None]]:
    """Return where the files of a model are: machine, state, and seconds to load there, the soonest first."""
    found = (model.get("load_costs") or {}).items()
    rows = [(node, cost["state"], cost["seconds"]) for node, cost in found]
    return sorted(rows, key=lambda row: (row[2] is None, row[2] or 0.0, row[0]))


def decision_part(decision: Json, prefix: str = "decision") -> Part:
    """Return a decision as a row of a list."""
    return Part(f"{prefix}-{decision['number']}", "decision.html", {"decision": decision})


def _load(load: Json | None) -> dict[str, Any] | None:
    if load is None:
        return None
    read, total, expected_s = load["read_bytes"], load["total_bytes"], load["expected_s"]
    fetch = load.get("fetching")
    if fetch is not None:
        read, total = fetch["received_bytes"], fetch["total_bytes"]
    return {
        "fetched_by": fetch and fetch["node"],
        "percent": min(99, int(read * 100 / total)) if read is not None and total else None,
        "read": read,
        "total": total,
        "running_s": int(load["running_s"]),
        "expected_s": None if expected_s is None else round(expected_s, 1),
    }
