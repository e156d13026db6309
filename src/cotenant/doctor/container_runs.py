"""Checks from inside containers that they see their GPU; only if running containers is allowed."""

from collections.abc import Iterator
from typing import Final

from cotenant.doctor.containers import GENERATE_CDI
from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.errors import ComposeFileError
from cotenant.services.compose.compose_files import read_project

_RUN_WITHIN_S: Final = 60.0
_ASK_WITHIN_S: Final = 10.0
_LIST_DEVICES: Final = "ls -d /dev/nvidia[0-9]* /dev/dxg /dev/kfd 2>/dev/null; true"
"""Device nodes exist if the container got the GPU; no tool is needed that an image may lack."""
_ENGINES: Final = ("podman", "docker")
_LIKELY: Final = ("cuda", "ubuntu", "debian", "alpine", "busybox")


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
        answer = host.run((*argv, "--entrypoint", "sh", image, "-c", _LIST_DEVICES), _RUN_WITHIN_S)
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
        listed = host.run((engine, "ps", *filters, "--format", "{{.Names}}"), _ASK_WITHIN_S)
        names = listed.output.split() if listed.ok else []
        if not names:
            continue
        answer = host.run((engine, "exec", names[0], "sh", "-c", _LIST_DEVICES), _ASK_WITHIN_S)
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
    answer = host.run((engine, "images", "--format", "{{.Repository}}:{{.Tag}}"), _ASK_WITHIN_S)
    images = [name for name in answer.output.split() if answer.ok and "<none>" not in name]
    likely = [name for part in _LIKELY for name in images if part in name]
    return next(iter((*likely, *images)), None)
