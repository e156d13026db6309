"""The containers of a project as podman or docker reports them on its command line."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import ContainerEngineMissing
from cotenant.programs.run import run_async
from cotenant.services.compose.command import reason
from cotenant.services.compose.gpu_requests import CDI_GPU
from cotenant.services.compose.override import labelled_assignment
from cotenant.services.model import Assignment, ContainerState, GpuRef

_PROJECT: Final = "com.docker.compose.project"
_SERVICE: Final = "com.docker.compose.service"
_ONE_OFF: Final = "com.docker.compose.oneoff"
_INSPECT_TIMEOUT_S: Final = 30.0
_LOG_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Container:
    """One container as its engine reports it.

    `gpus` are the names of the GPUs it was created with, with `all` for every GPU; None if the engine does
    not report them. `health` is the engine's status (`starting`, `healthy`, `unhealthy`); `starts_again` says
    that the engine restarts it when it exits.
    """

    id: str
    service: str
    labels: Mapping[str, str]
    status: str
    running: bool
    exit_code: int | None
    oom_killed: bool
    started_at: str
    restarts: int
    starts_again: bool
    has_check: bool
    health: str | None
    gpus: frozenset[str] | None


class ContainerEngine:
    """Podman or docker, through its command line, as far as it is about one project."""

    def __init__(self, argv: Sequence[str], project: str) -> None:
        self._argv = tuple(argv)
        self._project = project

    async def containers(self, service: str | None = None) -> tuple[Container, ...]:
        """Return the project's containers, or one service's, in the order of their ids.

        Raises ContainerEngineMissing if the engine does not answer.
        """
        options = ["--filter", f"label={_PROJECT}={self._project}"]
        if service:
            options += ["--filter", f"label={_SERVICE}={service}"]
        error = ""
        # A container may disappear between the two commands.
        for _ in range(3):
            listed = await run_async([*self._argv, "ps", "-aq", "--no-trunc", *options], _INSPECT_TIMEOUT_S)
            if not listed.ok:
                error = listed.failure_text
                continue
            ids = sorted(set(listed.output.split()))
            if not ids:
                return ()
            inspected = await run_async([*self._argv, "container", "inspect", *ids], _INSPECT_TIMEOUT_S)
            if not inspected.ok:
                error = inspected.failure_text
                continue
            try:
                found = [_container(each) for each in json.loads(inspected.output)]
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                error = "its output has an unknown format"
                continue
            # Those of `compose run` carry the service's name too.
            return tuple(
                each
                for each in found
                if each.labels.get(_ONE_OFF, "").lower() != "true" and service in (None, each.service)
            )
        raise ContainerEngineMissing(
            f"{self._argv[0]} does not list its containers: {reason(error)}",
            hint="Check that the container engine runs and that the daemon may use it.",
        )

    async def check(self, container: Container, timeout_s: float) -> str | None:
        """Run a container's health check now; return what it says, None if the container is healthy."""
        # Docker runs health checks by itself; podman leaves that to systemd's timers.
        if Path(self._argv[0]).name != "podman":
            return None if container.health == "healthy" else f"its check says {container.health}"
        result = await run_async([*self._argv, "healthcheck", "run", container.id], timeout_s)
        output = result.problem or (result.output + result.errors).strip() or "unhealthy"
        return None if result.ok else f"its check says {reason(output)}"

    async def last_log_lines(self, container: Container) -> str:
        """Return the last lines of a container's log joined into one, empty if there are none."""
        log = await run_async(
            [*self._argv, "logs", "--tail", str(_LOG_LINES), container.id], _INSPECT_TIMEOUT_S
        )
        lines = [line.strip() for line in (log.output + log.errors).splitlines() if line.strip()]
        return " | ".join(lines[-3:])[:500]


def states(containers: Iterable[Container], services: Iterable[str]) -> tuple[ContainerState, ...]:
    """Return the state of each service. With several containers it runs, or is healthy, if all do."""
    found = tuple(containers)
    return tuple(_state(name, [each for each in found if each.service == name]) for name in services)


def _state(service: str, containers: Sequence[Container]) -> ContainerState:
    if not containers:
        return ContainerState(service)
    first = containers[0]
    checked = [each.health == "healthy" for each in containers if each.health in ("healthy", "unhealthy")]
    return ContainerState(
        service,
        container_id=first.id,
        running=all(each.running for each in containers),
        healthy=all(checked) if len(checked) == len(containers) else None,
        assignment=_actual(labelled_assignment(service, first.labels), first.gpus),
    )


def _actual(labelled: Assignment | None, gpus: frozenset[str] | None) -> Assignment | None:
    """Return the assignment of a container's label, with other GPUs if the engine gave it others."""
    if labelled is None or not gpus or (labelled.count == "all" and "all" in gpus):
        return labelled
    if labelled.gpus and all(gpus & {str(gpu.gpu_index), gpu.device_id} for gpu in labelled.gpus):
        return labelled
    return labelled.on(
        GpuRef(int(name)) if name.isdecimal() else GpuRef(None, DeviceId(name)) for name in sorted(gpus)
    )


def _container(inspected: Mapping[str, Any]) -> Container:
    state, config, host = (inspected.get(key) or {} for key in ("State", "Config", "HostConfig"))
    labels = {str(name): str(value) for name, value in (config.get("Labels") or {}).items()}
    test = (config.get("Healthcheck") or {}).get("Test") or []
    health = (state.get("Health") or state.get("Healthcheck") or {}).get("Status")
    return Container(
        id=str(inspected["Id"]),
        service=labels.get(_SERVICE, ""),
        labels=labels,
        status=str(state.get("Status", "unknown")),
        running=bool(state.get("Running")) and not state.get("Restarting"),
        exit_code=state.get("ExitCode"),
        oom_killed=bool(state.get("OOMKilled")),
        started_at=str(state.get("StartedAt", "")),
        restarts=int(inspected.get("RestartCount") or 0),
        starts_again=str((host.get("RestartPolicy") or {}).get("Name") or "") not in ("", "no"),
        has_check=bool(test) and test[0] != "NONE",
        health=health or None,
        gpus=_gpus(host, config.get("CreateCommand")),
    )


def _gpus(host: Mapping[str, Any], create_command: Sequence[str] | None) -> frozenset[str] | None:
    """Return the GPUs: podman reports the command that created a container, docker the device requests."""
    if create_command:
        words = [word.removeprefix("--device=") for word in create_command]
        return frozenset(word.removeprefix(CDI_GPU) for word in words if word.startswith(CDI_GPU))
    if "DeviceRequests" not in host:
        return None
    names: set[str] = set()
    for request in host["DeviceRequests"] or []:
        ids = [str(name).removeprefix(CDI_GPU) for name in request.get("DeviceIDs") or []]
        names.update(ids or ["all"])
    return frozenset(names)
