"""What starts a model's engine: this machine itself, or a container engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class LauncherKind(StrEnum):
    """What starts an engine."""

    HOST = "host"
    PODMAN = "podman"
    DOCKER = "docker"
    APPTAINER = "apptainer"

    @property
    def traits(self) -> LauncherTraits:
        """What the rest of the program must know about this launcher."""
        return LAUNCHER_TRAITS[self]


class CardStyle(StrEnum):
    """How a launcher's options name the cards of a container."""

    CDI = "cdi"
    """`--device` with the name of the Container Device Interface: podman."""
    GPUS = "gpus"
    """`--gpus`: docker."""
    SWITCH = "switch"
    """One option for all cards of a vendor: Apptainer."""


@dataclass(frozen=True, slots=True)
class LauncherTraits:
    """The properties of one launcher.

    `programs` are the names of its command line, of which the first installed one is used; none for the host.
    `image_suffixes` are those of its image files; empty if its images have names.
    `keeps_containers` says that its containers outlive a killed daemon and must be removed.
    """

    programs: tuple[str, ...] = ()
    image_suffixes: tuple[str, ...] = ()
    cards: CardStyle = CardStyle.CDI
    keeps_containers: bool = False

    @property
    def runs_images(self) -> bool:
        """Whether it starts engines in images only."""
        return bool(self.programs)


LAUNCHER_TRAITS: Final[Mapping[LauncherKind, LauncherTraits]] = {
    LauncherKind.HOST: LauncherTraits(),
    LauncherKind.PODMAN: LauncherTraits(("podman",), cards=CardStyle.CDI, keeps_containers=True),
    LauncherKind.DOCKER: LauncherTraits(("docker",), cards=CardStyle.GPUS, keeps_containers=True),
    LauncherKind.APPTAINER: LauncherTraits(
        ("apptainer", "singularity"), image_suffixes=(".sif", ".simg"), cards=CardStyle.SWITCH
    ),
}


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How the operator wants a model's engine started, in containers of `image`.

    `kind` None chooses by the image: Apptainer for a .sif file, else podman or docker, whichever is
    installed. Without an image it is started on the host.
    """

    kind: LauncherKind | None = None
    image: str | None = None

    @property
    def by_image_file(self) -> LauncherKind | None:
        """The launcher of image files that `kind` or the image's suffix selects; None if neither does."""
        if self.kind is not None:
            return self.kind if self.kind.traits.image_suffixes else None
        name = self.image or ""
        return next((kind for kind in LauncherKind if name.endswith(kind.traits.image_suffixes)), None)


ON_HOST = LaunchOptions()


@dataclass(frozen=True, slots=True)
class SlotCache:
    """What saved slots of a model depend on: `identity` stands for its files, recipe and arguments.

    A token takes `bytes_per_token` of the KV cache.
    """

    identity: str
    bytes_per_token: int
