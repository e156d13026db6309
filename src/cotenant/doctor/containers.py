"""Container engines, and what gives their containers a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from cotenant.doctor.findings import Area, Finding, ok, problem, unknown, warning
from cotenant.doctor.host_context import Answer, Patient
from cotenant.services.compose.command import KNOWN_COMMANDS

ASK_WITHIN_S: Final = 3.5
_KIND: Final = "nvidia.com/gpu"
_SPECS: Final = ("/etc/cdi", "/var/run/cdi")
_SPEC_SUFFIXES: Final = (".json", ".yaml")
"""Container engines read no other files there."""
_GENERATE: Final = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_INSTALL_TOOLKIT: Final = "sudo apt-get install nvidia-container-toolkit   # after adding NVIDIA's repository"


def docker(patient: Patient) -> Iterator[Finding]:
    """Look whether docker answers and can hand out GPUs."""
    if patient.find("docker") is None:
        yield _absent(patient, "docker")
        return
    answer = patient.run(("docker", "info", "--format", "{{json .}}"), ASK_WITHIN_S)
    told = _mapping(answer)
    errors = told.get("ServerErrors")
    if not answer.worked or errors:
        reason = str(errors[0]) if isinstance(errors, list) and errors else answer.reason
        yield warning(
            Area.CONTAINERS,
            f"docker is installed, but its daemon does not answer: {reason}",
            "Services in docker cannot be pinned or recreated.",
            "sudo usermod -aG docker $USER   # then log in again"
            if "permission denied" in reason.lower()
            else "sudo systemctl start docker",
        )
        return
    version = told.get("ServerVersion", "of unknown version")
    gpus = "nvidia" in (told.get("Runtimes") or {}) or bool(told.get("CDISpecDirs"))
    if patient.nvidia_cards() and not gpus:
        yield warning(
            Area.CONTAINERS,
            f"docker {version} runs, but without NVIDIA's runtime",
            "Its containers get no GPU.",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
        )
    else:
        yield ok(Area.CONTAINERS, f"docker {version} runs" + (" and can hand out GPUs" if gpus else ""))


def podman(patient: Patient) -> Iterator[Finding]:
    """Look whether podman works."""
    if patient.find("podman") is None:
        yield _absent(patient, "podman")
        return
    answer = patient.run(("podman", "info", "--format", "json"), ASK_WITHIN_S)
    version = (_mapping(answer).get("version") or {}).get("Version", "of unknown version")
    if answer.worked:
        yield ok(Area.CONTAINERS, f"podman {version} works")
    else:
        yield warning(
            Area.CONTAINERS,
            f"podman is installed, but does not work: {answer.reason}",
            "Services in podman cannot be pinned or recreated.",
            "podman info",
        )


def compose(patient: Patient) -> Iterator[Finding]:
    """Look for a compose command that works, where services need one."""
    services = patient.configuration.services if patient.configuration is not None else None
    configured = services.command if services is not None else None
    tried = []
    for command in (configured,) if configured else KNOWN_COMMANDS:
        name = " ".join(command)
        if patient.find(command[0]) is None:
            if configured:
                tried.append(f"{name}: there is no {command[0]}")
            continue
        answer = patient.run((*command, "version"), ASK_WITHIN_S)
        if answer.worked:
            yield ok(Area.CONTAINERS, f"{name} works")
            return
        tried.append(f"{name}: {answer.reason}")
    if services is None:
        yield ok(Area.CONTAINERS, "no compose command works, nor is one needed: there are no services")
    else:
        yield problem(
            Area.CONTAINERS,
            f"no compose command works ({'; '.join(tried) or 'none is installed'})",
            f"The {len(services.items)} services of the configuration cannot be recreated on another GPU.",
            "See `services.compose.command` in the configuration."
            if configured
            else "pip install podman-compose   # or install docker's compose plugin",
        )


def toolkit(patient: Patient) -> Iterator[Finding]:
    """Look for NVIDIA's container toolkit, where there are cards and an engine for containers."""
    if not patient.nvidia_cards() or not _engine(patient):
        return
    if patient.find("nvidia-ctk") is None:
        yield warning(
            Area.CONTAINERS,
            "NVIDIA's container toolkit (nvidia-ctk) is not installed",
            "No container of this machine gets a GPU.",
            _INSTALL_TOOLKIT,
        )
        return
    answer = patient.run(("nvidia-ctk", "--version"), ASK_WITHIN_S)
    lines = answer.output.strip().splitlines()
    if answer.worked and lines:
        yield ok(Area.CONTAINERS, lines[0])
    else:
        yield warning(
            Area.CONTAINERS,
            f"nvidia-ctk does not run: {answer.reason}",
            "Containers may get no GPU.",
            _INSTALL_TOOLKIT,
        )


