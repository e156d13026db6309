"""The launcher that each model asks for."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.engines.launch.apptainer import ApptainerLauncher
from cotenant.engines.launch.container import ContainerLauncher
from cotenant.engines.launch.plan import HostLauncher, Launcher, LaunchPlan
from cotenant.engines.process.process import ChildProcess

LAUNCHERS: Final[Mapping[LauncherKind, Callable[[str, str], Launcher]]] = {
    LauncherKind.HOST: lambda program, image: HostLauncher(),
    LauncherKind.PODMAN: partial(ContainerLauncher, LauncherKind.PODMAN),
    LauncherKind.DOCKER: partial(ContainerLauncher, LauncherKind.DOCKER),
    LauncherKind.APPTAINER: ApptainerLauncher,
}
"""Makes each launcher from its program and an image; both are empty if it runs no images."""


async def launch(plan: LaunchPlan, output_fd: int) -> ChildProcess:
    """Start an engine as its plan says. Raises EngineError or OSError before anything runs."""
    kind, image = kind_of(plan.launch), plan.launch.image
    if kind.traits.runs_images and image is None:
        kind = LauncherKind.HOST
    program = program_of(kind) if kind.traits.runs_images else ""
    return await LAUNCHERS[kind](program, image or "").launch(plan, output_fd)


def kind_of(options: LaunchOptions) -> LauncherKind:
    """Return the kind of launcher: the one in the options, else one that runs the image.

    Raises EngineMissing if no installed program runs it.
    """
    if options.kind is not None or options.image is None:
        return options.kind or LauncherKind.HOST
    if options.by_image_file is not None:
        return options.by_image_file
    kinds = [kind for kind in LauncherKind if kind.traits.runs_images and not kind.traits.image_suffixes]
    for kind in kinds:
        if any(shutil.which(program) for program in kind.traits.programs):
            return kind
    raise EngineMissing(
        f"the image {options.image} cannot be run: there is neither {' nor '.join(kinds)}",
        hint="Install one of them, or leave `image:` out.",
    )


def program_of(kind: LauncherKind) -> str:
    """Return a container engine's program. Raises EngineMissing."""
    names = kind.traits.programs
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        raise EngineMissing(
            f"there is no program {' or '.join(names)} to start engines with",
            hint=f"Install {names[0]}, or choose another `launcher:`.",
        )
    return program
