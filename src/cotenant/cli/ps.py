"""`cotenant ps`: the models of a running daemon, and what uses the memory of its devices."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.table import Column, print_result, table_lines
from cotenant.domain.units import format_bytes, format_count, format_duration

Model = Mapping[str, Any]
"""A model as the daemon's API describes it."""

_BAR: Final = 40
_LEGEND: Final = "█ ours  × others'  · free  / free, but no model could use it"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--json", action="store_true", help="print JSON: bytes as integers, null for unknown")
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print models and devices. Raises DaemonSilent."""
    daemon = Daemon(args)
    shown = {**daemon.get("/api/models"), **daemon.get("/api/devices")}
    tenants = [*shown["models"], *shown["leases"]]
    text = lines(tenants, shown["devices"], shown["warm"], shown["fragmentation"], shown.get("saved_slots"))
    return print_result(args, shown, text)


def lines(
    models: Sequence[Model],
    devices: Sequence[Mapping[str, Any]],
    warm: Mapping[str, Any] | None = None,
    fragmentation: Mapping[str, Any] | None = None,
    saved_slots: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Render models and leases as columns, what is kept in RAM, and a bar for each device."""
    names = {device["uuid"]: device_index(device) for device in devices}
    nodes = {device["uuid"]: device.get("node") for device in devices}
    yield from table_lines(_columns(names, nodes), [engine for model in models for engine in _engines(model)])
    if not models:
        yield "no models"
    for model in models:
        if (link := model.get("link_bytes")) is not None:
            costs = f"each token takes {format_bytes(link)} over the network, which is slow"
            yield f"{model['name']} is over {node_of(model, nodes)}: {costs}"
        if model.get("load"):
            yield f"{model['name']} is loading: {_progress(model['load'])}"
        loading = (model.get("load") or {}).get("fetching")
        for fetch in model.get("fetches") or ():
            if fetch != loading:
                yield f"{fetch['node']} fetches {fetch['file']} of {model['name']}: {_received(fetch)}"
    if warm is not None:
        yield _warm(warm)
    if saved_slots is not None and saved_slots["kept"]:
        slots = format_count(saved_slots["kept"], "conversation")
        yield f"KV caches kept of unloaded models: {format_bytes(saved_slots['kept_bytes'])} of {slots}"
    yield ""
    label_width = max((len(device_label(device)) for device in devices), default=0)
    yield from (_device(each, label_width, stranded_bytes(fragmentation, each["uuid"])) for each in devices)
    if devices:
        yield f"{'':<{label_width}}  {_LEGEND}"
    yield from fragmentation_lines(fragmentation)


def stranded_bytes(fragmentation: Mapping[str, Any] | None, uuid: str) -> int:
    """Return the free bytes of a device that no model could use."""
    part = fragmentation["by_device"].get(uuid) if fragmentation else None
    return part["stranded_bytes"] if part else 0


def fragmentation_lines(fragmentation: Mapping[str, Any] | None) -> Iterator[str]:
    """Say how much of the free memory is of no use, if some is, and what would fit in one piece."""
    if not fragmentation or not fragmentation["ratio"]:
        return
    free, stranded = format_bytes(fragmentation["free_bytes"]), format_bytes(fragmentation["stranded_bytes"])
    yield f"The next model cannot use {fragmentation['ratio']:.0%} of {free} free; {stranded} no model could."
    fits, whole = fragmentation["largest"], fragmentation["largest_in_one_piece"]
    if whole and whole != fits:
        now = f"{fits['name']} ({format_bytes(fits['bytes'])})" if fits else "none"
        size = format_bytes(whole["bytes"])
        yield f"The largest that fits: {now}; with the free memory in one piece: {whole['name']} ({size})."


def _engines(model: Model) -> Iterator[Model]:
    """Yield a model, and its other engines, in the same form: further copies, and others while one moves."""
    yield model
    for other in model.get("others") or ():
        claims = other["bytes_by_device"]
        yield {
            **other,
            "name": f"  {other['name'] or model['name']}",
            "state": other["state"] if other["role"] == "copy" else f"{other['state']}, {other['role']}",
            "devices": [*claims],
            "predicted_bytes": sum(claims.values()),
        }


def several(nodes: Mapping[str, str | None]) -> bool:
    """Whether these devices, each with its machine, are those of more than one."""
    return len({*nodes.values()}) > 1


