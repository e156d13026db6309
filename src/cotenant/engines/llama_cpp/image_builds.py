"""llama.cpp in images: where an image has its llama-server, and which options it knows."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild, EngineForm
from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.engines.launch import container_supervisor
from cotenant.engines.launch.launchers import kind_of, launcher_for, program_of
from cotenant.engines.launch.plan import ImageLauncher
from cotenant.engines.llama_cpp.server_flags import ServerFlags

_PLACES: Final = ("llama-server", "/app/llama-server")
"""On the PATH, or where llama.cpp's own images have it."""
_ANSWERS_WITHIN_S: Final = 60.0
_VERSION_LINE: Final = re.compile(r"^version: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """The llama-server of an image, and its options."""

    build: EngineBuild
    flags: ServerFlags


_known: dict[tuple[str, str, str], ImageBuild] = {}


def image_build(terms: LaunchOptions) -> ImageBuild:
    """Find the llama-server of an image, once until the image changes; it takes a second and needs no GPU.

    Raises EngineMissing if there is no such image, or no llama-server in it.
    """
    image = terms.image or ""
    kind = kind_of(terms)
    program = program_of(kind)
    key = (program, image, _identity(kind, program, image))
    if key not in _known:
        launcher = launcher_for(terms)
        if not isinstance(launcher, ImageLauncher):
            raise EngineMissing(f"{kind} cannot be asked for the llama-server of {image}")
        _known[key] = _asked(launcher, program, image)
    return _known[key]


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
    found = _run([program, "image", "inspect", "--format", "{{.Id}}", image])
    if found.status != 0:
        raise EngineMissing(
            f"{kind} has no image {image}: {found.last}",
            hint=f"Run `{kind} pull {image}`, or correct `image:`.",
        )
    return found.output.strip()


def _asked(launcher: ImageLauncher, program: str, image: str) -> ImageBuild:
    failures: list[str] = []
    for place in _PLACES:
        answer = _inside(launcher, program, [place, "--help"])
        flags = ServerFlags.parse(answer.output)
        if answer.status == 0 and flags.known:
            version = _VERSION_LINE.search(_inside(launcher, program, [place, "--version"]).output)
            build = EngineBuild(
                EngineKind.LLAMA_CPP, EngineForm.SERVER, place, version[1] if version else "unknown"
            )
            return ImageBuild(build, flags)
        failures.append(f"{place}: {answer.last}")
    raise EngineMissing(
        f"the image {image} has no llama-server that lists its options ({'; '.join(failures)})",
        hint="Use an image of llama.cpp's server, or `engine: command` with a `command:`.",
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    output: str

    @property
    def last(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"it ended with status {self.status}"


def _inside(launcher: ImageLauncher, program: str, argv: Sequence[str]) -> _Answer:
    """Run a command of the image that only describes itself."""
    name = f"cotenant-asks-{secrets.token_hex(4)}"
    answer = _run(launcher.command_in_image(argv, name))
    if answer.status < 0:
        container_supervisor.remove([program], name)
    return answer


def _run(argv: Sequence[str]) -> _Answer:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ANSWERS_WITHIN_S,
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Answer(-1, f"it did not answer within {_ANSWERS_WITHIN_S:g} s")
    except OSError as error:
        return _Answer(-1, f"{argv[0]} cannot be started: {error.strerror}")
    return _Answer(done.returncode, done.stdout.decode("utf-8", "replace"))
