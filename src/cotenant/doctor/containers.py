"""Checks of container engines, their access to GPUs, and what containers see of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.errors import ComposeFileError
from cotenant.domain.units import format_count
from cotenant.programs.run import Finished
from cotenant.services.compose.command import KNOWN_COMMANDS
from cotenant.services.compose.compose_files import read_project

ASK_WITHIN_S: Final = 3.5
GENERATE_CDI: Final = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_INSTALL_TOOLKIT: Final = "sudo apt-get install nvidia-container-toolkit   # after adding NVIDIA's repository"
_LIST_WITHIN_S: Final = 10.0
_LIST_DEVICES: Final = "ls -d /dev/nvidia[0-9]* /dev/dxg /dev/kfd 2>/dev/null; true"
"""Device nodes exist if the container got the GPU; no tool is needed that an image may lack."""
_ENGINES: Final = ("podman", "docker")


def docker(host: HostContext) -> Iterator[Observation]:
    """Check whether docker answers and can give containers a GPU."""
    if host.find("docker") is None:
        yield _absent(host, "docker")
        return
    answer = host.run(("docker", "info", "--format", "{{json .}}"), ASK_WITHIN_S)
    info = _mapping(answer)
    errors = info.get("ServerErrors")
    if not answer.ok or errors:
        reason = str(errors[0]) if isinstance(errors, list) and errors else answer.reason
        yield warning(
            f"docker is installed, but its daemon does not answer: {reason}",
            "Services in docker cannot be pinned or recreated.",
            "sudo usermod -aG docker $USER   # then log in again"
            if "permission denied" in reason.lower()
            else "sudo systemctl start docker",
        )
        return
    version = info.get("ServerVersion", "of unknown version")
    gpus = "nvidia" in (info.get("Runtimes") or {}) or bool(info.get("CDISpecDirs"))
    if host.nvidia_cards() and not gpus:
        yield warning(
            f"docker {version} runs, but without NVIDIA's runtime",
            "Its containers get no GPU.",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
        )
    else:
        yield ok(f"docker {version} runs" + (" and can give containers GPUs" if gpus else ""))


def podman(host: HostContext) -> Iterator[Observation]:
    """Check whether podman works."""
    if host.find("podman") is None:
        yield _absent(host, "podman")
        return
    answer = host.run(("podman", "info", "--format", "json"), ASK_WITHIN_S)
    version = (_mapping(answer).get("version") or {}).get("Version", "of unknown version")
    if answer.ok:
        yield ok(f"podman {version} works")
    else:
        yield warning(
            f"podman is installed, but does not work: {answer.reason}",
            "Services in podman cannot be pinned or recreated.",
            "podman info",
        )


def compose(host: HostContext) -> Iterator[Observation]:
    """Check for a compose command that works, if services need one."""
    services = host.settings.services
    configured = services.command if services is not None else None
    tried = []
    for command in (configured,) if configured else KNOWN_COMMANDS:
        name = " ".join(command)
        if host.find(command[0]) is None:
            if configured:
                tried.append(f"{name}: there is no {command[0]}")
            continue
        if command not in (*KNOWN_COMMANDS, ("docker-compose",)):
            # A check runs no program that a file names: the file may not be this user's.
            yield unknown(f"{name}, the compose command of the configuration, is not run to check it")
            return
        answer = host.run((*command, "version"), ASK_WITHIN_S)
        if answer.ok:
            yield ok(f"{name} works")
            return
        tried.append(f"{name}: {answer.reason}")
    if services is None:
        yield ok("no compose command works; none is needed without services")
    else:
        yield problem(
            f"no compose command works ({'; '.join(tried) or 'none is installed'})",
            "The services of the configuration cannot be recreated on another GPU.",
            "See `services.compose.command` in the configuration."
            if configured
            else "pip install podman-compose   # or install docker's compose plugin",
        )


def toolkit(host: HostContext) -> Iterator[Observation]:
    """Check for NVIDIA's container toolkit, if there are cards and a container engine."""
    if not host.nvidia_cards() or not _has_engine(host):
        return
    if host.find("nvidia-ctk") is None:
        yield warning(
            "NVIDIA's container toolkit (nvidia-ctk) is not installed",
            "No container of this machine gets a GPU.",
            _INSTALL_TOOLKIT,
        )
        return
    answer = host.run(("nvidia-ctk", "--version"), ASK_WITHIN_S)
    lines = answer.output.strip().splitlines()
    if answer.ok and lines:
        yield ok(lines[0])
    else:
        yield warning(
            f"nvidia-ctk does not run: {answer.reason}", "Containers may get no GPU.", _INSTALL_TOOLKIT
        )


