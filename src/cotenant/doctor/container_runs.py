"""Whether containers really see their GPU: asked from inside, and only when containers may be run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Area, Finding, ok, problem, unknown, warning
from cotenant.doctor.host_context import Patient
from cotenant.domain.errors import ComposeFileError
from cotenant.services.compose.compose_files import read_project

_RUN_WITHIN_S: Final = 60.0
_ASK_WITHIN_S: Final = 10.0
_LOOK: Final = "ls -d /dev/nvidia[0-9]* /dev/dxg /dev/kfd 2>/dev/null; true"
"""Device nodes tell more than a tool that an image may lack; they are there if the GPU was handed in."""
_ENGINES: Final = ("podman", "docker")
_LIKELY: Final = ("cuda", "ubuntu", "debian", "alpine", "busybox")


def trial(patient: Patient) -> Iterator[Finding]:
    """Run a container with a GPU, of an image that is here already, and look inside."""
    if not patient.containers:
        return
    if not patient.nvidia_cards():
        yield ok(Area.CONTAINERS, "no container was tried: there is no NVIDIA card to hand in")
        return
    indices = sorted({card.index for card in patient.nvidia_cards() if card.index is not None})
    for engine in (name for name in _ENGINES if patient.find(name) is not None):
        image = patient.image or _local_image(patient, engine)
        if image is None:
            yield unknown(
                Area.CONTAINERS,
                f"{engine} has no image to try a container with",
                "Whether its containers see a GPU was not seen.",
                f"{engine} pull docker.io/library/debian:stable-slim   # then again",
            )
            continue
        named = [word for index in indices for word in ("--device", f"nvidia.com/gpu={index}")]
        handed = named if engine == "podman" else ["--gpus", "all"]
        argv = (engine, "run", "--rm", "--pull=never", "--network=none", *handed)
        answer = patient.run((*argv, "--entrypoint", "sh", image, "-c", _LOOK), _RUN_WITHIN_S)
        seen = answer.output.split()
        if not answer.worked:
            yield problem(
                Area.CONTAINERS,
                f"{engine} cannot start a container with a GPU: {answer.reason}",
                "Services that are pinned to a GPU do not start.",
                "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
            )
        elif any(path.startswith("/dev/") for path in seen):
            yield ok(Area.CONTAINERS, f"a container of {engine} sees {', '.join(seen)}")
        else:
            yield problem(
                Area.CONTAINERS,
                f"a container of {engine} starts with a GPU and sees none",
                "Services compute on the CPU, or fail, without a word from the container engine.",
                "sudo nvidia-ctk runtime configure --runtime=docker"
                if engine == "docker"
                else "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
            )


def services(patient: Patient) -> Iterator[Finding]:
    """Ask each service's running container which GPUs it sees."""
    told = patient.configuration.services if patient.configuration is not None else None
    if not patient.containers or told is None:
        return
    try:
        project = read_project(told.compose_files, told.project).name
    except ComposeFileError as error:
        yield problem(Area.CONTAINERS, error.message, "No service can be pinned or recreated.", error.hint)
        return
    for service in (item for item in told.items if item.enabled):
        yield _service(patient, project, service.name)


def _service(patient: Patient, project: str, service: str) -> Finding:
    # Another project may have a service of the same name.
    labels = (f"com.docker.compose.project={project}", f"com.docker.compose.service={service}")
    filters = [word for label in labels for word in ("--filter", f"label={label}")]
    for engine in (name for name in _ENGINES if patient.find(name) is not None):
        listed = patient.run((engine, "ps", *filters, "--format", "{{.Names}}"), _ASK_WITHIN_S)
        names = listed.output.split() if listed.worked else []
        if not names:
            continue
        answer = patient.run((engine, "exec", names[0], "sh", "-c", _LOOK), _ASK_WITHIN_S)
        seen = [path for path in answer.output.split() if path.startswith("/dev/")]
        if not answer.worked:
            return unknown(
                Area.CONTAINERS,
                f"the service {service} could not be asked for its GPU: {answer.reason}",
                "Its image may have no shell.",
                f"{engine} inspect {names[0]}",
            )
        if seen:
            return ok(Area.CONTAINERS, f"the service {service} sees {', '.join(seen)}")
        return problem(
            Area.CONTAINERS,
            f"the service {service} runs and sees no GPU",
            "It computes on the CPU, or not at all.",
            "cotenant services apply",
        )
    return warning(
        Area.CONTAINERS,
        f"the service {service} has no running container",
        "Whether it sees its GPU cannot be told.",
        f"cotenant services status   # and the container engine's logs of {service}",
    )


def _local_image(patient: Patient, engine: str) -> str | None:
    answer = patient.run((engine, "images", "--format", "{{.Repository}}:{{.Tag}}"), _ASK_WITHIN_S)
    images = [name for name in answer.output.split() if answer.worked and "<none>" not in name]
    likely = [name for part in _LIKELY for name in images if part in name]
    return next(iter((*likely, *images)), None)
