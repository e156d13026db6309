"""Compose files: which services there are, and which of them use a GPU."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.domain.errors import ComposeFileError
from cotenant.services.compose.compose_yaml import (
    MAX_VALUES,
    ComposeText,
    Override,
    Reset,
    count_values,
    read_compose_text,
    shape_error,
)
from cotenant.services.compose.gpu_requests import (
    GpuRequest,
    as_list,
    environment_of,
    gpu_requests,
    labels_of,
)
from cotenant.services.compose.interpolation import interpolated, project_variables

_MAX_FILES: Final = 100
_NOT_IN_A_NAME: Final = re.compile(r"[^-_a-z0-9]")
_PUBLISHED: Final = re.compile(r"(?:(?P<host>.+):)?(?P<port>\d+):\d+(?:/tcp)?")


@dataclass(frozen=True, slots=True)
class ComposeService:
    """A service as all files together define it.

    `definition` is the merged mapping before interpolation; `inherited` what `extends` adds, which
    podman-compose merges only after every file. `ports` are those published on this machine over TCP.
    """

    name: str
    definition: Mapping[str, Any]
    inherited: Mapping[str, Any]
    labels: Mapping[str, str]
    environment: Mapping[str, str | None]
    gpus: tuple[GpuRequest, ...]
    ports: tuple[int, ...]

    @property
    def has_health_check(self) -> bool:
        """Whether the files define a health check. One in the image is not known here."""
        check = self.definition.get("healthcheck") or self.inherited.get("healthcheck")
        return isinstance(check, Mapping) and not check.get("disable")


@dataclass(frozen=True, slots=True)
class ComposeProject:
    """A set of compose files, merged. `directory` is the folder of the first."""

    name: str
    directory: Path
    services: Mapping[str, ComposeService]


def read_project(files: Sequence[Path], name: str | None = None) -> ComposeProject:
    """Read compose files, later ones over earlier ones. Raises ComposeFileError.

    `name` is the project's as the operator gives it. Without it: COMPOSE_PROJECT_NAME, the files' `name:`,
    the name of the folder, as compose commands choose it.
    """
    if not files:
        raise ComposeFileError(
            "no compose file is configured", hint="Name it in services.compose.files of the configuration."
        )
    directory = files[0].absolute().parent
    variables = project_variables(directory)
    texts, scopes = _with_included(files, variables)
    merged: dict[str, Any] = {}
    for text in texts:
        merged = _merged(merged, _services_of(text))
    services, count = {}, 0
    for service, definition in merged.items():
        inherited = _inherited(merged, service, texts, ())
        count += count_values(inherited)
        if count > MAX_VALUES:
            raise shape_error(texts[0], service, "`extends` makes the services too long for compose files")
        owner = next((text.path for text in texts if service in text.lines), files[0])
        known = _filled(_merged(inherited, definition), scopes[owner])
        services[service] = ComposeService(
            service,
            definition,
            inherited,
            labels=labels_of(known),
            environment=environment_of(known),
            gpus=gpu_requests(known),
            ports=_published(known.get("ports")),
        )
    given = [str(text.root["name"]) for text in texts if text.root.get("name")]
    chosen = name or variables.get("COMPOSE_PROJECT_NAME") or (given[0] if given else directory.name)
    project = _NOT_IN_A_NAME.sub("", interpolated(chosen, variables).lower()).lstrip("-_")
    return ComposeProject(project or "default", directory, services)


def _with_included(
    files: Sequence[Path], variables: Mapping[str, str]
) -> tuple[list[ComposeText], Mapping[Path, Mapping[str, str]]]:
    """Return all files, with the variables of each: an included file has those of its own `.env` besides."""
    texts: dict[Path, ComposeText] = {}
    scopes = dict.fromkeys(files, variables)
    waiting, count = [*files], 0
    for path in waiting:
        if path in texts:
            continue
        if len(texts) == _MAX_FILES:
            raise ComposeFileError(f"{path}: more than {_MAX_FILES} compose files are included")
        texts[path] = read_compose_text(path)
        count += count_values(texts[path].root)
        if count > MAX_VALUES:
            raise ComposeFileError(f"{path}: with the files before it, it is too long for compose files")
        for entry in as_list(texts[path].root.get("include")):
            named = _filled(entry if isinstance(entry, dict) else {"path": entry}, scopes[path])
            others = [path.parent / str(other) for other in as_list(named.get("path"))]
            waiting += others
            if others:
                given = [str(path.parent / str(file)) for file in as_list(named.get("env_file"))]
                folder = path.parent / str(named.get("project_directory") or others[0].parent)
                scope = {**project_variables(folder, given), **scopes[path]}
                scopes |= {other: scope for other in others if other not in scopes}
    return [*texts.values()], scopes


def _services_of(text: ComposeText) -> dict[str, Any]:
    services = text.root.get("services") or {}
    if not isinstance(services, dict):
        raise shape_error(text, None, "`services` is not a mapping")
    found: dict[str, Any] = {}
    for name, definition in services.items():
        value = definition.value if isinstance(definition, Override) else definition
        if value is not None and not isinstance(value, (dict, Reset)):
            raise shape_error(text, str(name), "its definition is not a mapping")
        found[str(name)] = definition if value is not None else {}
    return found


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in more.items():
        earlier = result.get(key)
        if isinstance(value, Reset):
            result.pop(key, None)
        elif isinstance(value, Override):
            result[key] = _untagged(value.value)
        elif key in ("environment", "labels") and earlier is not None and type(earlier) is not type(value):
            probe = environment_of if key == "environment" else labels_of
            result[key] = probe({key: earlier}) | probe({key: value})
        elif isinstance(value, dict) and (earlier is None or isinstance(earlier, dict)):
            result[key] = _merged(earlier or {}, value)
        elif isinstance(value, list) and isinstance(earlier, list) and key not in ("command", "entrypoint"):
            result[key] = earlier + [_untagged(item) for item in value]
        else:
            result[key] = _untagged(value)
    return result


def _untagged(value: Any) -> Any:
    if isinstance(value, Override):
        return _untagged(value.value)
    if isinstance(value, dict):
        return {key: _untagged(item) for key, item in value.items() if not isinstance(item, Reset)}
    if isinstance(value, list):
        return [_untagged(item) for item in value if not isinstance(item, Reset)]
    return value


def _inherited(
    services: Mapping[str, Any], name: str, texts: Sequence[ComposeText], seen: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a service gets by `extends`; `seen` are the services that led to it."""
    extends = services[name].get("extends")
    if not extends:
        return {}
    named = extends if isinstance(extends, dict) else {"service": extends}
    parent = str(named.get("service"))
    owner = next((text for text in reversed(texts) if name in text.lines), texts[0])
    here = f"{owner.path}:{name}"
    if here in seen or len(seen) > _MAX_FILES:
        raise shape_error(owner, name, f"it extends {parent}, which leads back to itself")
    others = services
    if named.get("file"):
        other = read_compose_text((owner.path.parent / str(named["file"])).resolve())
        others, texts = _merged({}, _services_of(other)), [other]
    if parent not in others:
        raise shape_error(owner, name, f"it extends {parent}, which is no service there")
    return _merged(_inherited(others, parent, texts, (*seen, here)), others[parent])


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolated(value, variables)
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    return value


def _published(ports: object) -> tuple[int, ...]:
    found: list[int] = []
    for entry in ports if isinstance(ports, list) else []:
        if isinstance(entry, dict):
            port = str(entry.get("published") or "") if entry.get("protocol", "tcp") == "tcp" else ""
        else:
            match = _PUBLISHED.fullmatch(str(entry))
            port = match["port"] if match else ""
        if port.isdecimal() and 0 < int(port) < 65536:
            found.append(int(port))
    return tuple(found)
