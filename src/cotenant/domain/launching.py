"""Who starts a model's engine: this machine itself, or a container engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LauncherKind(StrEnum):
    """What an engine is started by."""

    HOST = "host"
    PODMAN = "podman"
    DOCKER = "docker"
    APPTAINER = "apptainer"


@dataclass(frozen=True, slots=True)
class LaunchTerms:
    """How the operator wants a model's engine started, in containers of `image`.

    `kind` None takes what suits the image: Apptainer for a .sif file, else podman or docker, whichever is
    there. Without an image it is started on the host.
    """

    kind: LauncherKind | None = None
    image: str | None = None


ON_HOST = LaunchTerms()
