"""llama.cpp in images: the path of an image's llama-server, and the options that it knows."""

import os
import secrets
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild, EngineForm
from cotenant.domain.errors import EngineMissing
from cotenant.domain.exit_causes import Cause
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.launch import container_supervisor
from cotenant.engines.launch.launchers import LAUNCHERS, kind_of, program_of
from cotenant.engines.launch.plan import ImageLauncher
from cotenant.engines.llama_cpp.builds import VERSION_LINE
from cotenant.engines.llama_cpp.server_flags import ServerFlags
from cotenant.programs.run import Finished, run_program

_PLACES: Final = ("llama-server", "/app/llama-server")
"""On the PATH, or the path in llama.cpp's own images."""
_ANSWERS_WITHIN_S: Final = 60.0


def image_build(terms: LaunchOptions) -> tuple[EngineBuild, ServerFlags]:
    """Find the llama-server of an image and its options, once per version of the image.

    This takes a second and needs no GPU. Raises EngineMissing if there is no such image, or no llama-server
    in it.
    """
    image = terms.image or ""
    kind = kind_of(terms)
    program = program_of(kind)
    return _query(kind, program, image, _identity(kind, program, image))


def _identity(kind: LauncherKind, program: str, image: str) -> str:
    if kind.traits.image_suffixes:
        try:
            stat = os.stat(image)
        except OSError as error:
            raise EngineMissing(
                f"the image {image} cannot be used: {error.strerror}",
                hint="Make it with `apptainer pull`, or correct `image:`.",
            ) from error
        return f"{stat.st_mtime_ns}-{stat.st_size}"
    found = run_program([program, "image", "inspect", "--format", "{{.Id}}", image], _ANSWERS_WITHIN_S)
    if not found.ok:
        known = diagnose(1, found.reason)
        if found.problem is not None or known.cause is not Cause.UNKNOWN:
            raise EngineMissing(f"{kind} cannot look for {image}: {found.reason}", hint=known.remedy)
        raise EngineMissing(
            f"{kind} has no image {image}: {found.reason}",
            hint=f"Run `{kind} pull {image}`, or correct `image:`.",
        )
    return found.output.strip()


@cache
def _query(kind: LauncherKind, program: str, image: str, identity: str) -> tuple[EngineBuild, ServerFlags]:
    launcher = LAUNCHERS[kind](program, image)
    if not isinstance(launcher, ImageLauncher):
        raise EngineMissing(f"{kind} cannot be queried for the llama-server of {image}")
    failures: list[str] = []
    for place in _PLACES:
        answer = _inside(launcher, program, [place, "--help"])
        flags = ServerFlags.parse(answer.output)
        if answer.ok and flags.known:
            version = VERSION_LINE.search(_inside(launcher, program, [place, "--version"]).output)
            build = EngineBuild(
                EngineKind.LLAMA_CPP, EngineForm.SERVER, place, version[1] if version else "unknown"
            )
            return build, flags
        failures.append(f"{place}: {answer.reason}")
    raise EngineMissing(
        f"the image {image} has no llama-server that lists its options ({'; '.join(failures)})",
        hint="Use an image of llama.cpp's server, or `engine: command` with a `command:`.",
    )


def _inside(launcher: ImageLauncher, program: str, argv: Sequence[str]) -> Finished:
    """Run a program of the image that prints its options or version."""
    name = f"cotenant-query-{secrets.token_hex(4)}"
    answer = run_program(launcher.command_in_image(argv, name), _ANSWERS_WITHIN_S, cwd=Path("/"))
    if answer.status is None or answer.status < 0:
        container_supervisor.remove([program], name)
    return answer
