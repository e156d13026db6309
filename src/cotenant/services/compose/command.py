"""Finds the compose command of this machine and its container engine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.errors import ContainerEngineMissing
from cotenant.programs.run import run_async

_PROBE_TIMEOUT_S: Final = 10.0
_ERROR: Final = re.compile(
    r"^\w*(error|exception)\b|^(critical|fatal)\b|unknown command|cannot connect", re.I
)
KNOWN_COMMANDS: Final = (("podman-compose",), ("podman", "compose"), ("docker", "compose"))
"""The compose commands that are looked for, in this order."""


@dataclass(frozen=True, slots=True)
class ComposeCommand:
    """A working compose command: its argument vector, and its engine's (`podman` or `docker`)."""

    argv: tuple[str, ...]
    engine: tuple[str, ...]

    def call(
        self, project: str, files: Sequence[Path], generated: Sequence[Path], arguments: Sequence[str]
    ) -> list[str]:
        """Return the argument vector for a project: its own files, then the generated ones."""
        named = [option for path in (*files, *generated) for option in ("-f", str(path))]
        return [*self.argv, "-p", project, *named, *arguments]


async def find_compose(configured: Sequence[str] | None = None) -> ComposeCommand:
    """Return the configured command, else the first known one that works.

    These are podman-compose, podman compose and docker compose, in that order. One whose engine does not
    respond does not count. Raises ContainerEngineMissing, which lists what was tried.
    """
    tried: list[str] = []
    for argv in [tuple(configured)] if configured else KNOWN_COMMANDS:
        answer = await run_async([*argv, "version"], _PROBE_TIMEOUT_S)
        if not answer.ok:
            tried.append(f"{' '.join(argv)}: {reason(answer.failure_text)}")
            continue
        for engine in _engines(argv):
            # Unlike `--version` this contacts docker's daemon too.
            versions = ["{{.Server.Version}}"]
            if Path(engine[0]).name == "podman":
                # Podman has a server only where it is remote.
                versions.append("{{.Client.Version}}")
            for version in versions:
                answer = await run_async([*engine, "version", "--format", version], _PROBE_TIMEOUT_S)
                if answer.ok:
                    return ComposeCommand(argv, engine)
            tried.append(f"{' '.join(argv)}: {engine[0]}: {reason(answer.failure_text)}")
    raise ContainerEngineMissing(
        f"no compose command works on this machine: {'; '.join(tried)}",
        hint="Install podman-compose or docker compose, start its engine, or set services.compose.command.",
    )


def _engines(argv: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    words = [Path(word).name for word in argv]
    for engine in ("podman", "docker"):
        if any(word.startswith(engine) for word in words):
            return ((argv[0] if words[0] == engine else engine,),)
    return (("podman",), ("docker",))


def reason(text: str) -> str:
    """Return the line of a command's output that names the cause of a failure.

    It is the first error: later ones are consequences. "No such container" on removal does not count.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    blamed = [line for line in lines if _ERROR.search(line)]
    first = [line for line in blamed if "no such container" not in line.lower()]
    line = (first or blamed[-1:] or lines[-1:] or ["no output"])[0]
    return line[:500].rstrip(".")
