"""Checks of Ray and of the other machines, where `nodes:` is configured."""

import importlib.metadata
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cotenant.doctor.files import ask, operators_key
from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.decisions import NodeState
from cotenant.domain.units import format_bytes, format_count, format_duration

_LEAST_RAY: Final = (2, 60)
_WITHOUT: Final = " was started without RAY_"
"""What `ray.environment.warnings` says of a variable, before what happens without it."""


def ray(host: HostContext) -> Iterator[Observation]:
    """Check whether Ray is installed here, and whether its token is there and secret."""
    if host.settings.nodes is None:
        return
    version = installed_ray()
    if version is None:
        yield problem(
            "Ray is not installed",
            "It starts the agents on the other machines: the daemon does not start without it.",
            "pip install 'cotenant[ray]'",
        )
        return
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if number < _LEAST_RAY:
        yield warning(
            f"Ray {version} is older than 2.60",
            "It was not tested with Cotenant, and has no storage for its head that needs no other program.",
            "pip install 'cotenant[ray]'",
        )
    else:
        yield ok(f"Ray {version}")
    yield _token(host)


def _token(host: HostContext) -> Observation:
    if host.environ.get("RAY_AUTH_MODE") != "token":
        return warning(
            "RAY_AUTH_MODE=token is not set here",
            "A daemon that is started like this cannot join machines that ask for a token, and those that "
            "ask for none run any program for whoever reaches Ray's ports.",
            "cotenant nodes env",
        )
    if host.environ.get("RAY_AUTH_TOKEN"):
        return ok("Ray's token is in the environment")
    home = Path(host.environ.get("HOME") or "/")
    path = Path(host.environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    try:
        found = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as error:
        return problem(
            f"Ray's token {path} cannot be read: {error.strerror}",
            "The daemon cannot join the other machines.",
            "Copy it from another machine, or set RAY_AUTH_TOKEN_PATH.",
        )
    if not found:
        return problem(f"Ray's token {path} is empty", "The daemon cannot join the other machines.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warning(
            f"Ray's token {path} can be read by other users",
            "Whoever has it can run any program as Ray's user on every machine.",
            f"chmod 600 {path}",
        )
    return ok(f"Ray's token {path} is readable by its owner only")


def installed_ray() -> str | None:
    """Return the version of Ray that is installed here, without importing it."""
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None


def machines(host: HostContext) -> Iterator[Observation]:
    """Check what the daemon knows of the other machines."""
    server = host.settings.server
    if host.settings.nodes is None:
        return
    found = ask(server.host, server.port, "/api/nodes", operators_key(host)) if server.port else None
    if found is None:
        yield unknown("no daemon answers here, so the other machines were not checked", "", "cotenant serve")
    elif found.status != 200:
        yield unknown(
            f"the daemon does not list the other machines: it answers {found.status}",
            "It wants a key that may operate." if found.status in (401, 403) else "",
            "Set COTENANT_API_KEY." if found.status in (401, 403) else "",
        )
    else:
        yield from of_fleet(json.loads(found.body))


def of_fleet(found: Mapping[str, Any]) -> Iterator[Observation]:
    """Judge what `GET /api/nodes` answers."""
    if found["problem"] is not None:
        yield problem(
            f"no machine can be reached through Ray: {found['problem']}",
            "Models that are loaded there serve on until their lease is over; nothing new is loaded.",
            "ray status   # on the daemon's machine, with the daemon's token",
        )
    if not found["nodes"] and found["launcher"] is not None:
        yield warning(
            "no machine has answered yet", "There are no GPUs to load models on.", "Start Ray on one."
        )
    for node in found["nodes"]:
        yield from of_machine(node)


def of_machine(node: Mapping[str, Any]) -> Iterator[Observation]:
    """Judge one machine, as `GET /api/nodes` describes it."""
    name, silent_s = node["name"], node["silent_s"]
    silent = "since the daemon began" if silent_s is None else f"for {format_duration(silent_s)}"
    if node["state"] == NodeState.LOST:
        yield problem(
            f"{name} has not answered {silent}: it counts as lost",
            "Its GPUs are not used, and what ran there is loaded elsewhere.",
            f"Start Ray there again, or: cotenant nodes forget {name}",
        )
    elif node["state"] == NodeState.SUSPECT:
        yield warning(
            f"{name} has not answered {silent}",
            "Nothing new is placed there; its models are loaded elsewhere once somebody asks for them.",
            f"ping {node['address'] or name}   # and `ray status` there",
        )
    else:
        free, left_s, link_s = node["free_bytes"], node["lease_left_s"], node["link_s"]
        facts = (
            f"{format_count(node['cards'], 'GPU')}",
            "" if free is None else f"{format_bytes(free)} free",
            format_count(node["engines"], "engine"),
            "" if left_s is None else f"{format_duration(left_s)} of its lease left",
            "" if link_s is None else f"a call takes {format_duration(link_s)}",
            f"Cotenant {node['version']}" if node["version"] else "",
        )
        drained = ", drained" if node["state"] == NodeState.DRAINED else ""
        yield ok(f"{name} answers{drained}: {', '.join(filter(None, facts))}")
    for text in node["warnings"]:
        if _WITHOUT in text:
            seen, _, without = text.partition(": ")
            head = " --head" if seen.startswith("the head ") else ""
            matters = f"Without it, {without}."
            yield warning(seen, matters, f"cotenant nodes env{head}   # what to start Ray with on {name}")
        else:
            yield warning(f"{name}: {text}")
