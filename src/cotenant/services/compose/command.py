"""The compose command of this machine, and the engine it drives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.errors import ContainerEngineMissing
from cotenant.services.compose.program import ask

_ANSWERS_WITHIN_S: Final = 10.0
_ERROR: Final = re.compile(
    r"^\w*(error|exception)\b|^(critical|fatal)\b|unknown command|cannot connect", re.I
)
KNOWN_COMMANDS: Final = (("podman-compose",), ("podman", "compose"), ("docker", "compose"))
"""The compose commands that are looked for, in this order."""


@dataclass(frozen=True, slots=True)
class ComposeCommand:
    """A compose command that answers: its argument vector, and its engine's (`podman` or `docker`)."""

    argv: tuple[str, ...]
    engine: tuple[str, ...]

    def call(
        self, project: str, files: Sequence[Path], generated: Sequence[Path], arguments: Sequence[str]
    ) -> list[str]:
        """Return the argument vector for a project: its own files, then the generated ones."""
        named = [option for path in (*files, *generated) for option in ("-f", str(path))]
        return [*self.argv, "-p", project, *named, *arguments]


async def find_compose(configured: Sequence[str] | None = None) -> ComposeCommand:
    """Return the configured command, else the first that answers of those known.

    These are podman-compose, podman compose and docker compose, in that order. One whose engine does not
    answer is no use. Raises ContainerEngineMissing, which says what was tried.
    """
    tried: list[str] = []
    for argv in [tuple(configured)] if configured else KNOWN_COMMANDS:
        found = await _asked(argv, tried)
        if found is not None:
            return found
    raise ContainerEngineMissing(
        f"no compose command works on this machine: {'; '.join(tried)}",
        hint="Install podman-compose or docker compose, start its engine, or set services.compose.command.",
    )


async def _asked(argv: tuple[str, ...], tried: list[str]) -> ComposeCommand | None:
    answer = await ask([*argv, "version"], _ANSWERS_WITHIN_S)
    if not answer.ok:
        tried.append(f"{' '.join(argv)}: {reason(answer.errors or answer.output)}")
        return None
    for engine in _engines(argv):
        # Unlike `--version` this asks docker's daemon too.
        answer = await ask([*engine, "version", "--format", "{{.Server.Version}}"], _ANSWERS_WITHIN_S)
        if answer.ok or (Path(engine[0]).name == "podman" and (await _podman(engine))):
            return ComposeCommand(argv, engine)
        tried.append(f"{' '.join(argv)}: {engine[0]}: {reason(answer.errors or answer.output)}")
    return None


async def _podman(engine: tuple[str, ...]) -> bool:
    """Podman has a server only where it is remote."""
    return (await ask([*engine, "version", "--format", "{{.Client.Version}}"], _ANSWERS_WITHIN_S)).ok


def _engines(argv: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    words = [Path(word).name for word in argv]
    if any(word.startswith("podman") for word in words):
        return ((argv[0],),) if words[0] == "podman" else (("podman",),)
    if any(word.startswith("docker") for word in words):
        return ((argv[0],),) if words[0] == "docker" else (("docker",),)
    return (("podman",), ("docker",))


def reason(text: str) -> str:
    """Return the line of a command's output that says what went wrong.

    It is the first error: what follows is about its consequences. That a container to be removed was not
    there is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    blamed = [line for line in lines if _ERROR.search(line)]
    first = [line for line in blamed if "no such container" not in line.lower()]
    said = (first or blamed[-1:] or lines[-1:] or ["it said nothing"])[0]
    return said[:500].rstrip(".")
