"""The text of the generated files: those for compose that pin services to GPUs, and `gpu-assignments.yml`.

The override labels each container with its assignment, which is read back from there.

Compose commands join lists of several files: a service that reserves `count: all` in its own file and gets
GPU 1 from an override has every GPU, without a warning. Therefore a reset file between the two first
removes the service's own request: docker compose and podman-compose 1.6.0 both merge file by file, and
podman-compose reads `!override` only one level deep. The same file removes a budget variable that is written
as a number (`VRAM_BUDGET_GB: 6.8`), which podman-compose cannot merge with a string.
"""

import contextlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB
from cotenant.domain.vendors import Vendor
from cotenant.services.compose.compose_files import ComposeProject, ComposeService
from cotenant.services.compose.gpu_requests import AMD_COMPUTE, AMD_RENDER, RESERVED_DEVICES
from cotenant.services.compose.interpolation import escaped
from cotenant.services.model import (
    Assignment,
    DeviceNames,
    GpuRef,
    SavedConfiguration,
    Service,
    ServiceDevice,
)

ASSIGNMENTS_NAME: Final = "gpu-assignments.yml"
OVERRIDE_NAME: Final = "docker-compose.gpu-override.yml"
RESET_NAME: Final = "docker-compose.gpu-reset.yml"
ASSIGNMENT_LABEL: Final = "cotenant.assignment"
_FOR_ALL: Final = stat.S_IROTH | stat.S_IWOTH
_PLAIN_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class _Assigned:
    """A service with a GPU or a budget: its assignment, its compose definition, its settings and its GPUs."""

    assignment: Assignment
    compose: ComposeService
    service: Service | None
    devices: Sequence[tuple[GpuRef, ServiceDevice | None]]