def cdi(host: HostContext) -> Iterator[Observation]:
    """Check whether the CDI specification names the cards and files of the current driver."""
    files = (
        path for folder in ("/etc/cdi", "/var/run/cdi") for path in sorted(host.path(folder).glob("*.*"))
    )
    specs: dict[Path, dict[str, Any]] = {}
    # Container engines read only these files.
    for path in (path for path in files if path.suffix in (".json", ".yaml")):
        try:
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            what = f"{path} cannot be read: {str(error).splitlines()[0]}"
            matters = "podman cannot use its devices, and docker no CDI device at all."
            yield problem(what, matters, GENERATE_CDI)
            continue
        if isinstance(spec, dict) and spec.get("kind") == "nvidia.com/gpu":
            specs[path] = spec
    if specs:
        yield from _stale(host, specs)
    elif host.nvidia_cards() and host.find("podman") is not None:
        yield warning(
            "there is no CDI specification for the NVIDIA cards",
            "podman finds no GPU for its containers (`unresolvable CDI devices nvidia.com/gpu=0`).",
            GENERATE_CDI,
        )


def apptainer(host: HostContext) -> Iterator[Observation]:
    """Check Apptainer or Singularity."""
    for name in ("apptainer", "singularity"):
        if host.find(name) is not None:
            answer = host.run((name, "--version"), ASK_WITHIN_S)
            if answer.ok:
                yield ok(answer.output.strip().splitlines()[0] if answer.output else name)
            else:
                yield warning(f"{name} does not run: {answer.reason}", "Engines cannot run in it.")
            return
    yield ok("Apptainer is not installed; only engines that run in it need it")


def _stale(host: HostContext, specs: Mapping[Path, dict[str, Any]]) -> Iterator[Observation]:
    named = {str(entry.get("name")) for spec in specs.values() for entry in _devices(spec)}
    cards = host.nvidia_cards()
    lost = sorted({path for spec in specs.values() for path in _paths(spec) if not host.path(path).exists()})
    missing = [card for card in cards if not {str(card.index), card.id, "all"} & named]
    where = ", ".join(str(path) for path in specs)
    if lost:
        yield problem(
            f"{where} names files that do not exist: {', '.join(lost[:2])}"
            + (f" and {len(lost) - 2} more" if len(lost) > 2 else ""),
            "It was written for another driver: no container with a GPU starts.",
            GENERATE_CDI,
        )
    elif missing:
        yield warning(
            f"{where} does not name {', '.join(card.label for card in missing)}",
            "Containers cannot be pinned to that card.",
            GENERATE_CDI,
        )
    elif not cards:
        yield unknown(f"{where} names {format_count(len(named), 'device')}, and the driver shows no card")
    else:
        yield ok(f"{where} names every card")