def node_of(model: Model, nodes: Mapping[str, str | None]) -> str:
    """Return the machine that a model is on, mostly one, of devices each with theirs."""
    found = (nodes.get(uuid) for uuid in model.get("devices", ()))
    return ", ".join(dict.fromkeys(filter(None, found))) or "-"


def _columns(names: Mapping[str, str], nodes: Mapping[str, str | None]) -> Sequence[Column[Model]]:
    """Return the columns of the models; `names` are those of devices, by UUID, `nodes` their machines."""
    node: list[Column[Model]] = [Column("NODE", lambda model: node_of(model, nodes))] * several(nodes)
    return (
        Column("model", lambda model: str(model["name"])),
        Column("state", lambda model: f"{model['state']}{', pinned' if model.get('pinned') else ''}"),
        *node,
        Column("GPU", lambda model: ", ".join(names.get(u, u) for u in model.get("devices", ())) or "-"),
        Column("predicted", lambda model: _bytes(model.get("predicted_bytes")), right=True),
        Column("measured", lambda model: _bytes(measured_bytes(model)), right=True),
        Column("in RAM", lambda model: _bytes(model.get("warm_bytes") or None), right=True),
        Column("req/s", lambda model: f"{model.get('requests_per_s', 0):.2f}", right=True),
        Column("in flight", lambda model: str(model.get("in_flight", 0)), right=True),
        Column("queue", lambda model: str(model.get("queued", 0)), right=True),
        Column("idle", lambda model: _duration(model.get("idle_s")), right=True),
        Column("keep-alive", lambda model: _duration(model.get("keep_alive_left_s")), right=True),
    )


def measured_bytes(model: Model) -> int | None:
    """Return the memory as measured, else as the engine reports it."""
    measured: int | None = model.get("measured_bytes")
    return model.get("reported_bytes") if measured is None else measured


def _progress(load: Mapping[str, Any]) -> str:
    read, total = load["read_bytes"], load["total_bytes"]
    took = f"{format_duration(load['running_s'])} of about {format_duration(load['expected_s'])}"
    if fetch := load.get("fetching"):
        return f"{fetch['node']} fetches {fetch['file']}: {_received(fetch)}, {took}"
    return took if read is None else f"{format_bytes(read)} of {format_bytes(total)} read, {took}"


def _received(fetch: Mapping[str, Any]) -> str:
    return f"{format_bytes(fetch['received_bytes'])} of {format_bytes(fetch['total_bytes'])}"


def _warm(warm: Mapping[str, Any]) -> str:
    kept, budget = format_bytes(warm["kept_bytes"]), format_bytes(warm["budget_bytes"])
    paused = f"; nothing is read ahead now: {warm['paused']}" if warm["paused"] else ""
    return f"Model files kept in host RAM: {kept}, at most {budget}{paused}"


def _device(device: Mapping[str, Any], label_width: int, stranded: int) -> str:
    total, free, foreign = device["total_bytes"], device["free_bytes"], device["foreign_bytes"]
    claimed = device["claimed_bytes"]
    bar = "?" * _BAR
    if total:
        ours = min(_BAR, round(claimed / total * _BAR))
        others = min(_BAR - ours, round((foreign or 0) / total * _BAR))
        useless = min(_BAR - ours - others, round(stranded / total * _BAR))
        bar = "█" * ours + "×" * others + "·" * (_BAR - ours - others - useless) + "/" * useless
    used = f"{format_bytes(claimed)} ours, {format_bytes(foreign)} others', {format_bytes(free)} free"
    percent = device.get("utilisation_percent")
    busy = "" if percent is None else f", {percent:.0f}% busy"
    over = ", OVERCOMMITTED" if device["overcommitted"] else ""
    over += f", {device['drain'].upper()}" if device.get("drain") else ""
    over += f", {device['left_out']}" if device.get("node") and device.get("left_out") else ""
    return f"{device_label(device):<{label_width}}  {bar}  {used} of {format_bytes(total)}{busy}{over}"


def device_label(device: Mapping[str, Any]) -> str:
    """Name a device for people."""
    index = device["index"]
    label = str(device["name"]) if index is None else f"GPU {index} {device['name']}"
    return f"{device['node']} {label}" if device.get("node") else label


def device_index(device: Mapping[str, Any]) -> str:
    """Return a device's index, `host` for host RAM."""
    return "host" if device.get("index") is None else str(device["index"])


def _bytes(count: int | None) -> str:
    return "-" if count is None else format_bytes(count)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