def render(
    configuration: SavedConfiguration,
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    project: ComposeProject,
    names: DeviceNames,
    files: Sequence[Path],
    folder: Path,
) -> dict[str, str | None]:
    """Return the text of each generated file; None for the reset file if it is not needed.

    Services that are not in the compose files are left out. `files` are those, `folder` is the generated
    files': the override says how to give them to a compose command by hand.
    """
    known = {service.name: service for service in services}
    assigned = [
        _Assigned(
            each,
            project.services[each.service],
            known.get(each.service),
            [_found(gpu, devices) for gpu in each.gpus if gpu.gpu_index is not None],
        )
        for each in configuration.assignments
        if each.service in project.services
        and (each.indices or (each.vram_budget_gb is not None and each.device_id is None))
    ]
    at = datetime.fromtimestamp(configuration.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def header(*more: str) -> str:
        lines = (
            f"Made by Cotenant at {at}: configuration {configuration.number}, {configuration.strategy}.",
            "Do not edit: the next save overwrites it. An edited file is overwritten only by force.",
            "To change it: cotenant services set SERVICE=GPU, then cotenant services apply.",
            *more,
        )
        return "".join(f"# {line}\n" for line in lines) + "\n"

    reset = _reset(assigned)
    used = [*files, *([folder / RESET_NAME] if reset else ()), folder / OVERRIDE_NAME]
    base = files[0].parent
    by_hand = " ".join(f"-f {path.relative_to(base) if path.is_relative_to(base) else path}" for path in used)
    blocks = "".join(_service_block(each, names) for each in assigned)
    lines = [
        f"  {_yaml_key(each.service)}: "
        f"{{ gpu: {json.dumps(each.gpu_index)}, {f'gpus: {[*each.indices]}, ' if each.more else ''}"
        f"vram_budget: {json.dumps(each.vram_budget_gb)} }}\n"
        for each in configuration.assignments
    ]
    why_reset = f"It comes before {OVERRIDE_NAME}: compose commands join lists of devices."
    return {
        ASSIGNMENTS_NAME: header()
        + f"generated_at: '{at}'\nstrategy: {configuration.strategy}\n"
        + "".join(["assignments:\n" if lines else "assignments: {}\n", *lines]),
        RESET_NAME: header(why_reset) + "services:\n" + _tree(reset, "  ") if reset else None,
        OVERRIDE_NAME: header(f"By hand: {by_hand}")
        + (f"services:\n{blocks}" if assigned else "services: {}\n"),
    }


def _found(gpu: GpuRef, devices: Sequence[ServiceDevice]) -> tuple[GpuRef, ServiceDevice | None]:
    """Return a GPU as it is now, None if it is missing: by its id at any index, else by its index."""
    same = [device for device in devices if device.id == gpu.device_id]
    device = next(iter(same or [device for device in devices if device.index == gpu.gpu_index]), None)
    return device.ref if device else gpu, device


def _reset(assigned: Sequence[_Assigned]) -> dict[str, Any]:
    """Return the keys to remove, by service, as a tree with None at its leaves."""
    services: dict[str, Any] = {}
    for each in assigned:
        for path in _dropped(each):
            place = services.setdefault(each.assignment.service, {})
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = None
    return services


def _service_block(assigned: _Assigned, names: DeviceNames) -> str:
    assignment, service = assigned.assignment, assigned.service
    pinned = bool(assigned.devices)
    lines = [
        f"  {_yaml_key(assignment.service)}:",
        "    labels:",
        f"      {ASSIGNMENT_LABEL}: {_quoted(assignment_label(assignment))}",
    ]
    variables: list[str] = []
    others = [_flow(entry) for entry in _kept(assigned, ("devices",))] if pinned else []
    reserved = [_flow(entry) for entry in _kept(assigned, RESERVED_DEVICES)] if pinned else []
    amd = [device for _, device in assigned.devices if device and device.vendor is Vendor.AMD]
    nvidia = [(gpu, device) for gpu, device in assigned.devices if device not in amd]
    if amd:
        files, groups = _amd_files(amd)
        others = [f"{_quoted(f'{file}:{file}')}{_comment(own)}" for file, own in files.items()] + others
        if AMD_RENDER in files:
            variables.append(f"ROCR_VISIBLE_DEVICES={','.join(str(device.index) for device in amd)}")
        if groups:
            lines.append(f"    group_add: [{', '.join(_quoted(str(group)) for group in groups)}]")
    if nvidia:
        uuids = names is DeviceNames.UUID
        ids = [str((uuids and gpu.device_id) or gpu.gpu_index) for gpu, _ in nvidia]
        which = "count: all" if assignment.count == "all" else f"device_ids: [{', '.join(map(_quoted, ids))}]"
        gpus = f"driver: nvidia\n              {which}{_comment([device for _, device in nvidia])}"
        reserved = [f"{gpus}\n              capabilities: [gpu]", *reserved]
    if reserved:
        lines += ["    deploy:", "      resources:", "        reservations:", "          devices:"]
        lines += [f"            - {entry}" for entry in reserved]
    budget = assignment.vram_budget_gb
    if budget is not None and service is not None and service.budget_env is not None:
        text = f"{budget:.6f}".rstrip("0").rstrip(".")
        if service.vram_bytes is not None and budget * GIB < service.vram_bytes * 0.99:
            text += f"  # adjusted: it asks for {service.vram_bytes / GIB:.1f}"
        variables.append(f"{service.budget_env}={text}")
    for key, entries in (("environment", variables), ("devices", others)):
        if entries:
            lines += [f"    {key}:", *(f"      - {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def _comment(devices: Sequence[ServiceDevice | None]) -> str:
    names = ", ".join(" ".join(device.name.split()) for device in devices if device)
    return f"  # {names}" if names else ""


def _amd_files(devices: Sequence[ServiceDevice]) -> tuple[dict[str, list[ServiceDevice]], list[int]]:
    """Return the device files that a container needs for AMD cards, with those cards, and who may open them.

    These are groups. All cards share one compute device; a card's render node shows it and no other. Unless
    every node is known, the container gets the nodes of all cards.
    """
    files = {AMD_COMPUTE: [*devices]}
    if all(device.render_node is not None for device in devices):
        files |= {f"{AMD_RENDER}/renderD{device.render_node}": [device] for device in devices}
    else:
        files[AMD_RENDER] = [*devices]
    groups = set()
    for file in files:
        with contextlib.suppress(OSError):
            found = Path(file).stat()
            if found.st_mode & _FOR_ALL != _FOR_ALL:
                groups.add(found.st_gid)
    return files, sorted(groups)


def _dropped(assigned: _Assigned) -> list[tuple[str, ...]]:
    """Return the keys that have to be removed before the override adds its own.

    Only those in the service's own definition: podman-compose keeps a `!reset` of an absent key and drops
    what later files put in its place.
    """
    definition = assigned.compose.definition
    requests = assigned.compose.gpus if assigned.devices else ()
    paths = [request.path for request in requests if _present(definition, request.path)]
    variables = definition.get("environment")
    if assigned.service and assigned.assignment.vram_budget_gb is not None and isinstance(variables, Mapping):
        name = assigned.service.budget_env
        if name in variables and not isinstance(variables[name], str):
            paths.append(("environment", str(name)))
    return paths


def _kept(assigned: _Assigned, path: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(
        entry
        for request in assigned.compose.gpus
        if request.path == path and _present(assigned.compose.definition, path)
        for entry in request.kept
    )


def _present(mapping: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(mapping, Mapping) or key not in mapping:
            return False
        mapping = mapping[key]
    return True


def _tree(mapping: Mapping[str, Any], indent: str) -> str:
    text = ""
    for key, value in mapping.items():
        if value is None:
            text += f"{indent}{_yaml_key(key)}: !reset null\n"
        else:
            text += f"{indent}{_yaml_key(key)}:\n" + _tree(value, indent + "  ")
    return text


def _yaml_key(name: str) -> str:
    """Return a service's name as a key, quoted where YAML would read something else."""
    plain = _PLAIN_KEY.fullmatch(name) and isinstance(yaml.safe_load(name), str)
    return name if plain else json.dumps(name)


def _quoted(text: str) -> str:
    return "'" + escaped(text).replace("'", "''") + "'"


def _flow(entry: Any) -> str:
    return escaped(json.dumps(entry))


def assignment_label(assignment: Assignment) -> str:
    """Return the value of the label from which a container's assignment is read back."""
    value: dict[str, Any] = {"gpu": assignment.gpu_index}
    if assignment.device_id is not None:
        value["device_id"] = assignment.device_id
    if assignment.more:
        value["more"] = [asdict(gpu) for gpu in assignment.more]
    if assignment.count == "all":
        value["count"] = "all"
    if assignment.vram_budget_gb is not None:
        value["vram_budget"] = assignment.vram_budget_gb
    return json.dumps(value, separators=(",", ":"))


def labelled_assignment(service: str, labels: Mapping[str, str]) -> Assignment | None:
    """Read a container's label; None without one, or with one that Cotenant did not write."""
    try:
        value = json.loads(labels.get(ASSIGNMENT_LABEL, "null"))
        gpu, device_id, budget = value["gpu"], value.get("device_id"), value.get("vram_budget")
        more = TypeAdapter(tuple[GpuRef, ...]).validate_python(value.get("more", ()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(gpu, bool) or not isinstance(gpu, int | None):
        return None
    return Assignment(
        service,
        gpu,
        DeviceId(device_id) if isinstance(device_id, str) else None,
        float(budget) if isinstance(budget, (int, float)) else None,
        more=more,
        count="all" if value.get("count") == "all" else None,
    )
