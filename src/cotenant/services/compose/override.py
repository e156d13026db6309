"""The text of the generated files: those for compose that pin services to GPUs, and `gpu-assignments.yml`.

Compose commands join lists of several files: a service that reserves `count: all` in its own file and gets
GPU 1 from an override has every GPU, without a warning. Therefore a reset file between the two first
removes the service's own request: docker compose and podman-compose 1.6.0 both merge file by file, and
podman-compose reads `!override` only one level deep. The same file removes a budget variable that is written
as a number (`VRAM_BUDGET_GB: 6.8`), which podman-compose cannot merge with a string.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import yaml

from cotenant.domain.units import GIB
from cotenant.services.compose.assignment_text import (
    ASSIGNMENT_LABEL,
    assignment_label,
    budget_text,
    device_name,
    device_of,
)
from cotenant.services.compose.compose_files import ComposeProject, ComposeService
from cotenant.services.compose.gpu_requests import RESERVED_DEVICES
from cotenant.services.compose.interpolation import escaped
from cotenant.services.model import Assignment, DeviceNames, SavedConfiguration, Service, ServiceDevice

ASSIGNMENTS_NAME: Final = "gpu-assignments.yml"
OVERRIDE_NAME: Final = "docker-compose.gpu-override.yml"
RESET_NAME: Final = "docker-compose.gpu-reset.yml"
_PLAIN_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class AssignedService:
    """A service with a GPU: its assignment, its compose definition, its settings and its GPU."""

    assignment: Assignment
    compose: ComposeService
    service: Service | None
    device: ServiceDevice | None
    device_name: str


def assigned_services(
    assignments: Sequence[Assignment],
    services: Sequence[Service],
    devices: Sequence[ServiceDevice],
    project: ComposeProject,
    names: DeviceNames,
) -> tuple[AssignedService, ...]:
    """Return the services to assign, without those that are not in the compose files."""
    known = {service.name: service for service in services}
    return tuple(
        AssignedService(
            assignment,
            project.services[assignment.service],
            known.get(assignment.service),
            device_of(assignment, devices),
            device_name(assignment, devices, names),
        )
        for assignment in assignments
        if assignment.gpu_index is not None and assignment.service in project.services
    )


def header(configuration: SavedConfiguration, *more: str) -> str:
    """Return the comment at the top of a generated file: its origin, and how to change it."""
    at = datetime.fromtimestamp(configuration.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = (
        f"Made by Cotenant at {at}: configuration {configuration.number}, {configuration.strategy}.",
        "Do not edit: the next save overwrites it. An edited file is overwritten only by force.",
        "To change it: cotenant services set SERVICE=GPU, then cotenant services apply.",
        *more,
    )
    return "".join(f"# {line}\n" for line in lines)


def render_assignments(configuration: SavedConfiguration) -> str:
    """Return the file that shows people what was assigned."""
    at = datetime.fromtimestamp(configuration.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        f"  {yaml_key(each.service)}: "
        f"{{ gpu: {json.dumps(each.gpu_index)}, vram_budget: {json.dumps(each.vram_budget_gb)} }}"
        for each in configuration.assignments
    ]
    return (
        header(configuration)
        + f"\ngenerated_at: '{at}'\nstrategy: {configuration.strategy}\n"
        + "\n".join(["assignments:" if lines else "assignments: {}", *lines])
        + "\n"
    )


def render_override(
    configuration: SavedConfiguration, assigned: Sequence[AssignedService], by_hand: str
) -> str:
    """Return the override; `by_hand` are the `-f` options for a manual run of compose."""
    top = header(configuration, f"By hand: {by_hand}") + "\n"
    if not assigned:
        return top + "services: {}\n"
    return top + "services:\n" + "".join(_service_block(each) for each in assigned)


def render_reset(configuration: SavedConfiguration, assigned: Sequence[AssignedService]) -> str | None:
    """Return the file that removes the GPU requests of assigned services; None if there are none."""
    services: dict[str, Any] = {}
    for each in assigned:
        for path in _dropped(each):
            place = services.setdefault(each.assignment.service, {})
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = None
    if not services:
        return None
    top = header(configuration, f"It comes before {OVERRIDE_NAME}: compose commands join lists of devices.")
    return f"{top}\nservices:\n" + _tree(services, "  ")


def _service_block(assigned: AssignedService) -> str:
    device = f"  # {' '.join(assigned.device.name.split())}" if assigned.device else ""
    lines = [
        f"  {yaml_key(assigned.assignment.service)}:",
        "    labels:",
        f"      {ASSIGNMENT_LABEL}: {_quoted(assignment_label(assigned.assignment))}",
        "    deploy:",
        "      resources:",
        "        reservations:",
        "          devices:",
        "            - driver: nvidia",
        f"              device_ids: [{_quoted(assigned.device_name)}]{device}",
        "              capabilities: [gpu]",
        *(f"            - {_flow(entry)}" for entry in _kept(assigned, RESERVED_DEVICES)),
    ]
    budget, service = assigned.assignment.vram_budget_gb, assigned.service
    if budget is not None and service is not None and service.budget_env is not None:
        lines.append("    environment:")
        lines.append(f"      - {service.budget_env}={budget_text(budget)}{_adjusted(budget, service)}")
    others = _kept(assigned, ("devices",))
    if others:
        lines.append("    devices:")
        lines.extend(f"      - {_flow(entry)}" for entry in others)
    return "\n".join(lines) + "\n"


def _adjusted(budget_gb: float, service: Service) -> str:
    if service.vram_bytes is None or budget_gb * GIB >= service.vram_bytes * 0.99:
        return ""
    return f"  # adjusted: it asks for {service.vram_bytes / GIB:.1f}"


def _dropped(assigned: AssignedService) -> list[tuple[str, ...]]:
    """Return the keys that have to be removed before the override adds its own.

    Only those in the service's own definition: podman-compose keeps a `!reset` of an absent key and drops
    what later files put in its place.
    """
    definition = assigned.compose.definition
    paths = [request.path for request in assigned.compose.gpus if _present(definition, request.path)]
    variables = definition.get("environment")
    if assigned.service and assigned.assignment.vram_budget_gb is not None and isinstance(variables, Mapping):
        name = assigned.service.budget_env
        if name in variables and not isinstance(variables[name], str):
            paths.append(("environment", str(name)))
    return paths


def _kept(assigned: AssignedService, path: tuple[str, ...]) -> tuple[Any, ...]:
    if not _present(assigned.compose.definition, path):
        return ()
    return tuple(entry for request in assigned.compose.gpus if request.path == path for entry in request.kept)


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
            text += f"{indent}{yaml_key(key)}: !reset null\n"
        else:
            text += f"{indent}{yaml_key(key)}:\n" + _tree(value, indent + "  ")
    return text


def yaml_key(name: str) -> str:
    """Return a service's name as a key, quoted where YAML would read something else."""
    plain = _PLAIN_KEY.fullmatch(name) and isinstance(yaml.safe_load(name), str)
    return name if plain else json.dumps(name)


def _quoted(text: str) -> str:
    return "'" + escaped(text).replace("'", "''") + "'"


def _flow(entry: Any) -> str:
    return escaped(json.dumps(entry))