def cdi(patient: Patient) -> Iterator[Finding]:
    """Look whether the CDI specification names the cards and files of today's driver."""
    files = [path for folder in _SPECS for path in sorted(patient.path(folder).glob("*.*"))]
    files = [path for path in files if path.suffix in _SPEC_SUFFIXES]
    specs: dict[Path, dict[str, Any]] = {}
    for path in files:
        try:
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            yield problem(
                Area.CONTAINERS,
                f"{path} cannot be read: {reason}",
                "podman hands out no device that it names, and docker none at all.",
                _GENERATE,
            )
            continue
        if isinstance(spec, dict) and spec.get("kind") == _KIND:
            specs[path] = spec
    if specs:
        yield from _stale(patient, specs)
    elif patient.nvidia_cards() and patient.find("podman") is not None:
        yield warning(
            Area.CONTAINERS,
            "there is no CDI specification for the NVIDIA cards",
            "podman finds no GPU for its containers (`unresolvable CDI devices nvidia.com/gpu=0`).",
            _GENERATE,
        )


def apptainer(patient: Patient) -> Iterator[Finding]:
    """Look for Apptainer or Singularity."""
    for name in ("apptainer", "singularity"):
        if patient.find(name) is not None:
            answer = patient.run((name, "--version"), ASK_WITHIN_S)
            if answer.worked:
                yield ok(Area.CONTAINERS, answer.output.strip().splitlines()[0] if answer.output else name)
            else:
                yield warning(
                    Area.CONTAINERS, f"{name} does not run: {answer.reason}", "Engines cannot run in it."
                )
            return
    yield ok(Area.CONTAINERS, "Apptainer is not installed, which matters only to engines that run in it")


def _stale(patient: Patient, specs: Mapping[Path, dict[str, Any]]) -> Iterator[Finding]:
    named = {str(entry.get("name")) for spec in specs.values() for entry in _devices(spec)}
    cards = patient.nvidia_cards()
    lost = sorted(
        {path for spec in specs.values() for path in _paths(spec) if not patient.path(path).exists()}
    )
    missing = [card for card in cards if not {str(card.index), card.id, "all"} & named]
    where = ", ".join(str(path) for path in specs)
    if lost:
        yield problem(
            Area.CONTAINERS,
            f"{where} names files that are not there: {', '.join(lost[:2])}"
            + (f" and {len(lost) - 2} more" if len(lost) > 2 else ""),
            "It was written for another driver: no container with a GPU starts.",
            _GENERATE,
        )
    elif missing:
        yield warning(
            Area.CONTAINERS,
            f"{where} does not name {', '.join(card.label for card in missing)}",
            "Containers cannot be pinned to that card.",
            _GENERATE,
        )
    elif not cards:
        yield unknown(Area.CONTAINERS, f"{where} names {len(named)} devices, and the driver shows no card")
    else:
        yield ok(Area.CONTAINERS, f"{where} names every card")


def _devices(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = spec.get("devices")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _paths(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files of the host that a specification hands into containers."""
    for edits in (spec.get("containerEdits"), *(entry.get("containerEdits") for entry in _devices(spec))):
        if not isinstance(edits, dict):
            continue
        for entry in edits.get("deviceNodes") or ():
            if isinstance(entry, dict) and "major" not in entry:
                yield str(entry.get("hostPath") or entry.get("path"))
        for entry in edits.get("mounts") or ():
            if isinstance(entry, dict) and isinstance(entry.get("hostPath"), str):
                yield entry["hostPath"]


def _engine(patient: Patient) -> bool:
    return any(patient.find(name) is not None for name in ("docker", "podman"))


def _absent(patient: Patient, name: str) -> Finding:
    services = patient.configuration.services if patient.configuration is not None else None
    if services is None or _engine(patient):
        return ok(Area.CONTAINERS, f"{name} is not installed, nor needed")
    return problem(
        Area.CONTAINERS,
        f"{name} is not installed, nor is another container engine",
        "The services of the configuration cannot run here.",
        f"sudo apt-get install {name}",
    )


def _mapping(answer: Answer) -> Mapping[str, Any]:
    """Read JSON out of an answer in which warnings may stand before it."""
    start = answer.output.find("{")
    try:
        told, _ = json.JSONDecoder().raw_decode(answer.output, start) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
