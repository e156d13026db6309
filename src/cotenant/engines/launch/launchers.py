"""The launcher that each model asks for."""

from __future__ import annotations

import shutil
from typing import Final

from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import LauncherKind, LaunchTerms
from cotenant.engines.launch.apptainer import ApptainerLauncher
from cotenant.engines.launch.container import ContainerLauncher
from cotenant.engines.launch.plan import HostLauncher, Launched, Launcher, LaunchPlan

IMAGE_FILE_SUFFIXES: Final = (".sif", ".simg")
_PROGRAMS: Final = {
    LauncherKind.PODMAN: ("podman",),
    LauncherKind.DOCKER: ("docker",),
    LauncherKind.APPTAINER: ("apptainer", "singularity"),
}


class Launchers:
    """Starts each engine as its plan says: on the host, or in a container."""

    async def launch(self, plan: LaunchPlan, output_fd: int) -> Launched:
        """Start it. Raises EngineError or OSError before anything runs."""
        return await _launcher_for(plan.launch).launch(plan, output_fd)


def kind_of(terms: LaunchTerms) -> LauncherKind:
    """Return what runs the image: what was asked for, else what suits it.

    Raises EngineMissing if neither podman nor docker is there.
    """
    if terms.kind is not None or terms.image is None:
        return terms.kind or LauncherKind.HOST
    if terms.image.endswith(IMAGE_FILE_SUFFIXES):
        return LauncherKind.APPTAINER
    for kind in (LauncherKind.PODMAN, LauncherKind.DOCKER):
        if shutil.which(kind) is not None:
            return kind
    raise EngineMissing(
        f"the image {terms.image} cannot be run: there is neither podman nor docker",
        hint="Install one of them, or leave `image:` out.",
    )


def program_of(kind: LauncherKind) -> str:
    """Return a container engine's program. Raises EngineMissing."""
    names = _PROGRAMS[kind]
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        raise EngineMissing(
            f"there is no program {' or '.join(names)} to start engines with",
            hint=f"Install {names[0]}, or choose another `launcher:`.",
        )
    return program


def _launcher_for(terms: LaunchTerms) -> Launcher:
    kind = kind_of(terms)
    if terms.image is None or kind is LauncherKind.HOST:
        return HostLauncher()
    program = program_of(kind)
    if kind is LauncherKind.APPTAINER:
        return ApptainerLauncher(program, terms.image)
    return ContainerLauncher(kind, program, terms.image)