def _devices(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = spec.get("devices")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _paths(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield the host files that a specification mounts into containers."""
    for edits in (spec.get("containerEdits"), *(entry.get("containerEdits") for entry in _devices(spec))):
        if not isinstance(edits, dict):
            continue
        for entry in edits.get("deviceNodes") or ():
            if isinstance(entry, dict) and "major" not in entry:
                yield str(entry.get("hostPath") or entry.get("path"))
        for entry in edits.get("mounts") or ():
            if isinstance(entry, dict) and isinstance(entry.get("hostPath"), str):
                yield entry["hostPath"]


def _has_engine(host: HostContext) -> bool:
    return any(map(host.find, _ENGINES))


def _absent(host: HostContext, name: str) -> Observation:
    if host.settings.services is None or _has_engine(host):
        return ok(f"{name} is not installed and not needed")
    return problem(
        f"{name} is not installed, nor is another container engine",
        "The services of the configuration cannot run here.",
        f"sudo apt-get install {name}",
    )


def _mapping(answer: Finished) -> Mapping[str, Any]:
    """Read the JSON of an answer that may begin with warnings."""
    start = answer.output.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(answer.output, start) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def trial(host: HostContext) -> Iterator[Observation]:
    """Run a container with a GPU, of a local image, and list its devices."""
    if not host.containers:
        return
    if not host.nvidia_cards():
        yield ok("no container was tested: there is no NVIDIA card")
        return
    indices = sorted({card.index for card in host.nvidia_cards() if card.index is not None})
    for engine in filter(host.find, _ENGINES):
        image = host.image or _local_image(host, engine)
        if image is None:
            yield unknown(
                f"{engine} has no local image to test a container with",
                "Whether its containers see a GPU is unknown.",
                f"{engine} pull docker.io/library/debian:stable-slim   # then check again",
            )
            continue
        named = [word for index in indices for word in ("--device", f"nvidia.com/gpu={index}")]
        gpus = named if engine == "podman" else ["--gpus", "all"]
        argv = (engine, "run", "--rm", "--pull=never", "--network=none", *gpus)
        answer = host.run((*argv, "--entrypoint", "sh", image, "-c", _LIST_DEVICES), 60.0)
        seen = answer.output.split()
        if not answer.ok:
            yield problem(
                f"{engine} cannot start a container with a GPU: {answer.reason}",
                "Services that are pinned to a GPU do not start.",
                GENERATE_CDI,
            )
        elif any(path.startswith("/dev/") for path in seen):
            yield ok(f"a container of {engine} sees {', '.join(seen)}")
        else:
            yield problem(
                f"a container of {engine} starts with a GPU and sees none",
                "Services compute on the CPU, or fail, without an error of the container engine.",
                "sudo nvidia-ctk runtime configure --runtime=docker" if engine == "docker" else GENERATE_CDI,
            )


def services(host: HostContext) -> Iterator[Observation]:
    """Check which GPUs the running container of each service sees."""
    settings = host.settings.services
    if not host.containers or settings is None:
        return
    try:
        project = read_project(settings.compose_files, settings.project).name
    except ComposeFileError as error:
        yield problem(error.message, "No service can be pinned or recreated.", error.hint)
        return
    for service in (item for item in settings.items if item.enabled):
        yield _service(host, project, service.name)


def _service(host: HostContext, project: str, service: str) -> Observation:
    # Another project may have a service of the same name.
    labels = (f"com.docker.compose.project={project}", f"com.docker.compose.service={service}")
    filters = [word for label in labels for word in ("--filter", f"label={label}")]
    for engine in filter(host.find, _ENGINES):
        listed = host.run((engine, "ps", *filters, "--format", "{{.Names}}"), _LIST_WITHIN_S)
        names = listed.output.split() if listed.ok else []
        if not names:
            continue
        answer = host.run((engine, "exec", names[0], "sh", "-c", _LIST_DEVICES), _LIST_WITHIN_S)
        seen = [path for path in answer.output.split() if path.startswith("/dev/")]
        if not answer.ok:
            return unknown(
                f"the service {service} could not be checked for its GPU: {answer.reason}",
                "Its image may have no shell.",
                f"{engine} inspect {names[0]}",
            )
        if seen:
            return ok(f"the service {service} sees {', '.join(seen)}")
        return problem(
            f"the service {service} runs and sees no GPU",
            "It computes on the CPU, or not at all.",
            "cotenant services apply",
        )
    return warning(
        f"the service {service} has no running container",
        "Whether it sees its GPU is unknown.",
        f"cotenant services status   # and the container engine's logs of {service}",
    )


def _local_image(host: HostContext, engine: str) -> str | None:
    answer = host.run((engine, "images", "--format", "{{.Repository}}:{{.Tag}}"), _LIST_WITHIN_S)
    images = [name for name in answer.output.split() if answer.ok and "<none>" not in name]
    wanted = ("cuda", "ubuntu", "debian", "alpine", "busybox")
    likely = [name for part in wanted for name in images if part in name]
    return next(iter((*likely, *images)), None)
